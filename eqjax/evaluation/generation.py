"""Generates the images that a generator is evaluated by, and compares them with a reference.

Image i has class i mod num_classes and noise that follows from (seed, i) alone, so it is the same in every
batch, on any number of devices, and in a longer run. Images are written in order, batch after batch, to a
`SampleFolder`; an interrupted run resumes after its last shard.

Letters: B batch.
"""

from collections.abc import Callable
import dataclasses
import os
import shutil
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from eqjax import pixels, sharding
from eqjax.evaluation import batch_size
from eqjax.evaluation.features import Extractor
from eqjax.evaluation.parallel import BatchedShardMap
from eqjax.evaluation.protocol import device_entries, model_entries, weights_id
from eqjax.evaluation.results import Result
from eqjax.evaluation.sample_folder import SampleFolder
from eqjax.evaluation.statistics import Statistics, check_comparable, compare
from eqjax.generator import gpu_kernels
from eqjax.model import Model
from eqjax.progress import ProgressLogger, announced
from eqjax.sampling.latents import sample_latents
from eqjax.sampling.options import SamplingOptions
from eqjax.tokenizer.tiling import decode_images
from eqjax.typing import AnyArray, Tree


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions(SamplingOptions):
    """Everything that determines the images of a set besides the weights.

    Attributes:
      num_columns: width of the images in columns.
      seed: seed of all noise.

    Raises:
      ValueError: an option is out of its range.

    Example:
      >>> options = GenerationOptions(num_columns=16, guidance_scale=2.0)
      >>> options.to_dict()["guidance_scale"], options.seed
      (2.0, 0)
    """

    num_columns: int
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_columns < 1:
            raise ValueError(f"num_columns={self.num_columns} must be ≥ 1.")
        if isinstance(self.guidance_scale, tuple):
            self.guidance_scales(self.num_columns)  # Raises unless there is one per column.


def generate(
    model: Model,
    options: GenerationOptions,
    num_images: int,
    folder: str | os.PathLike[str],
    *,
    mesh: Mesh | None = None,
    per_device_batch_size: int | None = None,
) -> SampleFolder:
    """Generates images 0 … num_images − 1 in a folder, except those that exist already.

    Args:
      model: a model with tokenizer and generator.
      options: everything that determines the images besides the weights.
      num_images: number of images N. Unless it is a multiple of the number of classes, the first N mod num_classes
        classes get one image more.
      folder: folder of this set of images, on a file system that all processes see.
      mesh: devices to use; None: all.
      per_device_batch_size: images that each device generates at a time; None: as its memory allows.

    Returns:
      The folder with its images.

    Raises:
      ValueError: `num_images` is below 1, the model lacks the tokenizer or the generator, or the folder holds images
        of another protocol.
      FloatingPointError: images have values that are not finite; the message names them.

    Example:
      >>> options = GenerationOptions(num_columns=4, guidance_scale=2.0)
      >>> model = eqjax.load_pretrained("photos")  # doctest: +SKIP
      >>> samples = generate(model, options, 64, "samples")  # doctest: +SKIP
      >>> samples.write_png()  # doctest: +SKIP
    """
    if num_images < 1:
        raise ValueError(f"num_images={num_images} must be at least 1.")
    model.require("tokenizer")
    num_classes = model.require("generator").num_classes
    if num_images % num_classes:
        logging.warning(
            "%d images do not divide by %d classes: classes 0 … %d get %d each, the others %d.",
            num_images,
            num_classes,
            num_images % num_classes - 1,
            num_images // num_classes + 1,
            num_images // num_classes,
        )
    samples = SampleFolder(folder, num_images, num_classes)
    samples.check_protocol({**options.to_dict(), **model_entries(model)})
    done = min(samples.num_available(), num_images)
    if done == num_images:
        logging.info("%s holds all %d images already.", folder, num_images)
        return samples
    # Seed and guidance scale are arguments of the compiled program, so a sweep compiles once.
    params = model, jax.random.key_data(jax.random.key(options.seed)), np.asarray(options.guidance_scale, np.float32)
    mesh = mesh or sharding.make_mesh()
    if per_device_batch_size is None:
        needed = batch_size.decoder_bytes(model.require("tokenizer"), options.num_columns)
        needed += batch_size.sampler_bytes(model.require("generator"), options.num_columns)
        per_device_batch_size = batch_size.by_memory(needed, mesh, num_images=num_images)
    kernels = _agree_on_kernels(model, options, mesh, per_device_batch_size)
    sample = BatchedShardMap(_make_sample(options, kernels), params, mesh, per_device_batch_size)
    if done:
        logging.info("%s holds images 0 … %d; resuming after them.", folder, done - 1)
    progress = ProgressLogger("images", num_images, done)
    for first in range(done, num_images, sample.batch_size):
        indices = np.arange(first, min(first + sample.batch_size, num_images))
        images, finite = sample(indices.astype(np.uint32), samples.labels[indices])
        if not finite.all():
            raise FloatingPointError(
                f"images {indices[~finite].tolist()} have values that are not finite; nothing of this batch was "
                "written. Check the weights, and try a lower guidance scale."
            )
        samples.write(first, images)
        progress.update(len(indices))
    return samples


