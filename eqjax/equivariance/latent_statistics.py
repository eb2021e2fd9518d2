"""What latents are like for a generator: their intrinsic dimension, and how well a line predicts the next column.

Both fall when latents carry less information too: read them beside the PSNR of reconstructions.

Letters: M points, B images, N columns, D latent size.
"""

from typing import Any

import numpy as np

from eqjax.rules import Array, Integer, Number

# Part of the largest ratios of distances that the fit of the dimension leaves out, as in the publication.
_DISCARDED = 0.1
_CHUNK = 1024


def twonn_dimension(points: Any) -> float:
    """Returns the intrinsic dimension of points, by the ratio of the distances to their two nearest neighbors.

    The ratio μ has the distribution F(μ) = 1 − μ^(−d) where the density is locally constant; d is the slope of
    −log(1 − F) over log μ, through the origin.

    Args:
      points: [M, D], at least 10 of them; every column of every image is a point.

    Raises:
      TypeError: the points are no array of floats.
      ValueError: there are too few different points.

    Source: E. Facco et al., Estimating the intrinsic dimension of datasets by a minimal neighborhood information,
    Scientific Reports 7, 2017; EQ-VAE, arXiv 2502.09509, uses it in section 4.

    Example:
      >>> plane = np.random.default_rng(0).normal(size=(2000, 2)) @ np.ones((2, 10)).cumsum(1) ** [[1], [2]]
      >>> round(twonn_dimension(plane), 1)
      2.0
    """
    points = np.unique(np.asarray(Array(("points", "channels")).check("points", points), np.float64), axis=0)
    if len(points) < 10:
        raise ValueError(f"the intrinsic dimension needs at least 10 different points; there are {len(points)}.")
    squares, nearest = np.square(points).sum(1), []
    for start in range(0, len(points), _CHUNK):
        rows = points[start : start + _CHUNK]
        distances = squares[start : start + _CHUNK, None] + squares - 2 * rows @ points.T
        distances[np.arange(len(rows)), np.arange(start, start + len(rows))] = np.inf
        nearest.append(np.partition(distances, 1, axis=1)[:, :2])
    first, second = np.sqrt(np.maximum(np.concatenate(nearest), 1e-30)).T
    kept = np.sort(np.log(second / first))[: int(len(points) * (1 - _DISCARDED))]
    empirical = np.arange(1, len(kept) + 1) / len(points)
    return float(-np.log(1 - empirical) @ kept / (kept @ kept))


def next_column_error(latents: Any, window: Any = 3, ridge: Any = 1e-2) -> float:
    """Returns the fraction of the variance of a column that a linear map of the columns before it leaves unexplained.

    A cheap proxy for how hard a generator's task is. Ridge regression is fitted on the first half of the images and
    measured on the second.

    Args:
      latents: [B, N, D], at least two images.
      window: columns that predict the next one.
      ridge: weight of the penalty, relative to the mean variance of the predictors.

    Raises:
      TypeError: an argument is of another type.
      ValueError: there are too few images or columns, or the ridge is not positive.

    Example:
      >>> steps = np.arange(6.0)[None, :, None] * np.random.default_rng(0).normal(size=(40, 1, 3))
      >>> round(next_column_error(steps, ridge=1e-6), 3)  # Straight lines are predicted from two columns.
      0.0
    """
    latents = np.asarray(Array(("images", "columns", "channels")).check("latents", latents), np.float64)
    window, ridge = Integer(least=1).check("window", window), Number(above=0).check("ridge", ridge)
    count, columns = latents.shape[:2]
    if count < 2 or columns <= window:
        raise ValueError(
            f"latents are {count} images of {columns} columns; predicting a column from window={window} needs at "
            f"least 2 images of {window + 1} columns."
        )
    windows = np.lib.stride_tricks.sliding_window_view(latents, window + 1, axis=1)  # [B, N − window, D, window + 1]

    def rows(images: Any) -> tuple[np.ndarray, np.ndarray]:
        part = windows[images]
        known = np.moveaxis(part[..., :-1], -1, -2)
        return known.reshape(-1, window * latents.shape[2]), part[..., -1].reshape(-1, latents.shape[2])

    (known, target), (held_known, held_target) = rows(slice(None, count // 2)), rows(slice(count // 2, None))
    means = known.mean(0), target.mean(0)
    known, target = known - means[0], target - means[1]
    penalty = ridge * np.square(known).mean() * len(known)
    weights = np.linalg.solve(known.T @ known + penalty * np.eye(known.shape[1]), known.T @ target)
    residual = held_target - means[1] - (held_known - means[0]) @ weights
    spread = np.square(held_target - held_target.mean(0)).sum()
    return float(np.square(residual).sum() / spread) if spread > 0 else float("nan")


def gaussian_flow_loss(latents: Any) -> float:
    """Returns the flow loss of the best model that knows only mean and covariance of single columns.

    A scale for the losses of generators: these depend on how spread out and how correlated the channels of latents
    are, which says nothing about how well a generator knows what follows what. Below 1 in units of this loss, it knows
    more than the covariance. For a Gaussian with the eigenvalues λ of its covariance the expected squared error of the
    velocity at time t is λ / (t² + (1 − t)² λ), and its mean over uniform times π / 2 · √λ. So this is π / 2 times the
    mean of √λ, and a proxy for the entropy of a column: that of the Gaussian is the mean of log √λ, per channel, up
    to a constant.

    Args:
      latents: scaled latents [B, N, D], at least two columns in all.

    Raises:
      TypeError: it is no array of floats.
      ValueError: it has another shape, or fewer than two columns.

    Source: the conditional variance of Gaussians under the loss of rectified flow, arXiv 2209.03003, equation 1.

    Example:
      >>> latents = 2 * np.random.default_rng(0).normal(size=(500, 8, 4))
      >>> round(gaussian_flow_loss(latents) / np.pi, 2)
      1.0
    """
    latents = np.asarray(Array(("images", "columns", "channels")).check("latents", latents), np.float64)
    columns = latents.reshape(-1, latents.shape[2])
    if len(columns) < 2:
        raise ValueError(f"latents of shape {latents.shape} hold {len(columns)} columns; a covariance needs 2 or more.")
    eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.cov(columns, rowvar=False)))
    return float(np.pi / 2 * np.sqrt(np.maximum(eigenvalues, 0)).mean())
