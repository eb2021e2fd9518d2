"""Causality and window by perturbation, masks by hand, rotary embedding, random draws of training."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqjax import Generator
from eqjax.generator import FlowHead, column_weights, layers
from eqjax.generator.layers import Block, LayerNorm, attend, gelu, window_mask
from eqjax.generator.rope import rope_angles, rotate
from tests.random_params import random_params

FIELDS: dict[str, Any] = dict(
    width=16, depth=2, num_heads=2, latent_dim=4, num_classes=3, num_cond_tokens=2, max_rope_shift=8, flow_width=8,
    flow_depth=1,
)  # fmt: skip


@functools.cache
def make(**fields):
    generator = Generator(**{**FIELDS, **fields})
    return generator, random_params(generator)  # Initial output layers would be zero, and hide their inputs.


def test_window_mask_by_hand():
    t, f = True, False
    assert window_mask(4, 2).tolist() == [[t, f, f, f], [t, t, f, f], [f, t, t, f], [f, f, t, t]]
    assert window_mask(3, None).tolist() == [[t, f, f], [t, t, f], [t, t, t]]
    assert window_mask(3, 1).tolist() == np.eye(3, dtype=bool).tolist()


@pytest.mark.parametrize("window", [1, 3, None])
def test_a_context_depends_on_the_class_and_the_window_before_it(window):
    generator, params = make(window_size=window)
    latents = jax.random.normal(jax.random.key(2), (1, 10, 4))
    context = jax.jit(functools.partial(generator.apply, {"params": params}, method="context"))
    before = context(latents, jnp.array([1]))
    column = 2
    changed = context(latents.at[:, column].add(1.0), jnp.array([1]))
    touched = np.flatnonzero(np.abs(changed - before).max(axis=(0, 2)) > 1e-6)
    # Column 2 first affects the context of column 3; every layer carries it window − 1 columns further.
    last = 9 if window is None else column + 1 + generator.depth * (window - 1)
    assert touched.tolist() == list(range(column + 1, last + 1))
    other_class = context(latents, jnp.array([2]))
    assert (np.abs(other_class - before).max(axis=(0, 2)) > 1e-6).all()


def test_rope_rotates_interleaved_pairs():
    # Pair (0, 1) turns by the position itself, pair (2, 3) by position / 100.
    x = jnp.array([[[1.0, 0.0, 0.0, 1.0]]])  # [L=1, H=1, d=4]
    out = rotate(x, rope_angles(jnp.array([2]), 4))[0, 0]
    np.testing.assert_allclose(out, [np.cos(2), np.sin(2), -np.sin(0.02), np.cos(0.02)], atol=1e-6)


def test_rope_scores_depend_on_distance_only():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 8))

    def score(i, j):
        return float(jnp.sum(rotate(q, rope_angles(jnp.array([i]), 8)) * rotate(k, rope_angles(jnp.array([j]), 8))))

    assert abs(score(5, 3) - score(25, 23)) < 1e-5
    assert abs(score(5, 3) - score(5, 4)) > 1e-3


def test_self_attention_is_relative_and_cross_attention_absolute():
    generator, params = make(window_size=3)
    latents, labels = jax.random.normal(jax.random.key(2), (1, 6, 4)), jnp.array([0])
    context = jax.jit(functools.partial(generator.apply, method="context"))
    shifted = context({"params": params}, latents, labels, rope_shift=5)
    assert float(jnp.abs(shifted - context({"params": params}, latents, labels))[:, 1:].max()) > 1e-4
    # Without cross-attention no output depends on the absolute position.
    blocks = dict(params["blocks"])
    blocks["cross_out"] = jax.tree.map(jnp.zeros_like, blocks["cross_out"])
    blind = {"params": {**params, "blocks": blocks}}
    np.testing.assert_allclose(
        context(blind, latents, labels, rope_shift=5), context(blind, latents, labels), atol=2e-5
    )


def relative(out, reference):
    return float(jnp.linalg.norm(out - reference) / jnp.linalg.norm(reference))


def test_without_cross_rope_nothing_depends_on_the_index_of_a_column():
    generator, _ = make(window_size=3)
    variables = {"params": random_params(generator, gain=3.0)}  # Cross-attention then prefers some tokens to others.
    latents, labels = jax.random.normal(jax.random.key(2), (2, 6, 4)), jnp.array([0, 2])

    @functools.partial(jax.jit, static_argnums=0)
    def outputs(generator, shift):
        context = generator.apply(variables, latents, labels, rope_shift=shift, method="context")
        return context, generator.apply(variables, latents, jnp.full((2, 6), 0.5), context, method="velocity")

    blind = generator.clone(cross_rope=False)
    for shift in (1, 16, 1000):
        for moved, there in zip(outputs(blind, shift), outputs(blind, 0), strict=True):
            assert relative(moved, there) < 1e-5
        for moved, there in zip(outputs(generator, shift), outputs(generator, 0), strict=True):
            assert relative(moved[:, 1:], there[:, 1:]) > 0.05


def test_cross_rope_is_the_published_program():
    """The option costs nothing: the program is that of a block that always rotates, and one without has no rotation."""
    generator, params = make(window_size=3)
    latents, labels = jnp.ones((1, 3, 4)), jnp.array([0])

    class Published(Block):
        def _cross(self, x, keys_values, angles, weights_fn=lambda weights: weights):
            query = rotate(self.cross_query(self.cross_norm(x)), angles)
            return attend(query, *keys_values, None, weights_fn)

    def text(generator, block=Block):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "Block", block)
            context = functools.partial(generator.apply, method="context")
            # As XLA gets it, but for the names of classes.
            return jax.jit(lambda p: context({"params": p}, latents, labels)).lower(params).as_text()

    assert text(generator) == text(generator, Published)
    assert text(generator.clone(cross_rope=False)) != text(generator)


def test_loss_draws_what_is_not_given():
    generator, params = make(dropout_rate=0.0, label_dropout_rate=0.0)
    latents, labels = jax.random.normal(jax.random.key(2), (4, 5, 4)), jnp.array([0, 1, 2, 0])
    loss = jax.jit(functools.partial(generator.apply, {"params": params}, latents, labels, method="loss"))
    a, b, c = loss(rngs=jax.random.key(0)), loss(rngs=jax.random.key(0)), loss(rngs=jax.random.key(1))
    assert a == b != c
    rows = generator.flow_batch_mult * 20
    given: dict[str, Any] = dict(time=jnp.full(rows, 0.5), noise=jnp.ones((rows, 4)), rope_shift=0)
    assert loss(**given) == loss(**given)  # Nothing is drawn, so no keys are needed.


def test_label_dropout_gives_the_null_class_and_dropout_is_random():
    latents, labels = jax.random.normal(jax.random.key(2), (4, 5, 4)), jnp.array([0, 1, 2, 0])
    rows = 4 * 20
    given: dict[str, Any] = dict(time=jnp.full(rows, 0.5), noise=jnp.ones((rows, 4)), rope_shift=0, method="loss")
    generator, params = make(dropout_rate=0.0, label_dropout_rate=1.0)
    variables, rngs = {"params": params}, jax.random.key(0)
    always = jax.jit(lambda labels: generator.apply(variables, latents, labels, rngs=rngs, **given))(labels)
    null = jnp.full_like(labels, generator.num_classes)
    plain = jax.jit(lambda labels: generator.apply(variables, latents, labels, deterministic=True, **given))
    np.testing.assert_allclose(always, plain(null), rtol=1e-6)
    assert abs(float(always - plain(labels))) > 1e-4
    generator, params = make(dropout_rate=0.5, label_dropout_rate=0.0)
    dropped = jax.jit(lambda key: generator.apply({"params": params}, latents, labels, rngs=key, **given))
    assert dropped(jax.random.key(0)) != dropped(jax.random.key(1))


class _Attentive(Generator):
    """Remembers the latents that columns attend to, and those whose velocity is learned; computes neither."""

    def context(self, latents, *_, **__):
        self.sow("intermediates", "attended", latents)
        return jnp.zeros(())

    def velocity(self, x_t, time, _):
        self.sow("intermediates", "learned", (x_t, time))
        return jnp.zeros(())


def test_context_noise_is_on_what_columns_attend_to_alone_and_off_in_evaluation():
    _, params = make()
    latents, labels = 10 + jnp.zeros((1024, 5, 4)), jnp.zeros(1024, jnp.int32)
    rows = 4 * latents.shape[0] * latents.shape[1]
    given: dict[str, Any] = dict(time=jnp.full(rows, 0.5), noise=jnp.zeros((rows, 4)), rope_shift=0, method="loss")

    def seen(noise, **options):
        module = _Attentive(**{**FIELDS, "context_noise": noise})
        _, sown = module.apply({"params": params}, latents, labels, mutable="intermediates", **given, **options)
        (attended,), ((learned, time),) = (sown["intermediates"][name] for name in ("attended", "learned"))
        np.testing.assert_allclose(learned, np.broadcast_to(10 * (1 - time[..., None]), learned.shape), rtol=1e-6)
        return np.asarray(attended) - 10

    added = seen(0.3, rngs=jax.random.key(0))
    levels = added.std((1, 2))
    assert 0.3 < levels.max() < 0.5 and levels.min() < 0.01  # Of 20 numbers each.
    assert abs(np.sqrt(np.mean(added**2)) - 0.3 / np.sqrt(3)) < 0.01  # A uniform level.
    assert not seen(0.3, deterministic=True).any() and not seen(0.0, rngs=jax.random.key(0)).any()


def test_bfloat16_contexts_are_close_and_velocities_are_float32():
    generator, params = make(window_size=3)
    half = generator.clone(dtype=jnp.bfloat16)
    latents, labels = jax.random.normal(jax.random.key(2), (2, 6, 4)), jnp.array([0, 1])
    context = jax.jit(lambda: half.apply({"params": params}, latents, labels, method="context"))()
    exact = jax.jit(lambda: generator.apply({"params": params}, latents, labels, method="context"))()
    assert context.dtype == jnp.bfloat16
    assert 1e-5 < float(jnp.abs(context.astype(jnp.float32) - exact).max()) < 0.2
    velocity = jax.jit(lambda c: half.apply({"params": params}, latents, jnp.ones((2, 6)), c, method="velocity"))(
        context
    )
    assert velocity.dtype == jnp.float32
    fresh = jax.eval_shape(half.init_params, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}


def test_initial_parameters_have_the_bounds_of_their_initializers():
    generator = Generator(**{**FIELDS, "width": 64, "num_heads": 4, "flow_width": 32})
    params = jax.jit(generator.init_params)(jax.random.key(0))
    bound = np.sqrt(6 / (64 + 3 * 64))  # Xavier over the fused matrix.
    largest = float(jnp.abs(params["blocks"]["self_qkv"]["kernel"]).max())
    assert 0.95 * bound < largest <= bound
    head = params["flow_head"]
    for name in ("modulation", "final_modulation", "output_proj"):
        assert not head[name]["kernel"].any()
    assert abs(float(head["time_in"]["kernel"].std()) / 0.02 - 1) < 0.1
    layers = params["blocks"]["mlp_in"]["kernel"]
    assert (layers[0] != layers[1]).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(width=10, num_heads=4), "width=10 must be a multiple of 2 · num_heads=8"),
        (dict(window_size=0), "window_size=0"),
        (dict(max_rope_shift=0), "max_rope_shift=0 must be an integer ≥ 1"),
        (dict(dropout_rate=2.0), r"dropout_rate=2.0 must be a finite number ≥ 0 and < 1"),
        (dict(remat="some"), "remat='some' must be one of .*projections"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], message):
    with pytest.raises(ValueError, match=message):
        Generator(**fields)


def test_latents_of_another_size_are_refused():
    generator, params = make()
    with pytest.raises(ValueError, match=r"latents have shape \(1, 5, 3\).*latent_dim=4"):
        generator.apply({"params": params}, jnp.zeros((1, 5, 3)), jnp.array([0]), method="context")


def test_column_weights_by_hand():
    np.testing.assert_allclose(column_weights(4, (3, 1)), [0, 0.5, 0, 0.5])
    with pytest.raises(ValueError, match=r"columns=\[4\] must be one or more indices from 0 … 3"):
        column_weights(4, [4])
    with pytest.raises(ValueError, match=r"columns=\[\] must be one or more"):
        column_weights(4, [])


def apply(module: nn.Module, x, params=None) -> Any:
    return module.apply({"params": params or {}}, x)


def test_norm_and_gelu_equal_those_of_the_libraries():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 6, 24))
    affine = {"scale": jnp.linspace(0.5, 2, 24), "bias": jnp.linspace(-1, 1, 24)}
    expected = apply(nn.LayerNorm(epsilon=1e-5, use_fast_variance=False), x, affine)
    np.testing.assert_allclose(apply(LayerNorm(1e-5), x, affine), expected, atol=2e-6)
    plain = apply(nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, use_bias=False, use_scale=False), x)
    np.testing.assert_allclose(apply(LayerNorm(1e-5, affine=False), x), plain, atol=2e-6)
    far = jnp.linspace(-9, 9, 1001)
    np.testing.assert_allclose(gelu(far), jax.nn.gelu(far, approximate=False), atol=2e-6)
    assert gelu(far.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert apply(LayerNorm(1e-5, jnp.bfloat16, affine=False), x).dtype == jnp.bfloat16


def test_biases_of_modulations_are_added_once():
    head = FlowHead(width=8, depth=2, latent_dim=4)
    x, time, context = jnp.ones((3, 4)), jnp.full(3, 0.5), jnp.ones((3, 6))
    params = head.init(jax.random.key(0), x, time, context)["params"]
    params = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape), params)
    # With no products there are only biases: shift, scale and gate of every block, then shift and scale.
    params["modulation"]["kernel"], params["final_modulation"]["kernel"] = jnp.zeros((8, 2, 3, 8)), jnp.zeros((8, 2, 8))
    h = x @ params["input_proj"]["kernel"] + params["input_proj"]["bias"][None]
    norm = functools.partial(apply, nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False))
    for i in range(2):
        block, (shift, scale, gate) = params[f"blocks_{i}"], params["modulation"]["bias"][i][:, None]
        u = norm(h) * block["norm"]["scale"][None] + block["norm"]["bias"][None]
        u = jax.nn.silu((u * (1 + scale) + shift) @ block["mlp_in"]["kernel"] + block["mlp_in"]["bias"][None])
        h = h + gate * (u @ block["mlp_out"]["kernel"] + block["mlp_out"]["bias"][None])
    shift, scale = params["final_modulation"]["bias"][:, None]
    out = (norm(h) * (1 + scale) + shift) @ params["output_proj"]["kernel"] + params["output_proj"]["bias"][None]
    velocity: Any = jax.jit(head.apply)({"params": params}, x, time, context)
    np.testing.assert_allclose(velocity, out, rtol=2e-4, atol=1e-4)
