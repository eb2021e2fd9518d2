"""Latents of a generator's samples, whose decodings the discriminator sees beside reconstructions.

Latents that a generator draws are smoother than those of images, so a decoder that is trained on the latter alone draws
them with less detail than its reconstructions have. The discriminator of stage 2 can look at both. The encoder is
frozen then, so the generator's latents stay those of the tokenizer.
"""

from collections.abc import Iterator

import jax
from jaxtyping import Float
import numpy as np

from eqjax import loading
from eqjax.progress import ProgressLogger
from eqjax.sampling.latents import sample_latents
from eqjax.tokenizer import Tokenizer
from eqjax.typing import Config

_BATCH_SIZE = 64


def draw_sampled_latents(config: Config, tokenizer: Tokenizer) -> Float[np.ndarray, "N L D"] | None:
    """Samples the latents that a configuration asks for, of all classes alike; the same for the same seed.

    Args:
      config: a `tokenizer_config`.
      tokenizer: the module that is trained.

    Returns:
      Unscaled latents as wide as the training's images; None if the configuration asks for none.

    Raises:
      ValueError: fields contradict each other, or the generator does not fit the tokenizer.
      FileNotFoundError: the generator's file is missing.
    """
    options = config.sampled
    if not options.generator_weights:
        return None
    if problems := list(_contradictions(config)):
        raise ValueError("\n".join(f"sampled.generator_weights={options.generator_weights!r} {p}" for p in problems))
    model = loading.load_pretrained(options.generator_weights)
    if model.generator is None:
        raise ValueError(f"{options.generator_weights} holds no generator; give sampled.generator_weights one.")
    if (found := model.generator.latent_dim) != tokenizer.embed_dim:
        raise ValueError(
            f"the generator of {options.generator_weights} samples columns of {found} values, and this tokenizer has "
            f"{tokenizer.embed_dim}: give sampled.generator_weights a generator of this tokenizer's latents."
        )
    num_columns = config.data.width // tokenizer.column_width
    progress, made = ProgressLogger("columns of samples", options.num_images * num_columns), []
    for start in range(0, options.num_images, _BATCH_SIZE):
        # All batches share a program; what the last one has too much is dropped.
        latents = sample_latents(
            model.generator,
            model.generator_params,
            np.arange(start, start + _BATCH_SIZE) % model.generator.num_classes,
            num_columns=num_columns,
            key=jax.random.fold_in(jax.random.key(config.seed), start),
            progress=progress.update,
            precision=config.precision,
            **options.sampling,
        )
        made.append(np.asarray(latents) / np.float32(model.latent_scale))
    return np.concatenate(made)[: options.num_images]


def _contradictions(config: Config) -> Iterator[str]:
    """Yields what does not fit samples, as the end of a sentence."""
    if not config.freeze_encoder:
        yield (
            "needs the latents that its generator was trained on: set freeze_encoder=True and stage1_weights to its "
            "tokenizer."
        )
    if not config.objective.adversarial_weight:
        yield "shows samples to a discriminator: set objective.adversarial_weight above 0."
    if config.objective.equivariance.implicit_probability:
        yield "excludes objective.equivariance.implicit_probability, whose images have other widths: set it to 0."
