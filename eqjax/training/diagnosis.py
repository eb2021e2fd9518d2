"""Where a step that is not finite went wrong: the first module, or term, whose numbers are no numbers."""

import functools

import jax
import jax.numpy as jnp

from eqjax.sharding import path_name
from eqjax.training.state import stream

# Modules of the generator in the order of the forward pass.
_FORWARD = ("class_embedding", "null_embedding", "cond_positions", "latent_proj", "input_norm", "blocks", "output_norm",
            "flow_head")  # fmt: skip

# And of a block among them.
_BLOCK = ("self_norm", "self_qkv", "self_out", "cross_norm", "cross_query", "cross_condition_norm", "cross_key",
          "cross_value", "cross_out", "mlp_norm", "mlp_in", "mlp_out")  # fmt: skip


def first_bad_module(generator, params, latents, labels, key):
    """Names the first thing that is not finite in a training step of the generator.

    In this order: parameters, latents, outputs of modules (the first in the forward pass; of the
    stacked layers the lowest), gradients (the last module in the forward pass, as they flow back).

    Args:
      generator: the module.
      params: its parameters.
      latents, labels: the batch, [B, L, D] and [B].
      key: the step's.

    Returns:
      A text, such as "output of blocks/mlp_in, layer 3".
    """
    rngs = {name: stream(key, name) for name in ("flow", "rope", "label", "dropout")}

    def loss(params, **options):
        return generator.apply({"params": params}, latents, labels, method="loss", rngs=rngs, **options)

    if bad := _bad(params):
        return f"parameter {bad[0]}"
    if not jnp.isfinite(latents).all():
        return "latents, which come from the tokenizer or the data"
    _, inside = jax.jit(lambda p: loss(p, capture_intermediates=True, mutable=["intermediates"]))(params)
    if bad := _bad(inside["intermediates"]):
        return f"output of {bad[0]}"
    if bad := _bad(jax.jit(jax.grad(loss))(params)):
        return f"gradient of {bad[-1]}"
    return "none when the step is done again: look for a hardware fault"


# Parts of the tokenizer in the order of the forward pass.
_PARTS = ("encoder", "quant", "linear_encode", "post_quant", "decoder", "semantic_head", "linear_decode")

# Terms of the tokenizer's objective in the order in which they are computed; their sums are left out.
_TERMS = ("l1", "lpips", "kl_loss", "semantic_loss", "g_loss")


def first_bad_term(updates, fixed, frozen, state, images, key):
    """Names the first thing that is not finite in a training step of the tokenizer.

    In this order: parameters, the encoder's output, terms of the loss, gradients, the discriminator's loss and
    gradients.

    Args:
      updates: the step's `Updates`.
      fixed: names of the parts of the parameters that are not trained.
      frozen: parameters of the frozen networks.
      state: before the step.
      images: [B, H, W, 3] in [-1, 1].
      key: the step's.

    Returns:
      A text, such as "term lpips".
    """
    found = _tokenizer_step(updates, fixed, frozen, state, images, key)
    bad = {what: [path_name(path) for path, finite in jax.tree_util.tree_leaves_with_path(tree) if not finite]
           for what, tree in found.items()}  # fmt: skip
    if bad["params"]:
        return f"parameter {bad['params'][0]}"
    if bad["discriminator"]:
        return f"the discriminator's {bad['discriminator'][0]}"
    if bad["latents"]:
        return "output of the encoder"
    if terms := [name for name in _TERMS if name in bad["terms"]]:
        return f"term {terms[0]}"
    if bad["grads"]:
        # They flow back, from the last part to the first.
        last = max(bad["grads"], key=lambda name: _place(_PARTS, name.split("/")[0]))
        return f"gradient of {len(bad['grads'])} arrays of the tokenizer, {last} among them"
    if bad["judge"]:
        return f"the discriminator's {bad['judge'][-1]}"
    return "none when the step is done again: look for a hardware fault"


@functools.partial(jax.jit, static_argnums=(0, 1))
def _tokenizer_step(updates, fixed, frozen, state, images, key):
    """{what is looked at: tree of booleans, whether arrays are finite}."""
    fixed = {name: state.params[name] for name in fixed}
    posterior = updates.objective.tokenizer.apply({"params": state.params}, images, method="encode")
    grads, terms, spectral = updates.tokenizer_grads(state, fixed, frozen, images, key)
    judge = {}
    if state.discriminator is not None:
        trained, _ = updates.tokenizer_update(state, fixed, grads)
        _, judge = updates.discriminator(state, {**fixed, **trained}, spectral, frozen, images, key)
    found = dict(params=state.params, discriminator=state.discriminator, latents=posterior.mean, terms=terms)
    found |= dict(grads=grads, judge={name: judge[name] for name in ("disc_grad_norm", "disc_loss") if judge})
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), found)


def _bad(tree):
    """Names of leaves that are not finite, in the order of the forward pass."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        finite = jnp.isfinite(leaf)
        if finite.all():
            continue
        name = path_name(path).split("/__call__")[0]
        module, *rest = name.split("/")
        place = (_place(_FORWARD, module), -1, 0)
        if module == "blocks":
            layer = int(jnp.argmin(finite.reshape(len(leaf), -1).all(axis=1)))
            place = (place[0], layer, _place(_BLOCK, rest[0]))
            name = f"{name}, layer {layer}"
        found.append((place, name))
    return [name for _, name in sorted(found, key=lambda item: item[0])]


def _place(order, name):
    return order.index(name) if name in order else len(order)
