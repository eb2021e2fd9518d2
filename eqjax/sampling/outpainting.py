"""Continuing a real image, to the right, and to the left by mirroring."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from eqjax import pixels
from eqjax.model import as_floats
from eqjax.sampling.checks import check_values
from eqjax.sampling.class_schedule import ClassSchedule, parse_classes
from eqjax.sampling.sampler import sample_latents
from eqjax.tokenizer.tiling import decode_images


def fit_image(image, tokenizer):
    """Resizes a uint8 image [H, W, 3] to a tokenizer's height, and cuts its width to whole columns.

    Returns:
      uint8 [resolution, multiple of column_width, 3].

    Raises:
      ValueError: the image is narrower than a column at that height.
    """
    height, width = image.shape[:2]
    resized = max(1, round(width * tokenizer.resolution / height))
    kept = resized // tokenizer.column_width * tokenizer.column_width
    if not kept:
        raise ValueError(
            f"an image of {width} × {height} pixels is {resized} wide at a height of {tokenizer.resolution}: less "
            f"than a column of {tokenizer.column_width}."
        )
    out = Image.fromarray(np.asarray(image)).resize((resized, tokenizer.resolution), Image.Resampling.LANCZOS)
    left = (resized - kept) // 2
    return np.asarray(out)[:, left : left + kept]


def outpaint(
    model,
    image,
    label,
    *,
    right=0,
    left=0,
    resize=False,
    keep_pixels=True,
    seed=0,
    seeds=None,
    guidance_scale=1.0,
    transition=0,
    **options,
):
    """Continues an image by columns on either side.

    The image is encoded, its columns are the prefix, and what follows is decoded together with
    it; to the left, all of that is done in the mirror. What differs from column to column is counted
    from the image outwards, on both sides alike.

    Args:
      model: a `Model`.
      image: [H, W, 3], uint8 or floats in [-1, 1], H the model's height and W a multiple of the column width.
      label: class of the continuation, an integer or a name; or [(class, columns), …], the last
        columns None: to the end. The image itself counts as the first class.
      right, left: columns to add.
      resize: bring an image of another size to the model's height, and cut it to whole columns.
      keep_pixels: show the image itself between its continuations; over one column at a border
        with a continuation it goes softly into its reconstruction, so that no edge shows. Otherwise its
        reconstruction.
      seed: an integer; the left side takes the next one.
      seeds: integers [B] instead: B images, image i as with seeds[i] alone.
      guidance_scale: g, over columns as `eqjax.sample_latents` has it, the image's own included; or
        one for each added column, [max(left, right)], of which the shorter side takes the first.
      transition: columns over which a class goes softly into the next.
      options: as `eqjax.sample_latents`: guidance_schedule, num_flow_steps, solver, time_grid,
        temperature, max_position, mesh, progress.

    Returns:
      uint8 [H, W + (left + right) · column_width, 3], with seeds [B, …].

    Raises:
      ValueError: an image of another height or a width between columns, or of other values; nothing
        to add; as `eqjax.sample_latents`.
    """
    tokenizer, generator = model.require("tokenizer"), model.require("generator")
    if left < 0 or right < 0 or left + right == 0:
        raise ValueError(f"left={left} and right={right} columns: neither may be negative, and one must be positive.")
    picture = _floats(image, tokenizer, resize)
    names, class_columns = parse_classes(label) if isinstance(label, list | tuple) else ([label], (None,))
    ClassSchedule(class_columns, transition).check_length(max(left, right))
    rows = np.atleast_1d(seed if seeds is None else seeds)
    labels = jnp.tile(model.labels(names), (len(rows), 1))
    scale = _guidance(guidance_scale, max(left, right))
    check_values(generator, labels, None, scale, options.get("temperature", 1.0), options.get("max_position"))

    def extended(picture, columns, seeds):
        prefix = jnp.repeat(model.encode(picture[None]), len(seeds), axis=0)
        given = prefix.shape[1]
        # The first class begins with the image; guidance of its columns is not read.
        first, *rest = class_columns
        latents = sample_latents(
            generator,
            model.generator_params,
            labels,
            num_columns=given + columns,
            class_columns=(first if first is None else given + first, *rest),
            transition=transition,
            guidance_scale=np.pad(scale[:columns], (given, 0), mode="edge") if scale.ndim else scale,
            key=jax.vmap(jax.random.key)(seeds),
            prefix=prefix,
            **options,
        )
        return np.asarray(decode_images(tokenizer, model.tokenizer_params, latents / model.latent_scale))

    # The left side is drawn in the mirror.
    to_left = extended(picture[:, ::-1], left, rows + 1)[:, :, ::-1] if left else None
    to_right = extended(picture, right, rows) if right else None
    joined = _join(picture, to_left, to_right, len(rows), tokenizer.column_width, keep_pixels)
    out = np.asarray(pixels.to_uint8(joined))
    return out[0] if seeds is None else out


def _guidance(scale, columns):
    """A number, or one for each added column, as an array.

    Raises:
      ValueError: another shape.
    """
    scale = np.asarray(scale, np.float32)
    if scale.ndim and scale.shape != (columns,):
        raise ValueError(
            f"guidance_scale has shape {scale.shape}; expected a number, or one for each column from the image "
            f"outwards, [{columns}]."
        )
    return scale


def _join(picture, to_left, to_right, batch, fade, keep_pixels):
    """The image [H, W, 3] between its continuations, each [B, H, w, 3] with the image's reconstruction, or None.

    Returns:
      floats [B, H, W + columns added, 3]; over `fade` pixels the image goes into its reconstructions.
    """
    width = picture.shape[1]
    position = (np.arange(width) + 0.5)[:, None]
    before, after, inner = [], [], []  # Inner: the reconstruction of a side, and the distance to its border.
    if to_left is not None:
        added = to_left.shape[2] - width
        before = [to_left[:, :, :added]]
        inner.append((to_left[:, :, added:], position))
    if to_right is not None:
        after = [to_right[:, :, width:]]
        inner.append((to_right[:, :, :width], width - position))
    if keep_pixels:
        middle = np.broadcast_to(picture, (batch, *picture.shape))
        for rebuilt, distance in inner:
            share = np.clip(distance / fade, 0, 1)
            middle = share * middle + (1 - share) * rebuilt
    else:
        share = position / width if len(inner) == 2 else 0
        middle = (1 - share) * inner[0][0] + share * inner[-1][0]
    return np.concatenate([*before, middle, *after], axis=2)


def _floats(image, tokenizer, resize):
    """The image as a tokenizer takes it, float32 [H, W, 3] in [-1, 1].

    Raises:
      ValueError: it does not fit; the message says what would.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"the image has shape {image.shape}; expected [height, width, 3]: convert it to RGB, as "
            'Image.open(path).convert("RGB") does.'
        )
    picture = np.asarray(as_floats(image))
    if not np.all(np.abs(picture) <= 1):
        raise ValueError(
            f"the image has {image.dtype} values from {image.min():g} to {image.max():g}; expected uint8, or floats "
            "in [-1, 1]."
        )
    if resize:
        fitted = fit_image(image if image.dtype == np.uint8 else np.asarray(pixels.to_uint8(picture)), tokenizer)
        picture = np.asarray(as_floats(fitted))
    try:
        tokenizer.check_images((1, *picture.shape))
    except ValueError as error:
        raise ValueError(f"{error} resize=True (--resize) does it.") from error
    return picture