def _agree_on_kernels(
    model: Model, options: GenerationOptions, mesh: Mesh, per_device_batch_size: int
) -> gpu_kernels.Choice | None:
    """Returns the kernels that all processes of a mesh take; None: it is one process, which decides while it traces."""
    if not sharding.spans_processes(mesh):
        return None
    generator, rows = model.require("generator"), per_device_batch_size * (2 if options.is_guided else 1)
    choice = gpu_kernels.check(options.shortcuts().gpu_kernels, generator, mesh=mesh)
    with model.with_precision():
        return gpu_kernels.agree(choice, generator, rows, mesh)


def _make_sample(options: GenerationOptions, kernels: gpu_kernels.Choice | None) -> Callable[..., Tree]:
    """Returns the function for `BatchedShardMap`.

    It maps (model, a key's data, guidance scale), indices and labels to uint8 images and whether each was finite.

    Args:
      options: the options.
      kernels: those of `_agree_on_kernels`.
    """
    keywords = options.to_dict()
    del keywords["seed"], keywords["guidance_scale"]

    def sample(
        params: tuple[Model, jax.Array, jax.Array], indices: jax.Array, labels: jax.Array
    ) -> tuple[AnyArray, jax.Array]:
        model, key_data, scale = params
        tokenizer, generator = model.require("tokenizer"), model.require("generator")
        guidance_scale: Any = scale if options.is_guided else 1.0  # A traced scale counts as guidance.
        key = jax.random.wrap_key_data(key_data)
        shape = options.num_columns, generator.latent_dim
        noise = jax.vmap(lambda index: jax.random.normal(jax.random.fold_in(key, index), shape, jnp.float32))(indices)
        with model.with_precision(), gpu_kernels.as_agreed(kernels):
            latents = sample_latents(
                generator,
                model.generator_params,
                labels,
                noise=noise,
                guidance_scale=guidance_scale,
                precision=model.precision,
                **keywords,
            )
            images = decode_images(tokenizer, model.tokenizer_params, latents / model.latent_scale)
        return pixels.to_uint8(images), jnp.isfinite(images).all(axis=(1, 2, 3))

    return sample


