"""Where a step that is not finite went wrong: the first module, or term, whose numbers are no numbers."""

import functools
import re

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

# Of the flow head, and of its blocks. The output of a whole, which has no name here, comes after its parts.
_HEAD = ("input_proj", "time_in", "time_out", "context_proj", "modulation", "final_modulation", "blocks", "final_norm",
         "output_proj")  # fmt: skip
_HEAD_BLOCK = ("norm", "mlp_in", "mlp_out")


def first_nonfinite_module(generator, params, encode, batch, key, parts=1):
    """Names the first thing that is not finite in a training step of the generator, which it repeats.

    In this order: parameters, latents, outputs of modules (the first in the forward pass; of the
    stacked layers the lowest), the loss, gradients (the last module in the forward pass, as they flow back).

    Args:
      generator: the module.
      params: its parameters.
      encode: (batch, key) → latents [B, L, D] and labels [B].
      batch: the step's, whole.
      key: the step's.
      parts: its accumulation_steps: like the step it takes the batch a part at a time, until one is bad.

    Returns:
      A text, such as "output of blocks/mlp_in, layer 3".
    """
    if bad := _bad(params):
        return f"parameter {bad[0]}"
    for i in range(parts):
        # The rows and the key that `optim.accumulate_gradients` gives the part.
        rows = jax.tree.map(lambda x, i=i: x[i::parts], batch)
        found = _first_bad_of_part(generator, params, encode, rows, jax.random.fold_in(key, i) if parts > 1 else key)
        if found is not None:
            return found
    return "none when the step is done again: look for a hardware fault"


def _first_bad_of_part(generator, params, encode, batch, key):
    latents, labels = encode(batch, stream(key, "posterior"))
    if not jnp.isfinite(latents).all():
        return "latents, which come from the tokenizer or the data"
    rngs = {name: stream(key, name) for name in ("flow", "rope", "label", "dropout")}

    def loss(params, **options):
        return generator.apply({"params": params}, latents, labels, method="loss", rngs=rngs, **options)

    value, inside = jax.jit(lambda p: loss(p, capture_intermediates=True, mutable=["intermediates"]))(params)
    if bad := _bad(inside["intermediates"]):
        return f"output of {bad[0]}"
    if not jnp.isfinite(value):
        return "the loss itself, of outputs that are all finite: they are too large to be squared"
    if bad := _bad(jax.jit(jax.grad(loss))(params)):
        return f"gradient of {bad[-1]}"
    return None


# Parts of the tokenizer in the order of the forward pass.
_PARTS = ("encoder", "quant", "post_quant", "decoder", "semantic_head")

# Terms of the tokenizer's objective in the order in which they are computed; their sums are left out.
_TERMS = ("l1", "lpips", "kl_loss", "semantic_loss", "g_loss")


def first_nonfinite_term(updates, fixed, frozen, state, images, key):
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
        place = (_place(_FORWARD, module),)
        if module == "blocks":
            layer = int(jnp.argmin(finite.reshape(len(leaf), -1).all(axis=1)))
            place += (layer, _place(_BLOCK, rest[0]))
            name = f"{name}, layer {layer}"
        elif module == "flow_head":
            place += _place_in_head(*rest)
        found.append((place, name))
    return [name for _, name in sorted(found, key=lambda item: item[0])]


def _place_in_head(module="", inner="", *_):
    block = re.fullmatch(r"blocks_(\d+)", module)
    if block:
        return _place(_HEAD, "blocks"), int(block[1]), _place(_HEAD_BLOCK, inner)
    return (_place(_HEAD, module),)


def _place(order, name):
    return order.index(name) if name in order else len(order)
