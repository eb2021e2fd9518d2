"""Continuing a real picture, to the right, and to the left by mirroring."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from eqjax import pixels
from eqjax.sampling.autoregressive import sample_latents
from eqjax.tokenizer.pieces import decode_images


def fit_photograph(image, tokenizer):
    """Resizes a uint8 picture [H, W, 3] to a tokenizer's height, and cuts its width to whole columns.

    Returns:
      uint8 [resolution, multiple of column_width, 3].

    Raises:
      ValueError: the picture is narrower than a column at that height.
    """
    height, width = image.shape[:2]
    resized = max(1, round(width * tokenizer.resolution / height))
    kept = resized // tokenizer.column_width * tokenizer.column_width
    if not kept:
        raise ValueError(
            f"a picture of {width} × {height} pixels is {resized} wide at a height of {tokenizer.resolution}: less "
            f"than a column of {tokenizer.column_width}."
        )
    out = Image.fromarray(np.asarray(image)).resize((resized, tokenizer.resolution), Image.Resampling.LANCZOS)
    left = (resized - kept) // 2
    return np.asarray(out)[:, left : left + kept]


def continue_photograph(model, image, label, *, right=0, left=0, resize=False, keep_pixels=True, seed=0, **options):
    """Continues a picture by columns on either side.

    The picture is encoded, its columns are the prefix, and what follows is decoded together with
    it; to the left, all of that is done in the mirror.

    Args:
      model: a `Model`.
      image: uint8 [H, W, 3], H the model's height and W a multiple of the column width.
      label: class of the continuation, an integer or a name.
      right, left: columns to add.
      resize: bring a picture of another size to the model's height, and cut it to whole columns.
      keep_pixels: show the picture itself between its continuations; over one column at a border
        with a continuation it goes softly into its reconstruction, so that no edge shows. Otherwise its
        reconstruction.
      seed: an integer.
      options: as `eqjax.sample_latents`, but for prefix, key and noise.

    Returns:
      uint8 [H, W + (left + right) · column_width, 3].

    Raises:
      ValueError: a picture of another height or a width between columns; nothing to add.
    """
    tokenizer = model.need("tokenizer")
    if left < 0 or right < 0 or left + right == 0:
        raise ValueError(f"left={left} and right={right} columns: neither may be negative, and one must be positive.")
    image = np.asarray(image)
    if resize and image.ndim == 3:
        image = fit_photograph(image, tokenizer)
    shape = (1, *image.shape)
    try:
        tokenizer.check_images(shape)
    except ValueError as error:
        raise ValueError(f"{error} resize=True (--resize) does it.") from error

    def extended(picture, columns, seed):
        picture = np.asarray(picture, np.float32) / 127.5 - 1
        prefix = model.encode(picture[None])
        if columns:
            prefix = _continue(model, prefix, label, columns, seed, options)
        decoded = decode_images(tokenizer, model.tokenizer_params, prefix / model.latent_scale)
        return np.asarray(decoded[0])

    width, pad = image.shape[1], tokenizer.column_width
    to_right = extended(image, right, seed)
    to_left = extended(image[:, ::-1], left, seed + 1)[:, ::-1]
    inner_left, inner_right = to_left[:, left * pad :], to_right[:, :width]
    position = (np.arange(width) + 0.5)[:, None]
    if keep_pixels:
        middle = np.asarray(image, np.float32) / 127.5 - 1
        for n, inner, distance in ((left, inner_left, position), (right, inner_right, width - position)):
            share = np.clip(distance / pad, 0, 1) if n else 1.0
            middle = share * middle + (1 - share) * inner
    else:
        share = position / width
        middle = (
            (1 - share) * inner_left + share * inner_right if left and right else inner_left if left else inner_right
        )
    whole = np.concatenate([to_left[:, : left * pad], middle, to_right[:, width:]], axis=1)
    return np.asarray(pixels.to_uint8(whole))


def _continue(model, prefix, label, columns, seed, options):
    """Latents of the prefix [1, P, D] and of `columns` more."""
    return sample_latents(
        model.need("generator"),
        model.generator_params,
        model.labels(label),
        num_columns=prefix.shape[1] + columns,
        key=jax.vmap(jax.random.key)(jnp.asarray([seed])),
        prefix=prefix,
        **options,
    )
