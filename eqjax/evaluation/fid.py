"""The Fréchet distance between Gaussians, and streaming means and covariances in float64.

    d² = |μ₁ − μ₂|² + tr Σ₁ + tr Σ₂ − 2 tr (Σ₁ Σ₂)^½

The last trace is the sum of the square roots of the eigenvalues of Σ₁ Σ₂, which are those of the
symmetric Σ₁^½ Σ₂ Σ₁^½: real and, up to rounding, not negative.

Source: GANs Trained by a Two Time-Scale Update Rule, arXiv 1706.08500, section 4 (FID); Generating
Images with Sparse Representations, arXiv 2103.03841, section 5.1 (sFID: the same on spatial features).
"""

from absl import logging
import numpy as np


class Moments:
    """Mean and covariance of features that arrive in batches: two float64 arrays, whatever their number.

    Attributes:
      count: features taken in so far.
    """

    def __init__(self, size):
        """Args: size, of a feature vector."""
        self.count = 0
        self._sum = np.zeros(size)
        self._scatter = np.zeros((size, size))
        self._shift = None

    def update(self, features):
        """Takes in features [N, size] of any float dtype.

        Raises:
          ValueError: another size, or features that are not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self._sum):
            raise ValueError(f"features have shape {features.shape}; these moments take [N, {len(self._sum)}].")
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

    def result(self):
        """Mean [size] and unbiased covariance [size, size], float64.

        Raises:
          ValueError: fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, there are {self.count}.")
        mean = self._sum / self.count
        covariance = (self._scatter - self.count * np.outer(mean, mean)) / (self.count - 1)
        return mean + self._shift, covariance


def warn_if_few(count, size, name):
    """Logs a warning where `count` images cannot give a covariance of `size` features full rank."""
    if count <= size:
        logging.warning(
            "%s: %d images give a covariance of rank %d at most, for %d features: the distance is biased upwards. "
            "Use more than %d images (50 000 to compare with published numbers).",
            name,
            count,
            max(count - 1, 0),
            size,
            size,
        )


def frechet_distance(mean_1, covariance_1, mean_2, covariance_2):
    """The squared Fréchet distance between two Gaussians: FID, when they are those of pooled features.

    Args:
      mean_1, mean_2: [D].
      covariance_1, covariance_2: [D, D], symmetric.

    Returns:
      A Python float, computed in float64.

    Raises:
      ValueError: sizes that differ, or values that are not finite.
    """
    arrays = [np.asarray(array, np.float64) for array in (mean_1, covariance_1, mean_2, covariance_2)]
    if arrays[0].shape != arrays[2].shape or arrays[1].shape != arrays[3].shape:
        raise ValueError(
            f"statistics of {arrays[0].size} and of {arrays[2].size} features cannot be compared: "
            "they come from different networks or layers."
        )
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError("means or covariances are not finite; were there NaNs among the images?")
    mean_1, covariance_1, mean_2, covariance_2 = arrays
    root = _square_root(covariance_1)
    eigenvalues = np.linalg.eigvalsh(root @ covariance_2 @ root)
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    difference = mean_1 - mean_2
    return float(difference @ difference + np.trace(covariance_1) + np.trace(covariance_2) - 2 * cross)


def _square_root(matrix):
    """The symmetric root of a covariance; eigenvalues that rounding made negative count as 0."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
