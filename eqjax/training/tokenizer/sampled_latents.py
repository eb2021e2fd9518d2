"""Latents of a generator's samples, whose decodings the discriminator sees beside reconstructions.

Latents that a generator draws are smoother than those of images, so a decoder that is trained on the latter alone draws
them with less detail than its reconstructions have. The discriminator of stage 2 can look at both. The encoder is
frozen then, so the generator's latents stay those of the tokenizer.

They are drawn once and kept in the workdir: a resumed run goes on with the same ones and needs no generator.
"""

from collections.abc import Callable, Iterator, Mapping
import json
import os
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax import loading, npz, sharding
from eqjax.differences import differences
from eqjax.fingerprint import fingerprint
from eqjax.pretrained import Weights, module_to_dict
from eqjax.progress import ProgressLogger
from eqjax.sampling.latents import sample_latents
from eqjax.tokenizer import Tokenizer
from eqjax.typing import Config

# The file in a workdir: "latents" [N, L, D], float32 and not scaled, and "about", JSON of `_Kept.options` and
# `_Kept.generator`.
FILE_NAME = "sampled_latents.npz"
_MAX_BYTES = 2**38
_BATCH_SIZE = 64


class _Kept(NamedTuple):
    """Samples in a workdir.

    Attributes:
      latents: the samples.
      options: what they were drawn with: all that a configuration says.
      generator: fingerprint of the generator.
    """

    latents: Float[np.ndarray, "N L D"]
    options: dict[str, Any]
    generator: str


def check_sampled(config: Config) -> None:
    """Checks that a configuration that asks for samples has what they need.

    Raises:
      ValueError: fields contradict each other; the message names all of them.
    """
    name = config.sampled.generator_weights
    if name and (problems := list(_contradictions(config))):
        raise ValueError("\n".join(f"sampled.generator_weights={name!r} {problem}" for problem in problems))


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


def load_sampled_generator(config: Config, tokenizer: Tokenizer) -> Weights:
    """Loads the generator of the samples.

    Args:
      config: a `tokenizer_config` with `sampled.generator_weights`.
      tokenizer: the module that is trained.

    Returns:
      The generator's weights alone, with their latent scale.

    Raises:
      ValueError: the file holds no generator, or one of other latents.
      FileNotFoundError: there is no such file.
    """
    path = config.sampled.generator_weights
    weights = loading.load_weights(path)
    if "generator" not in weights.modules:
        raise ValueError(f"{path} holds no generator; give sampled.generator_weights one.")
    generator = weights.modules["generator"]
    if generator.latent_dim != tokenizer.embed_dim:
        raise ValueError(
            f"the generator of {path} samples columns of {generator.latent_dim} values, and this tokenizer has "
            f"{tokenizer.embed_dim}: give sampled.generator_weights a generator of this tokenizer's latents."
        )
    params = {"generator": weights.params["generator"]}
    return Weights({"generator": generator}, params, latent_scale=weights.latent_scale)


def draw_sampled_latents(
    config: Config, tokenizer: Tokenizer, weights: Weights, check_stop: Callable[[], None]
) -> Float[np.ndarray, "N L D"]:
    """Samples the latents that a configuration asks for, of all classes alike; the same for the same seed.

    Args:
      config: a `tokenizer_config`.
      tokenizer: the module that is trained.
      weights: the generator, of `load_sampled_generator`.
      check_stop: raises an error if the run was asked to stop; called every few columns.

    Returns:
      Unscaled latents as wide as the training's images.
    """
    model: Any = jax.tree.map(jnp.asarray, loading.build_model(weights).cast(None))
    options, num_columns = config.sampled, _num_columns(config, tokenizer)
    logger, made = ProgressLogger("columns of samples", options.num_images * num_columns), []

    def progress(count: int) -> None:
        logger.update(count)
        check_stop()

    for start in range(0, options.num_images, _BATCH_SIZE):
        # All batches share a program; what the last one has too much is dropped.
        latents = sample_latents(
            model.generator,
            model.generator_params,
            np.arange(start, start + _BATCH_SIZE) % model.generator.num_classes,
            num_columns=num_columns,
            key=jax.random.fold_in(jax.random.key(config.seed), start),
            progress=progress,
            precision=config.precision,
            **options.sampling,
        )
        made.append(np.asarray(latents) / np.float32(model.latent_scale))
    return np.concatenate(made)[: options.num_images]


