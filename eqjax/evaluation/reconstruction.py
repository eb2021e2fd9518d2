"""How much of an image a tokenizer keeps: PSNR, SSIM, LPIPS, and the FID of reconstructions (rFID).

Images are encoded to the posterior's mean, decoded, and rounded to 8 bits before anything is measured.
"""

import jax
import jax.numpy as jnp
import numpy as np

from eqjax import pixels, sharding
from eqjax.evaluation import statistics
from eqjax.evaluation.parallel import BatchedShardMap, ProgressLogger
from eqjax.tokenizer.tiling import decode_images, encode_images

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03


def ssim(images, reconstructions):
    """Structural similarity per image, for images in [-1, 1]: [B, H, W, 3] → [B].

    Gaussian window of 11 pixels and σ 1.5, each channel by itself, averaged over all places where the
    window lies inside the image.

    Raises:
      ValueError: images smaller than the window.

    Source: Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004),
    section III.
    """
    if min(images.shape[1:3]) < _WINDOW:
        raise ValueError(f"SSIM needs images of at least {_WINDOW} × {_WINDOW} pixels, not {images.shape[1:3]}.")
    offsets = jnp.arange(_WINDOW) - _WINDOW // 2
    weights = jnp.exp(-0.5 * jnp.square(offsets / _SIGMA))
    weights /= weights.sum()

    def blur(x):  # Rows, then columns, where the window fits.
        for axis in (1, 2):
            length = x.shape[axis] - _WINDOW + 1
            parts = [w * jax.lax.slice_in_dim(x, i, i + length, axis=axis) for i, w in enumerate(weights)]
            x = sum(parts)
        return x

    x, y = images, jnp.clip(reconstructions, -1, 1)
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * 2) ** 2, (_K2 * 2) ** 2  # The range of values is 2.
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return jnp.mean(numerator / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)), axis=(1, 2, 3))


def evaluate_reconstruction(
    model, images, *, extractor=None, lpips=None, reference=None, mesh=None, rows_per_device=16, keep=0
):
    """Reconstructs a set of images and measures what was lost.

    Args:
      model: an `eqjax.Model` with a tokenizer.
      images: an `ImageSet` whose size the tokenizer takes.
      extractor: a `features.Extractor`, for rFID; None: without.
      lpips: (params, traced function (params, images, reconstructions) → [B]) for images in [-1, 1]; None:
        without.
      reference: `statistics.Statistics` that reconstructions are compared with; None: those of `images`
        themselves, computed here.
      mesh: None: all devices.
      rows_per_device: images that a device takes at a time.
      keep: as in `Extractor.collect`.

    Returns:
      {"count", "psnr", "ssim", "lpips", "rfid", "rsfid"}: means over images; only what was asked for.

    Raises:
      ValueError: no tokenizer, or images that do not fit it; statistics of another protocol.
    """
    model.require("tokenizer")
    extra = None if lpips is None else lpips[0]
    measure = BatchedShardMap(
        _measure(None if lpips is None else lpips[1]),
        (model, extra),
        mesh or sharding.make_mesh(),
        rows_per_device,
    )
    values, countdown = [], ProgressLogger("reconstructions", images.count)

    def reconstructions():
        for batch in images.batches():
            for start in range(0, len(batch), measure.batch_size):
                rows = batch[start : start + measure.batch_size]
                out, scores = measure(rows)
                values.append(scores)
                countdown.update(len(rows))
                yield out

    result = {"count": images.count}
    if extractor is None:
        for _ in reconstructions():
            pass
    else:
        if reference is None:
            reference = extractor.collect(images.batches(), images.count, keep=keep).statistics
        size = next(iter(images.batches())).shape[1:3]
        network = extractor.network
        statistics.check_comparable(reference, network.protocol_for(size), network.sizes(size))
        found = extractor.collect(reconstructions(), images.count, what="features of reconstructions")
        result |= {f"r{name}": value for name, value in statistics.compare(reference, found.statistics).items()}
    for name in values[0]:
        result[name] = float(np.mean(np.concatenate([scores[name] for scores in values]), dtype=np.float64))
    return result


def _measure(lpips):
    """The traced function of `BatchedShardMap`: uint8 images → (uint8 reconstructions, {name: [b]})."""

    def measure(params, images):
        model, lpips_params = params
        images = pixels.from_uint8(images)
        latents = encode_images(model.tokenizer, model.tokenizer_params, images)
        rounded = pixels.to_uint8(decode_images(model.tokenizer, model.tokenizer_params, latents))
        out = pixels.from_uint8(rounded)
        scores = {"psnr": pixels.psnr(images, out), "ssim": ssim(images, out)}
        if lpips is not None:
            scores["lpips"] = lpips(lpips_params, images, out)
        return rounded, scores

    return measure
