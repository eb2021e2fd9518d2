"""Outpainting: real images are continued to the right, and to the left by mirroring.

Letters: B images, H height, W width of the given image, w width of one side, P prefix columns.
"""

import dataclasses
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image

from eqjax import pixels
from eqjax.image_files import MAX_PIXELS
from eqjax.model import Model, as_floats
from eqjax.rules import Array, Boolean, Instance, Integer
from eqjax.sampling import memory
from eqjax.sampling.checks import SEED, as_seeds, check_labels
from eqjax.sampling.class_schedule import TRANSITION, ClassSchedule, parse_classes
from eqjax.sampling.latents import sample_latents
from eqjax.sampling.options import SamplingKeywords, SamplingOptions
from eqjax.tokenizer import Tokenizer
from eqjax.tokenizer.windows import decode_columns
from eqjax.typing import AnyArray


def fit_image(image: UInt8[AnyArray, "H W 3"], tokenizer: Tokenizer) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an image to a tokenizer's height, and crops its width to whole columns.

    Args:
      image: an image of any size.
      tokenizer: the tokenizer.

    Returns:
      An image of the height `resolution` and a multiple of `column_width` wide.

    Raises:
      ValueError: the image is narrower than a column at that height, or enormously wide.
    """
    height, width = image.shape[:2]
    resized_width = max(1, round(width * tokenizer.resolution / height))
    kept = resized_width // tokenizer.column_width * tokenizer.column_width
    if not kept:
        raise ValueError(
            f"an image of {width} × {height} pixels is {resized_width} wide at a height of {tokenizer.resolution}: "
            f"less than a column of {tokenizer.column_width}."
        )
    if resized_width * tokenizer.resolution > MAX_PIXELS:
        raise ValueError(
            f"an image of {width} × {height} pixels would be {resized_width} wide at a height of "
            f"{tokenizer.resolution}, more than {MAX_PIXELS} pixels: cut out the part to continue."
        )
    size = resized_width, tokenizer.resolution
    resized = Image.fromarray(np.asarray(image)).resize(size, Image.Resampling.LANCZOS)
    left = (resized_width - kept) // 2
    return np.asarray(resized)[:, left : left + kept]


def fade_at_right(
    image: Float[np.ndarray, "*B H W 3"], reconstruction: Float[np.ndarray, "*B H W 3"], fade_width: int
) -> Float[np.ndarray, "*B H W 3"]:
    """Fades an image into its reconstruction toward its right border, at which it is continued.

    Args:
      image: the image.
      reconstruction: the same image as the tokenizer decodes it together with the continuation.
      fade_width: pixels over which it fades.

    Returns:
      The faded image, whose last pixel is nearly the reconstruction's.

    Example:
      >>> fade_at_right(np.ones((1, 4, 3)), np.zeros((1, 4, 3)), 2)[0, :, 0].tolist()
      [1.0, 1.0, 0.75, 0.25]
    """
    width = image.shape[-2]
    weight = np.clip((width - (np.arange(width) + 0.5)[:, None]) / fade_width, 0, 1)
    return weight * image + (1 - weight) * reconstruction


def outpaint(
    model: Any,
    image: Any,
    label: Any,
    *,
    right: Any = 0,
    left: Any = 0,
    resize: Any = False,
    keep_pixels: Any = True,
    seed: Any = 0,
    seeds: Any = None,
    transition: Any = 0,
    mesh: Any = None,
    progress: Any = None,
    **options: Unpack[SamplingKeywords],
) -> UInt8[np.ndarray, "*B H W 3"]:
    """Continues an image by columns on either side.

    The columns of the encoded image are the prefix of a sample, which is decoded as a whole; the left side is
    sampled in the mirror. Class schedules and guidance scales are counted from the image outwards, on both sides alike.

    Args:
      model: a `Model` with tokenizer and generator.
      image: [H, W, 3], uint8 or floats in [-1, 1], of the model's height and a multiple of the column width wide.
      label: class of the continuation, an integer or a name; or [(class, columns), …], None for the last number of
        columns: to the end. The image itself belongs to the first class.
      right: columns to add on the right.
      left: columns to add on the left.
      resize: resizes an image of another size to the model's height, and crops it to whole columns.
      keep_pixels: keeps the pixels of the image, which fade into its reconstruction over one column next to a
        continuation, so that no edge shows. Otherwise the reconstruction is returned.
      seed: an integer; the left side uses seed + 1.
      seeds: integers [B] instead, for B images; image i is that of seeds[i] alone.
      transition: columns over which one class blends into the next.
      mesh: a mesh of `eqjax.sharding.make_mesh`, along whose data axes the batch is sharded.
      progress: called with the number of columns sampled since its last call, see `eqjax.sample_latents`.
      **options: fields of `SamplingOptions`, with its defaults: guidance_scale (1.0), guidance_schedule ("linear"),
        num_flow_steps (100), solver ("euler"), time_grid ("uniform"), temperature (1.0), max_position (None),
        modulation_times (None), parallel_steps (None), parallel_tolerance (0.0001),
        gpu_kernels ("auto").
        The columns of a "linear" scale include those of the image. Scales per column are given for the added
        columns, [max(left, right)]; the shorter side uses the first ones.

    Returns:
      The image, uint8 [H, W + (left + right) · column_width, 3], or [B, …] with `seeds`.

    Raises:
      ValueError: the image has another height, a width that is not a multiple of the column width, or values out of
        range; no columns are added; or an argument is out of its range.
      TypeError: an argument is of another type, or unknown.
      MemoryError: the images do not fit into memory.

    Example:
      >>> import eqjax
      >>> model = eqjax.load_pretrained("photos")
      >>> image = model.sample("flower", num_columns=8, num_flow_steps=2)[0]
      >>> outpaint(model, image, "flower", right=4, num_flow_steps=2).shape
      (128, 192, 3)
    """
    Instance(Model, "a model, as eqjax.load_pretrained returns it").check("model", model)
    tokenizer, generator = model.require("tokenizer"), model.require("generator")
    left, right = (Integer(least=0).check(name, value) for name, value in (("left", left), ("right", right)))
    resize, keep_pixels = Boolean().check("resize", resize), Boolean().check("keep_pixels", keep_pixels)
    if left + right == 0:
        raise ValueError("left=0 and right=0 columns: one must be positive.")
    sampling_options = SamplingOptions(**options)
    pixel_values = Array(None, kind="number").check("image", image)
    floats = to_floats(np.asarray(pixel_values), tokenizer, resize)
    names, class_columns = parse_classes(label if isinstance(label, list | tuple) else [(label, None)])
    transition = TRANSITION.check("transition", transition)
    ClassSchedule(class_columns, transition).check_length(max(left, right))
    row_seeds = np.asarray([SEED.check("seed", seed)] if seeds is None else as_seeds(seeds))
    labels = jnp.tile(model.labels(names), (len(row_seeds), 1))
    check_labels(generator, labels)
    _check_scales(sampling_options.guidance_scale, max(left, right))
    added = floats.shape[1] // tokenizer.column_width + max(left, right)
    memory.check_images(tokenizer, len(row_seeds), added)

    continuation = _Continuation(model, labels, class_columns, transition, sampling_options, mesh, progress)
    # The left side is sampled in the mirror.
    with model.with_precision():
        to_left = continuation(floats[:, ::-1], left, row_seeds + 1)[:, :, ::-1] if left else None
        to_right = continuation(floats, right, row_seeds) if right else None
    joined = _join(floats, to_left, to_right, len(row_seeds), tokenizer.column_width, keep_pixels)
    out = np.asarray(pixels.to_uint8(joined))
    return out[0] if seeds is None else out


@dataclasses.dataclass(frozen=True)
class _Continuation:
    """Continues images to the right.

    Attributes:
      model: the model.
      labels: classes along the columns, from the image on, [B, S].
      class_columns: columns of each of these classes.
      transition: columns over which one class blends into the next.
      options: how columns are sampled; its scales per column are those of added columns.
      mesh, progress: as of `sample_latents`.
    """

    model: Model
    labels: AnyArray
    class_columns: tuple[int | None, ...]
    transition: int
    options: SamplingOptions
    mesh: Any
    progress: Any

    def __call__(
        self, image: Float[np.ndarray, "H W 3"], columns: int, seeds: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, "B H w 3"]:
        """Returns the reconstructed image and its continuation by columns; call in `Model.with_precision`."""
        model, tokenizer = self.model, self.model.require("tokenizer")
        prefix = np.repeat(np.asarray(model.encode(image[None])), len(seeds), axis=0)
        given = prefix.shape[1]
        # The first class begins with the image.
        first, *rest = self.class_columns
        latents = sample_latents(
            model.require("generator"),
            model.generator_params,
            self.labels,
            num_columns=given + columns,
            class_columns=(first if first is None else given + first, *rest),
            transition=self.transition,
            key=jax.vmap(jax.random.key)(seeds),
            prefix=prefix,
            mesh=self.mesh,
            progress=self.progress,
            precision=model.precision,
            **_pad_scales(self.options, given, columns).to_dict(),
        )
        images = decode_columns(tokenizer, model.tokenizer_params, latents, scale=model.latent_scale, to_uint8=False)
        return np.asarray(images)


def _check_scales(scale: Any, columns: int) -> None:
    """Checks that a guidance scale is a number, or one for every added column.

    Raises:
      ValueError: there are scales for another number of columns.
    """
    if isinstance(scale, tuple) and len(scale) != columns:
        raise ValueError(
            f"guidance_scale has shape ({len(scale)},); expected a number, or one for each column from the image "
            f"outwards, [{columns}]."
        )


def _pad_scales(options: SamplingOptions, given: int, columns: int) -> SamplingOptions:
    """Returns options whose scales per column begin with `given` columns of the image, at which they are not used."""
    scales = options.guidance_scale
    if not isinstance(scales, tuple):
        return options
    return dataclasses.replace(options, guidance_scale=(*scales[:1] * given, *scales[:columns]))


def _join(
    image: Float[np.ndarray, "H W 3"],
    to_left: Float[np.ndarray, "B H w 3"] | None,
    to_right: Float[np.ndarray, "B H v 3"] | None,
    batch_size: int,
    fade_width: int,
    keep_pixels: bool,
) -> Float[np.ndarray, "B H u 3"]:
    """Places an image between its continuations.

    Args:
      image: the given image.
      to_left: continuation to the left, which ends with a reconstruction of the image.
      to_right: continuation to the right, which begins with a reconstruction of the image.
      batch_size: B.
      fade_width: pixels over which the image fades into its reconstruction next to a continuation.
      keep_pixels: returns the image itself, not a reconstruction.
    """
    width, before, after, rebuilt = image.shape[1], [], [], []
    center = np.broadcast_to(image, (batch_size, *image.shape))
    if to_left is not None:
        added = to_left.shape[2] - width
        before, mirrored = [to_left[:, :, :added]], to_left[:, :, added:][:, :, ::-1]
        rebuilt.append(to_left[:, :, added:])
        center = fade_at_right(center[:, :, ::-1], mirrored, fade_width)[:, :, ::-1]
    if to_right is not None:
        after = [to_right[:, :, width:]]
        rebuilt.append(to_right[:, :, :width])
        center = fade_at_right(center, rebuilt[-1], fade_width)
    if not keep_pixels:
        weight = (np.arange(width) + 0.5)[:, None] / width if len(rebuilt) == 2 else 0
        center = (1 - weight) * rebuilt[0] + weight * rebuilt[-1]
    return np.concatenate([*before, center, *after], axis=2)


def to_floats(image: np.ndarray, tokenizer: Tokenizer, resize: bool) -> Float[np.ndarray, "H W 3"]:
    """Returns an image as floats in [-1, 1] of a size that fits a tokenizer.

    Args:
      image: [H, W, 3], uint8 or floats in [-1, 1].
      tokenizer: the tokenizer.
      resize: resizes an image of another size, and crops it to whole columns.

    Raises:
      ValueError: the image does not fit; the message names what is expected.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"the image has shape {image.shape}; expected [height, width, 3]: convert it to RGB, as "
            'Image.open(path).convert("RGB") does.'
        )
    floats = np.asarray(as_floats(image, "image"))
    if resize:
        fitted = fit_image(image if image.dtype == np.uint8 else np.asarray(pixels.to_uint8(floats)), tokenizer)
        floats = np.asarray(as_floats(fitted))
    try:
        tokenizer.check_images((1, *floats.shape))
    except ValueError as error:
        raise ValueError(f"{error} resize=True (--resize) does so.") from error
    return floats
