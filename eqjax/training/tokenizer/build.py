"""The objective of a configuration."""

from collections.abc import Callable
from typing import Any

from eqjax import config_fields, nets
from eqjax.tokenizer import Tokenizer, losses
from eqjax.training import fields
from eqjax.training.tokenizer.discriminator import make_discriminator
from eqjax.training.tokenizer.objective import Objective
from eqjax.training.tokenizer.regularization_config import make_regularization
from eqjax.typing import Config, Params


def make_objective(
    config: Config, tokenizer: Tokenizer, load_network: Callable[..., tuple[Any, Params]] = nets.load
) -> tuple[Objective, dict[str, Any]]:
    """Returns the objective of a configuration, and the arrays that it reads by name: frozen networks, stereo windows.

    A term of weight 0 needs no weights; without an adversarial term there is no discriminator.

    Args:
      config: a resolved `tokenizer_config`.
      tokenizer: the module; frozen networks compute in its dtype.
      load_network: `nets.load`, or a function in its place.

    Raises:
      ValueError: a field of the objective or the discriminator is out of range, there is a semantic term without a
        semantic head, or a regularizer does not fit the run.
      FileNotFoundError: the file of a frozen network or of stereo pairs is missing.
      eqjax.nets.FrozenWeightsError: the file of a frozen network is damaged or holds other arrays.
    """
    weights, dtype = config.objective, tokenizer.dtype
    config_fields.check(weights, fields.OBJECTIVE, "an objective's configuration", "objective.")
    frozen: dict[str, Any] = {}
    functions: dict[str, Any] = {}
    if weights.perceptual_weight:
        lpips: Any
        lpips, frozen["lpips"] = load_network("lpips", dtype=dtype)
        functions["lpips"] = lambda frozen, x, y: nets.lpips(frozen["lpips"], x, y, lpips)
    if weights.semantic_weight:
        if tokenizer.semantic is None:
            raise ValueError(
                f"objective.semantic_weight={weights.semantic_weight} needs a tokenizer with a semantic head; set "
                "tokenizer.semantic, or the weight to 0."
            )
        dinov2: Any
        dinov2, frozen["dinov2"] = load_network("dinov2", dtype=dtype)
        functions["semantic_targets"] = lambda frozen, images: nets.dinov2_targets(frozen["dinov2"], images, dinov2)
    if weights.adversarial_weight:
        functions["discriminator"], discriminator_frozen = make_discriminator(config.discriminator, dtype, load_network)
        frozen |= discriminator_frozen
    regularization, stereo = make_regularization(config, tokenizer)
    if stereo is not None:
        frozen["stereo"] = stereo
    objective = Objective(
        tokenizer,
        kl_weight=weights.kl_weight,
        l2_weight=weights.l2_weight,
        seam_weight=weights.seam_weight,
        spectrum_weight=weights.spectrum_weight,
        perceptual_weight=weights.perceptual_weight,
        semantic_weight=weights.semantic_weight,
        adversarial_weight=weights.adversarial_weight,
        discriminator_loss=losses.DISCRIMINATOR_LOSSES[weights.discriminator_loss],
        regularization=regularization,
        **functions,
    )
    return objective, frozen
