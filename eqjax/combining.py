"""Weights from those of several files: a tokenizer beside a generator, or values between two models."""

from collections.abc import Iterable
import dataclasses
from typing import Any

import jax
import numpy as np

from eqjax.differences import check_equal
from eqjax.pretrained import Weights, WeightsError, module_to_dict
from eqjax.rules import Number


def join(parts: Iterable[Weights], notes: str) -> Weights:
    """Joins a tokenizer's and a generator's weights; a later part takes precedence.

    Args:
      parts: the weights.
      notes: free text on their origin.

    Raises:
      WeightsError: tokenizer and generator do not fit together.
    """
    modules: dict[str, Any] = {}
    params: dict[str, Any] = {}
    scales: dict[str, float | None] = {}
    names = None
    for part in parts:
        modules |= part.modules
        params |= part.params
        scales |= dict.fromkeys(part.modules, part.latent_scale)
        names = part.class_names or names
    known = {name: scale for name, scale in scales.items() if scale is not None}
    if len(known) == 2 and not np.isclose(*known.values(), rtol=1e-3, atol=0):
        raise WeightsError(
            f"the tokenizer's latent scale is {known['tokenizer']:.6g}, but the generator was trained with "
            f"{known['generator']:.6g} ({notes}). Convert either again with the --latent_scale of the other, or give "
            "the tokenizer that the generator was trained with."
        )
    tokenizer, generator = modules.get("tokenizer"), modules.get("generator")
    if tokenizer and generator and tokenizer.embed_dim != generator.latent_dim:
        raise WeightsError(
            f"the tokenizer's latents have {tokenizer.embed_dim} channels, the generator's {generator.latent_dim} "
            f"({notes}). Give the tokenizer that the generator was trained with."
        )
    return Weights(modules, params, next(iter(known.values()), None), names, notes)


def interpolate(first: Weights, second: Weights, fraction: Any) -> Weights:
    """Returns weights between those of two files, parameter by parameter: (1 − fraction) · first + fraction · second.

    A decoder that was trained on against a discriminator has more details than the one that it began as, and artifacts
    that this one lacks; decoders between them have details without the artifacts.

    Args:
      first: the weights; its modules that the other lacks, its class names and its latent scale are kept.
      second: weights that were trained on from these, of the same architecture.
      fraction: 0 for the first, 1 for the second; values beyond extrapolate.

    Raises:
      TypeError: the fraction is no number.
      WeightsError: they have no module in common, or architectures or latent scales differ.

    Source: ESRGAN, arXiv 1809.00219, section 3.4.
    """
    fraction = Number(least=-10, most=10).check("fraction", fraction)
    common = [name for name in first.modules if name in second.modules]
    if not common:
        raise WeightsError(
            f"the first weights hold {', '.join(first.modules)}, the second {', '.join(second.modules)}: there is "
            "nothing between them. Give weights of the same module."
        )
    params = dict(first.params)
    for name in common:
        fields = [{**module_to_dict(weights.modules[name]), "dtype": None} for weights in (first, second)]
        message = f"there is nothing between {name}s of two architectures:"
        names = {"found_name": "the first", "expected_name": "the second"}
        check_equal(fields[0], fields[1], message, **names, error=WeightsError)
        params[name] = jax.tree.map(
            lambda x, y: ((1 - fraction) * np.asarray(x, np.float64) + fraction * np.asarray(y, np.float64)).astype(
                np.float32
            ),
            first.params[name],
            second.params[name],
        )
    ours, others = first.latent_scale, second.latent_scale
    if ours is not None and others is not None and not np.isclose(ours, others, rtol=1e-3, atol=0):
        raise WeightsError(
            f"the latent scales are {ours:.6g} and {others:.6g}: their latents are not the same ones. Give a "
            "tokenizer whose encoder was kept, as stage 2 does."
        )
    notes = f"{1 - fraction:g} of:\n{first.notes}\n{fraction:g} of:\n{second.notes}"
    return dataclasses.replace(first, params=params, notes=notes)
