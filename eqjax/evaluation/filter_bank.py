"""A fixed feature space without a network: colors and oriented differences at several scales.

It serves small sets of images and machines without downloaded weights. Distances in it are not comparable with FID.

Letters: N images, H height, W width, F features.

Source: A Parametric Texture Model Based on Joint Statistics of Complex Wavelet Coefficients (Portilla and Simoncelli,
2000), sections 2 and 3, for the kinds of statistics.
"""

from jaxtyping import Float, Shaped, UInt8
import numpy as np

from eqjax.typing import AnyArray

_SCALES = 4
_ROWS = 4  # Images are not the same at their top and at their bottom, but are the same everywhere along the width.
# Luma, and two differences of colors.
_OPPONENT = np.array([[1 / 3, 1 / 3, 1 / 3], [0.5, -0.5, 0.0], [0.25, 0.25, -0.5]])
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))


def filter_features(images: Shaped[AnyArray, "..."]) -> Float[np.ndarray, "N F"]:
    """Returns features of every image: means of colors in four bands of rows, and sizes of differences.

    Differences are between neighbors in four directions, at the scales 1, 2, 4 and 8 pixels; their root mean square
    and mean are taken over the image, for luma per half of the image, and logarithms of both.

    Args:
      images: uint8 [N, H, W, 3], at least 32 × 32 pixels.

    Raises:
      ValueError: the images are smaller, or not uint8 [N, H, W, 3].

    Example:
      >>> filter_features(np.zeros((2, 32, 48, 3), np.uint8)).shape
      (2, 111)
    """
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < 32 or images.dtype != np.uint8:
        raise ValueError(
            f"filter features need uint8 images [N, H ≥ 32, W ≥ 32, 3]; these are {images.dtype} {list(images.shape)}."
        )
    return np.stack([_image_features(image) for image in np.asarray(images)])


def _image_features(image: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "F"]:
    x = image.astype(np.float64) / 127.5 - 1
    x = x @ _OPPONENT.T
    features = [band.mean((0, 1)) for band in np.array_split(x, _ROWS)]
    features.append(x.std((0, 1)))
    for scale in range(_SCALES):
        for down, right in _DIRECTIONS:
            height, width = x.shape[0] - down, x.shape[1] - abs(right)
            left = max(0, -right)
            moved = x[down : down + height, left + right : left + right + width]
            difference = np.abs(moved - x[:height, left : left + width])
            for half in np.array_split(difference[..., 0], 2):
                features.append(_log_sizes(half))
            features.append(_log_sizes(difference[..., 1:]))
        if scale + 1 < _SCALES:
            x = x[: x.shape[0] // 2 * 2, : x.shape[1] // 2 * 2]
            x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, 3).mean((1, 3))
    return np.concatenate([np.ravel(feature) for feature in features])


def _log_sizes(difference: Float[np.ndarray, "*size"]) -> Float[np.ndarray, "2"]:
    # Differences of less than half a gray level are rounding.
    return np.log([np.sqrt(np.square(difference).mean()) + 0.004, difference.mean() + 0.004])