class GenerationEvaluator:
    """Generates images under one protocol and measures them; everything is checked when it is made.

    Attributes:
      options: everything that determines the images besides the weights.
      num_images: number of images.

    Example:
      >>> evaluator = GenerationEvaluator(  # doctest: +SKIP
      ...     model,
      ...     GenerationOptions(num_columns=16),
      ...     50_000,
      ...     extractor=Extractor(networks.inception()),
      ...     reference=statistics.load("reference.npz"),
      ... )
      >>> evaluator.evaluate(model, "samples")["metrics"]["fid"]  # doctest: +SKIP
      2.3
    """

    def __init__(
        self,
        model: Model,
        options: GenerationOptions,
        num_images: int,
        *,
        extractor: Extractor | None = None,
        reference: Statistics | None = None,
        reference_name: str = "",
        mesh: Mesh | None = None,
        per_device_batch_size: int | None = None,
        write_png: bool = False,
        write_npz: bool = False,
        num_stored_features: int = 0,
    ) -> None:
        """Checks model, options and reference before anything is written or compiled.

        Args:
          model: a model with the modules of those to evaluate; its arrays may be jax.ShapeDtypeStruct.
          options: everything that determines the images besides the weights.
          num_images: number of images.
          extractor: computes the features of the metrics; None: images only.
          reference: statistics of the reference images; None: the Inception Score only.
          reference_name: name of the reference in the protocol.
          mesh: devices to use; None: all.
          per_device_batch_size: images that each device generates at a time; None: as its memory allows.
          write_png: whether to write every image as PNG.
          write_npz: whether to write samples.npz.
          num_stored_features: number of images whose features KID, precision and recall compare, if the reference
            stored features too.

        Raises:
          ValueError: the model lacks the tokenizer or the generator, or `num_images` is too small.
          StatisticsError: the reference has another protocol.
        """
        tokenizer = model.require("tokenizer")
        model.require("generator")
        if num_images < 1:
            raise ValueError(f"num_images={num_images} must be at least 1.")
        self.options, self.num_images = options, num_images
        self._extractor, self._reference, self._reference_name = extractor, reference, reference_name
        self._mesh, self._per_device_batch_size = mesh, per_device_batch_size
        self._write_png, self._write_npz = write_png, write_npz
        self._image_size = tokenizer.resolution, options.num_columns * tokenizer.column_width
        if extractor is not None and num_images < 2:
            raise ValueError(f"num_images={num_images}: a covariance, and so FID, needs at least 2.")
        if extractor is not None and reference is not None:
            network = extractor.network
            check_comparable(reference, network.protocol_for(self._image_size), network.sizes(self._image_size))
        comparable = reference is not None and reference.features is not None
        self._num_stored_features = num_stored_features if comparable else 0
        if extractor is not None and reference is not None and num_stored_features and not comparable:
            logging.info(
                "No KID, precision and recall: %s holds no features, as ADM's files do not. `eqjax make-statistics` "
                "writes them, from the images.",
                reference_name or "the reference",
            )

    def evaluate(self, model: Model, folder: str | os.PathLike[str]) -> Result:
        """Generates the images, or resumes generating them, and measures them.

        Args:
          model: the model.
          folder: folder of the images, on a file system that all processes see.

        Returns:
          "metrics", by name, and "protocol", everything that determines them.

        Raises:
          ValueError: the folder holds images of another protocol.
          FloatingPointError: images have values that are not finite.
        """
        protocol = self._protocol(model)
        samples = generate(
            model,
            self.options,
            self.num_images,
            folder,
            mesh=self._mesh,
            per_device_batch_size=self._per_device_batch_size,
        )
        if self._write_png:
            with announced("Writing the images as PNG", patience=2.0):
                samples.write_png()
        if self._write_npz:
            with announced("Writing the images as npz", patience=2.0):
                logging.info("Wrote %s", samples.write_npz())
        metrics: dict[str, float] = {}
        if self._extractor is not None:
            found = self._extractor.collect(
                samples.batches(), self.num_images, num_stored_features=self._num_stored_features, folder=folder
            )
            metrics = found.scores
            if self._reference is not None:
                with announced("Computing FID and the other metrics", patience=2.0):
                    metrics = compare(self._reference, found.statistics) | metrics
        return {"metrics": metrics, "protocol": protocol}

    def evaluate_step(self, step: int, model: Model, *, workdir: str | os.PathLike[str]) -> dict[str, float]:
        """Returns the metrics of a model in training; its images are removed afterwards.

        Args:
          step: training step, for the name of the folder.
          model: the model at this step.
          workdir: workdir of the training run; images are in `workdir`/evaluation meanwhile.
        """
        # A run killed here returns to this step after its restart. With the same weights it resumes in this folder; on
        # a device that is not reproducible bit for bit the weights differ, and it starts over in another folder.
        parent = os.path.join(workdir, "evaluation")
        metrics = self.evaluate(model, os.path.join(parent, f"{int(step):08d}_{weights_id(model)[:8]}"))["metrics"]
        if jax.process_index() == 0:
            shutil.rmtree(parent)
        return metrics

    def _protocol(self, model: Model) -> dict[str, Any]:
        protocol = {
            **model_entries(model),
            "count": self.num_images,
            **self.options.to_dict(),
            "image_size": list(self._image_size),
            **device_entries(),
        }
        if self._extractor is not None:
            protocol |= self._extractor.network.protocol_for(self._image_size)
            if self._reference is not None:
                protocol |= {"reference": self._reference_name, "reference_count": self._reference.count}
        return protocol
