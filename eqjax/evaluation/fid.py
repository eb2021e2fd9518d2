"""The Fréchet distance between Gaussians, and streaming means and covariances in float64.

    d² = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½

The last trace is the sum of the square roots of the eigenvalues of Σ₁ Σ₂, which are also those of the
symmetric Rᵀ Σ₂ R with R Rᵀ = Σ₁: real and, up to rounding, nonnegative.

Source: GANs Trained by a Two Time-Scale Update Rule, arXiv 1706.08500, section 4 (FID); Generating
Images with Sparse Representations, arXiv 2103.03841, section 5.1 (sFID: the same on spatial features).

Letters: N images, D features.
"""

import os

from absl import logging
from jaxtyping import Float
import numpy as np


class Moments:
    """Mean and covariance of features that arrive in batches, in two float64 arrays whatever the number of images.

    Attributes:
      count: number of feature vectors seen so far.

    Example:
      >>> moments = Moments(2)
      >>> moments.update(np.array([[0.0, 1.0], [2.0, 1.0]]))
      >>> mean, covariance = moments.result()
      >>> mean.tolist(), covariance.tolist()
      ([1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """

    def __init__(self, size: int) -> None:
        """Makes empty sums for feature vectors of `size` entries."""
        self.count = 0
        self._sum = np.zeros(size)
        self._scatter = np.zeros((size, size))
        self._shift: np.ndarray | None = None

    def update(self, features: np.ndarray) -> None:
        """Adds features [N, size] of any float dtype.

        Raises:
          ValueError: the features have another size, or are not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self._sum):
            raise ValueError(f"features have shape {features.shape}; expected [N, {len(self._sum)}].")
        if not np.isfinite(features).all():
            raise ValueError(f"features of {int((~np.isfinite(features)).any(1).sum())} images are not finite.")
        if not len(features):
            return
        if self._shift is None:
            # Near the mean: sums of squares about it lose no digits when the mean is large.
            self._shift = features.mean(0)
        features = features - self._shift
        self.count += len(features)
        self._sum += features.sum(0)
        self._scatter += features.T @ features

    def result(self) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D D"]]:
        """Returns the mean and the unbiased covariance, float64.

        Raises:
          ValueError: fewer than two feature vectors were added.
        """
        if self.count < 2 or self._shift is None:
            raise ValueError(
                f"a covariance needs at least 2 images, but there are {self.count}: add images with update()."
            )
        mean = self._sum / self.count
        covariance = (self._scatter - self.count * np.outer(mean, mean)) / (self.count - 1)
        return mean + self._shift, covariance


def warn_if_few(count: int, size: int, name: str | os.PathLike[str]) -> None:
    """Logs a warning if `count` images are too few for a covariance of `size` features to have full rank.

    Args:
      count: number of images.
      size: number of features.
      name: name of the set of images, with which the message begins.
    """
    if count <= size:
        logging.warning(
            "%s: %d images give a covariance of rank %d at most, for %d features: the distance is biased upwards. "
            "Use more than %d images (50 000 to compare with published values).",
            name,
            count,
            max(count - 1, 0),
            size,
            size,
        )


def frechet_distance(
    mean_1: Float[np.ndarray, "..."],
    covariance_1: Float[np.ndarray, "..."],
    mean_2: Float[np.ndarray, "..."],
    covariance_2: Float[np.ndarray, "..."],
) -> float:
    """Returns the squared Fréchet distance between two Gaussians; of pooled Inception features it is FID.

    Computed in float64.

    Args:
      mean_1: mean of the first Gaussian, [D].
      covariance_1: its covariance, symmetric [D, D].
      mean_2: mean of the second Gaussian, [D].
      covariance_2: its covariance, symmetric [D, D].

    Raises:
      ValueError: the sizes differ, or values are not finite.

    Example:
      >>> frechet_distance(np.zeros(2), np.eye(2), np.array([3.0, 4.0]), np.eye(2))
      25.0
    """
    if mean_1.shape != mean_2.shape or covariance_1.shape != covariance_2.shape:
        raise ValueError(
            f"statistics of {mean_1.size} and of {mean_2.size} features cannot be compared: "
            "they come from different networks or layers."
        )
    arrays = [np.asarray(array, np.float64) for array in (mean_1, covariance_1, mean_2, covariance_2)]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("means or covariances are not finite; were there NaNs among the images?")
    mean_1, covariance_1, mean_2, covariance_2 = arrays
    root = _square_root(covariance_1)
    eigenvalues = np.linalg.eigvalsh(root.T @ covariance_2 @ root)
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    difference = mean_1 - mean_2
    return float(difference @ difference + np.trace(covariance_1) + np.trace(covariance_2) - 2 * cross)


def _square_root(matrix: Float[np.ndarray, "D D"]) -> Float[np.ndarray, "D rank"]:
    """Returns R with R Rᵀ = `matrix`, a covariance, with as many columns as the covariance has rank.

    Eigenvalues within rounding of zero (by the bound of np.linalg.matrix_rank) have no column: the square roots of
    such eigenvalues, of size 1e-16, would add errors of 1e-8.
    """
    values, vectors = np.linalg.eigh(matrix)
    positive = values > len(values) * np.finfo(np.float64).eps * values.max(initial=0)
    return vectors[:, positive] * np.sqrt(values[positive])
