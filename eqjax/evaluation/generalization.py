"""How models of a comparison do on what they were not trained on: held-out images, longer ones, and their samples.

Losses of different tokenizers have different units. So each is divided by that of the best model which knows only the
covariance of the same latents (`gaussian_flow_loss`): an entropy proxy, and 1 for a generator that has learned nothing.

Letters: N images, H height, W width in pixels, L columns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Float, UInt8
import numpy as np

from eqjax import pixels
from eqjax.equivariance.geometry import Codec
from eqjax.equivariance.groups import Group
from eqjax.equivariance.latent_statistics import gaussian_flow_loss, next_column_error
from eqjax.equivariance.orbits import measure_orbit
from eqjax.evaluation import tasks
from eqjax.evaluation.analysis import Measures
from eqjax.evaluation.image_metrics import psnr
from eqjax.evaluation.quality import LabeledImages, QualityReference
from eqjax.generator import Generator
from eqjax.typing import AnyArray, Params

# Images in [-1, 1] to their reconstructions.
Reconstruct = Callable[[Any], Any]

# Images whose orbits are measured.
_ORBIT_IMAGES = 32


def shifted_reconstruction_error(
    reconstruct: Reconstruct, images: Float[AnyArray, "N H W 3"], shift: int, width: int, margin: int
) -> float:
    """Returns how much reconstructions change if the crop moves.

    Two crops of the same image, one `shift` pixels further right, are reconstructed and compared where they overlap.
    It needs no action on latents, so it serves any pair of encoder and decoder.

    Args:
      reconstruct: encodes and decodes images in [-1, 1].
      images: at least `width` + `shift` pixels wide, in [-1, 1].
      shift: pixels.
      width: width of the crops in pixels.
      margin: pixels that are left out at the borders of both crops.

    Returns:
      Root mean square difference over the deviation of reconstructions from their mean.

    Raises:
      ValueError: the images are too narrow, or nothing is left.

    Example:
      >>> import jax.numpy as jnp
      >>> images = np.random.default_rng(0).uniform(-1, 1, (2, 4, 24, 3))
      >>> flat = lambda x: np.repeat(x.reshape(2, 4, -1, 4, 3).mean(3), 4, axis=2)  # The mean color of 4 pixels.
      >>> [round(shifted_reconstruction_error(flat, images, s, 16, 4), 1) for s in (0, 2, 4)]
      [0.0, 1.0, 0.0]
    """
    if images.shape[2] < width + shift or width <= shift + 2 * margin:
        raise ValueError(
            f"a shift of {shift} pixels of crops {width} wide with a margin of {margin} needs crops wider than "
            f"{shift + 2 * margin} and images of {width + shift} pixels; the images are {images.shape[2]} pixels wide."
        )
    before = np.asarray(reconstruct(images[:, :, :width]), np.float64)[:, :, shift + margin : width - margin]
    after = np.asarray(reconstruct(images[:, :, shift : shift + width]), np.float64)
    after = after[:, :, margin : width - margin - shift]
    spread = np.square(before - before.mean((1, 2, 3), keepdims=True)).mean()
    return float(np.sqrt(np.square(after - before).mean() / max(spread, 1e-20)))


def reconstruction_measures(
    reconstruct: Reconstruct, images: UInt8[AnyArray, "N H W 3"], stride: int, columns: int
) -> Measures:
    """Returns PSNR and shift errors of the reconstructions of held-out images as JSON values.

    Args:
      reconstruct: encodes and decodes images in [-1, 1].
      images: uint8, a column wider than `columns`.
      stride: width of a column in pixels.
      columns: width of the crops in columns.
    """
    floats, width = np.asarray(pixels.from_uint8(images)), columns * stride
    crops = floats[:, :, :width]
    errors = {s: shifted_reconstruction_error(reconstruct, floats, s, width, stride) for s in range(1, stride + 1)}
    return {
        "psnr_held_out": float(np.mean(psnr(crops, np.asarray(reconstruct(crops), np.float32)))),
        "moved_reconstruction": list(errors.values()),
        "moved_reconstruction_column": errors[stride],
        "moved_reconstruction_within": float(np.mean([errors[s] for s in range(1, stride)])),
    }


def orbit_measures(codec: Codec, images: UInt8[AnyArray, "N H W 3"], groups: Mapping[str, Group]) -> Measures:
    """Returns the mean error of the encoder along the orbits of groups as JSON values.

    Args:
      codec: the codec.
      images: uint8 images.
      groups: groups by name.
    """
    floats = np.asarray(pixels.from_uint8(images[:_ORBIT_IMAGES]))
    return {f"orbit_{name}": measure_orbit(codec, floats, group).summary().encoder for name, group in groups.items()}


def latent_measures(batches: Sequence[tasks.LatentBatch]) -> Measures:
    """Returns statistics of latents as JSON values: their entropy proxy, and how well a line predicts a column.

    Args:
      batches: scaled latents and labels.
    """
    latents = np.concatenate([np.asarray(latents) for latents, _ in batches])
    return {"gaussian_flow_loss": gaussian_flow_loss(latents), "next_column": next_column_error(latents)}


def loss_measures(
    generator: Generator,
    params: Params,
    held_out: Sequence[tasks.LatentBatch],
    long: Sequence[tuple[Any, Any]],  # Of another length.
    first_inner: int,
) -> Measures:
    """Returns losses of a generator on held-out columns, on long images and at far indices as JSON values.

    Args:
      generator: the module.
      params: its parameters.
      held_out: scaled latents and labels of held-out images of L columns.
      long: those of images of 2 · L columns.
      first_inner: first column with a full window.

    Returns:
      "held_out_ratio": loss on held-out images over `gaussian_flow_loss` of their latents; "length_ratio": loss on the
      second L columns of long images, over that on the first L from `first_inner` on; "far_ratio": loss on held-out
      images whose indices are 16 · L further on, over that where they are.
    """
    key = jax.random.key(0)
    columns = held_out[0][0].shape[1]
    here = tasks.column_losses(generator, params, held_out, key).mean
    far = tasks.column_losses(generator, params, held_out, key, rope_shift=16 * columns).mean
    along = tasks.column_losses(generator, params, long, key).mean
    scale = latent_measures(held_out)["gaussian_flow_loss"]
    return {
        "held_out_loss": here.tolist(),
        "held_out_ratio": float(here.mean() / scale),
        "held_out_ratio_inner": float(here[first_inner:].mean() / scale),
        "far_ratio": float(far.mean() / here.mean()),
        "length_ratio": float(along[columns:].mean() / along[first_inner:columns].mean()),
    }


def transfer_measures(
    generator: Generator, params: Params, batches: Sequence[tasks.LatentBatch], trained: Sequence[float], half: int
) -> Measures:
    """Returns the losses of a generator that was trained on the left half of the columns alone, as JSON values.

    Args:
      generator: the module.
      params: its parameters.
      batches: scaled latents and labels.
      trained: losses of all columns after training on all of them.
      half: number of columns that were trained.

    Returns:
      "transfer": loss on the other columns over that after training on all; "transfer_trained": the same on the left.
    """
    found = tasks.column_losses(generator, params, batches, jax.random.key(0))
    return {
        "transfer_loss": found.mean.tolist(),
        "transfer_loss_stderr": found.stderr.tolist(),
        "transfer": float(found.mean[half:].mean() / np.mean(trained[half:])),
        "transfer_trained": float(found.mean[:half].mean() / np.mean(trained[:half])),
    }


def image_set_measures(reference: QualityReference, found: Mapping[str, LabeledImages]) -> Measures:
    """Returns the Fréchet distance of sets of images to real ones, and how many are recognized, as JSON values.

    Args:
      reference: the real images.
      found: sets of images of the same size, by name.
    """
    measures = {name: reference.measure(images) for name, images in found.items()}
    distances = {f"frechet_{name}": quality.frechet for name, quality in measures.items()}
    return distances | {f"recognized_{name}": float(quality.mean("recognized")) for name, quality in measures.items()}