def obtain_sampled_latents(
    config: Config,
    tokenizer: Tokenizer,
    workdir: str,
    is_resumed: bool,
    weights: Weights | None,
    check_stop: Callable[[], None],
) -> Float[np.ndarray, "N L D"]:
    """Returns the samples that a workdir keeps, or draws them and keeps them there; all processes call it together.

    A resumed run takes those of its start, and looks at the generator only if they are lost, or if its configuration
    asks for others. A fresh run takes what an earlier start drew with the same generator and the same options. Every
    process draws or reads all samples, and process 0 writes them, whole or not at all.

    Args:
      config: a `tokenizer_config` with `sampled.generator_weights`.
      tokenizer: the module that is trained.
      workdir: folder of the run.
      is_resumed: whether the run continues a checkpoint.
      weights: the generator, of `load_sampled_generator`; None: it is loaded if it is needed.
      check_stop: as of `draw_sampled_latents`.

    Returns:
      Unscaled latents as wide as the training's images.
    """
    path, options = os.path.join(workdir, FILE_NAME), _options(config, tokenizer)
    kept, problem = _read(path)
    if is_resumed and kept is not None and kept.options == options:
        identity = kept.generator
    else:
        weights = weights or load_sampled_generator(config, tokenizer)
        identity = _identity(weights)
    if kept is not None:
        problem = _changes(kept, options, identity)
    is_usable = sharding.everywhere(not problem)
    if kept is not None and is_usable:
        latents = kept.latents
    else:
        if is_resumed:
            problem = problem or "another process cannot read them."
            logging.warning("The run draws its samples anew, and may differ from an uninterrupted one: %s", problem)
        weights = weights or load_sampled_generator(config, tokenizer)
        latents = draw_sampled_latents(config, tokenizer, weights, check_stop)
    is_written = kept is not None and is_usable and kept.options == options
    if jax.process_index() == 0 and not is_written:
        npz.write(path, {"latents": latents}, "about", {"options": options, "generator": identity})
    return latents


def _num_columns(config: Config, tokenizer: Tokenizer) -> int:
    return config.data.width // tokenizer.column_width


def _options(config: Config, tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns all that a configuration says about samples, as JSON values."""
    others = {"num_columns": _num_columns(config, tokenizer), "seed": config.seed, "precision": config.precision}
    return json.loads(json.dumps({**config.sampled.to_dict(), **others}))


def _identity(weights: Weights) -> str:
    """Returns a fingerprint of all of a generator that matters for its samples."""
    fields = {**module_to_dict(weights.modules["generator"]), "latent_scale": weights.latent_scale}
    return fingerprint(weights.params["generator"], fields)


def _changes(kept: _Kept, options: Mapping[str, Any], identity: str) -> str:
    """Returns lines with what samples in a workdir were drawn with, and what now; the generator's file may move."""
    found, expected = ({**given, "generator_weights": ""} for given in (kept.options, options))
    found["generator"], expected["generator"] = kept.generator[:16], identity[:16]
    lines = differences(found, expected, found_name="drawn with", expected_name="now")
    return "\n".join(["the old ones are not those of its configuration:", *lines]) if lines else ""


def _read(path: str) -> tuple[_Kept | None, str]:
    """Returns the samples in a file, or None and why there are none."""
    if not os.path.isfile(path):
        return None, f"{path} is missing."
    kinds = {"latents": npz.NUMBERS, "about": npz.TEXT}
    try:
        with npz.open_npz(path, kinds, max_bytes=_MAX_BYTES, what="sampled latents") as file:
            if missing := kinds.keys() - file.entries.keys():
                raise ValueError(f"{path} lacks {sorted(missing)}.")
            latents = file.read("latents")
            about, is_intact = npz.signed_values(file.read("about"), {"latents": latents})
    except ValueError as error:
        return None, str(error)
    if not is_intact:
        return None, f"{path} is damaged, as its checksum differs."
    return _Kept(latents, about["options"], about["generator"]), ""
