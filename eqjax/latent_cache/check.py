"""Checks that a cache of latents was made by the tokenizer, and from the images, that a run trains on."""

from typing import Any

from absl import logging

from eqjax import pretrained
from eqjax.differences import differences
from eqjax.fingerprint import fingerprint
from eqjax.latent_cache.encode import encoder_params, latent_scale
from eqjax.latent_cache.format import CacheError, LatentSource
from eqjax.tokenizer import Tokenizer
from eqjax.typing import Config, Params

# Largest relative difference between a cache's measured scale and the scale in use that passes without a warning.
_SCALE_TOLERANCE = 0.1


def encoder_fingerprint(params: Params) -> str:
    """Returns the fingerprint of a tokenizer's encoder.

    The file is not part of it, because it changes when a generator is added; nor is the decoder, because stage 2
    of tokenizer training changes only the decoder.
    """
    encoder = encoder_params(params)
    return fingerprint(encoder)


def encoder_fields(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the fields of a tokenizer that determine its latents, as JSON values; its compute dtype does not."""
    fields = pretrained.module_to_dict(tokenizer)
    skipped = ("dtype", "semantic")
    return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items() if k not in skipped}


def check_cache(source: LatentSource, weights: pretrained.Weights, config: Config, path: str) -> None:
    """Checks that a cache fits the tokenizer and the data configuration of a run.

    A measured scale that is more than a tenth off the tokenizer's is logged as a warning.

    Args:
      source: the cache.
      weights: the tokenizer.
      config: the data configuration.
      path: the tokenizer's file, for messages.

    Raises:
      CacheError: the cache was made by another tokenizer or holds images of another size.
    """
    spec, fields = source.spec, encoder_fields(weights.modules["tokenizer"])
    ours = encoder_fingerprint(weights.params["tokenizer"])
    lines = differences(spec.encoder_fields, fields, found_name="cache", expected_name="tokenizer")
    if lines or spec.encoder_fingerprint != ours:
        detail = lines or ["  the architecture is the same, the weights are not"]
        message = (
            f"The cache {source.root} was made by another tokenizer: the fingerprint of its encoder is "
            f"{spec.encoder_fingerprint[:16]}…, that of {path} is {ours[:16]}…. Use the tokenizer that made the cache, "
            "or make a cache with this one (eqjax cache-latents)."
        )
        raise CacheError("\n".join([message, *detail]))
    size, cached = (config.height, config.width), (spec.data["height"], spec.data["width"])
    if size != cached:
        raise CacheError(
            f"data.height × data.width is {size[0]} × {size[1]}, but the cache {source.root} holds crops of "
            f"{cached[0]} × {cached[1]} pixels ({spec.shape[0]} columns). Set the size of the cache, or make another."
        )
    measured, used = source.manifest["latent_scale"], latent_scale(weights)
    if abs(measured / used - 1) > _SCALE_TOLERANCE:
        origin = "the published scale, because the file has none" if weights.latent_scale is None else "its own"
        logging.warning(
            "The latents of %s have unit scale when multiplied by %.5f; training uses %.5f of the tokenizer %s (%s).",
            *(source.root, measured, used, path, origin),
        )


def check_caches(
    train: LatentSource,
    evaluation: LatentSource,
    weights: pretrained.Weights,
    config: Config,
    path: str,
) -> None:
    """Checks the caches for training and for evaluation with `check_cache`, and that their classes agree.

    Args:
      train: the cache for training.
      evaluation: the cache for evaluation; may be the same one.
      weights: the tokenizer.
      config: the data configuration.
      path: the tokenizer's file, for messages.

    Raises:
      CacheError: a cache does not fit, or the two have different classes.
    """
    for source in [train] if evaluation.root == train.root else [train, evaluation]:
        check_cache(source, weights, config, path)
    if evaluation.class_names != train.class_names:
        differing = sorted({*evaluation.class_names} ^ {*train.class_names})[:5]
        raise CacheError(
            f"The cache {evaluation.root} has {len(evaluation.class_names)} classes and {train.root} has "
            f"{len(train.class_names)}, but they differ or are in another order (only one side has: "
            f"{', '.join(differing) or 'none'}), so labels would not agree. Make both caches from the same classes."
        )
