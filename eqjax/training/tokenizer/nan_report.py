"""Names the first term of the tokenizer's objective that is not finite in a training step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from eqjax.sharding import path_name
from eqjax.training.forward_order import forward_order
from eqjax.training.state import TokenizerState
from eqjax.training.tokenizer.discriminator import FrozenParams
from eqjax.training.tokenizer.draws import Images
from eqjax.training.tokenizer.objective import TERMS
from eqjax.training.tokenizer.regularization import REGULARIZER_TERMS, TransformChoice
from eqjax.training.tokenizer.step import TokenizerStep
from eqjax.typing import PRNGKey


def first_nonfinite_term(
    step: TokenizerStep,
    frozen: FrozenParams,
    state: TokenizerState,
    images: Images,
    key: PRNGKey,
    choice: TransformChoice | None = None,
) -> str:
    """Repeats a training step and names the first value that is not finite.

    In this order: parameters, the encoder's output, terms of the objective, gradients, the discriminator's loss and
    gradients.

    Args:
      step: the step.
      frozen: parameters of the frozen networks.
      state: state before the step.
      images: images in [-1, 1].
      key: the step's random key.
      choice: the host's choice of the step's transform, or None.

    Returns:
      A text, such as "term lpips".
    """
    found = _repeat_step(step, frozen, state, images, key, choice)
    bad = {
        what: [path_name(path) for path, finite in jax.tree_util.tree_leaves_with_path(tree) if not finite]
        for what, tree in found.items()
    }
    if bad["params"]:
        return f"parameter {bad['params'][0]}"
    if bad["discriminator"]:
        return f"the discriminator's {bad['discriminator'][0]}"
    if bad["latents"]:
        return "output of the encoder"
    if terms := [name for name in (*REGULARIZER_TERMS, *TERMS) if name in bad["terms"]]:
        return f"term {terms[0]}"
    if bad["grads"]:
        # They flow back, from the last part of the tokenizer to the first.
        tokenizer = step.objective.tokenizer
        order = forward_order(lambda params: tokenizer.apply({"params": params}, images), state.params)
        parts = [path for path in order if "/" not in path]
        last = max(bad["grads"], key=lambda name: parts.index(name.split("/")[0]))
        return f"gradient of {len(bad['grads'])} arrays of the tokenizer, {last} among them"
    if bad["discriminator_metrics"]:
        return f"the discriminator's {bad['discriminator_metrics'][-1]}"
    return "none when the step is repeated: look for a hardware fault"


@functools.partial(jax.jit, static_argnums=0)
def _repeat_step(
    step: TokenizerStep,
    frozen: FrozenParams,
    state: TokenizerState,
    images: Images,
    key: PRNGKey,
    choice: TransformChoice | None,
) -> dict[str, Any]:
    """Returns whether arrays are finite, as trees of booleans."""
    posterior: Any = step.objective.tokenizer.apply({"params": state.params}, images, method="encode")
    regularizer = step.regularizer(state, choice, key)
    grads, terms, spectral = step.tokenizer_grads(frozen, state, images, key, regularizer)
    metrics: dict[str, Any] = {}
    if state.discriminator is not None:
        trained, _ = step.update_tokenizer(state, grads)
        params = {**state.params, **trained}
        _, metrics = step.update_discriminator(frozen, state, params, spectral, images, key, regularizer)
    found = {
        "params": state.params,
        "discriminator": state.discriminator,
        "latents": posterior.mean,
        "terms": terms,
        "grads": grads,
        "discriminator_metrics": {name: metrics[name] for name in ("disc_grad_norm", "disc_loss") if metrics},
    }
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), found)
