"""Reconstruction metrics of a tokenizer: PSNR, SSIM, LPIPS, and the FID of reconstructions (rFID).

Images are encoded to the posterior's mean, decoded, and rounded to 8 bits before anything is measured.

Letters: B batch, H height, W width.
"""

from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh
import numpy as np

from eqjax import pixels, sharding
from eqjax.evaluation import batch_size
from eqjax.evaluation.features import Extractor, rebatch
from eqjax.evaluation.image_metrics import psnr, ssim
from eqjax.evaluation.image_sets import ImageSet
from eqjax.evaluation.networks import PerceptualDistance
from eqjax.evaluation.parallel import BatchedShardMap
from eqjax.evaluation.statistics import Statistics, check_comparable, compare
from eqjax.model import Model
from eqjax.progress import ProgressLogger, announced
from eqjax.tokenizer.tiling import decode_images, encode_images
from eqjax.typing import AnyArray, Tree


def evaluate_reconstruction(
    model: Model,
    images: ImageSet,
    *,
    extractor: Extractor | None = None,
    lpips: PerceptualDistance | None = None,
    reference: Statistics | None = None,
    mesh: Mesh | None = None,
    per_device_batch_size: int | None = None,
) -> dict[str, float]:
    """Reconstructs a set of images and measures the loss of quality.

    Args:
      model: a model with a tokenizer.
      images: images of a size that the tokenizer accepts.
      extractor: computes the features of rFID and rsFID; None: without them.
      lpips: perceptual distance, such as `networks.lpips()`; None: without it.
      reference: statistics to compare reconstructions with; None: those of `images`, computed here.
      mesh: devices to use; None: all.
      per_device_batch_size: images that each device processes at a time; None: as its memory allows.

    Returns:
      Means over the images: "psnr", "ssim", and if requested "lpips", "rfid" and "rsfid".

    Raises:
      ValueError: the model has no tokenizer, or the images do not fit it.
      StatisticsError: the reference has another protocol.

    Example:
      >>> images = image_sets.from_path("images")  # doctest: +SKIP
      >>> evaluate_reconstruction(eqjax.load_pretrained("photos"), images)  # doctest: +SKIP
      {'psnr': 27.8, 'ssim': 0.85}
    """
    tokenizer, mesh = model.require("tokenizer"), mesh or sharding.make_mesh()
    if per_device_batch_size is None:
        columns = -(-next(iter(images.batches())).shape[2] // tokenizer.column_width)
        # LPIPS takes as much again, for two images at half the channels.
        needed = batch_size.decoder_bytes(tokenizer, columns) * (1 if lpips is None else 2)
        per_device_batch_size = batch_size.by_memory(needed, mesh, num_images=images.count)
    measure = BatchedShardMap(
        _make_measure(None if lpips is None else lpips.apply),
        (model, None if lpips is None else lpips.params),
        mesh,
        per_device_batch_size,
    )
    scores: list[dict[str, np.ndarray]] = []
    progress = ProgressLogger("reconstructions", images.count)

    def reconstructions() -> Iterator[np.ndarray]:
        for rows in rebatch(images.batches(), measure.batch_size):
            rounded, found = measure(rows)
            scores.append(found)
            progress.update(len(rows))
            yield rounded

    result: dict[str, float] = {}
    if extractor is None:
        for _ in reconstructions():
            pass
    else:
        if reference is None:
            reference = extractor.collect(images.batches(), images.count).statistics
        size = next(iter(images.batches())).shape[1:3]
        check_comparable(reference, extractor.network.protocol_for(size), extractor.network.sizes(size))
        found = extractor.collect(reconstructions(), images.count, name="features of reconstructions")
        with announced("Computing FID and the other metrics", patience=2.0):
            result = {f"r{name}": value for name, value in compare(reference, found.statistics).items()}
    means = {name: np.concatenate([batch[name] for batch in scores]).mean(dtype=np.float64) for name in scores[0]}
    return result | {name: float(mean) for name, mean in means.items()}


def _make_measure(lpips: Callable[[Tree, jax.Array, jax.Array], jax.Array] | None) -> Callable[..., Tree]:
    """Returns the function for `BatchedShardMap`: uint8 images → (uint8 reconstructions, {metric: values [B]})."""

    def measure(params: tuple[Model, Tree], images: jax.Array) -> tuple[AnyArray, dict[str, jax.Array]]:
        model, lpips_params = params
        tokenizer = model.require("tokenizer")
        images = pixels.from_uint8(images)
        with model.with_precision():
            latents = encode_images(tokenizer, model.tokenizer_params, images)
            rounded = pixels.to_uint8(decode_images(tokenizer, model.tokenizer_params, latents))
        out = pixels.from_uint8(rounded)
        scores = {"psnr": psnr(images, out), "ssim": ssim(images, out)}
        if lpips is not None:
            scores["lpips"] = lpips(lpips_params, images, out)
        return rounded, scores

    return measure
