"""Metrics on features other than the Fréchet distance: Inception Score, KID, precision and recall.

All are computed on the host in float64. The Inception Score streams; the other two compare features
pair by pair, in blocks, and accept memory-mapped arrays.

Letters: N and M images, D features, C classes.
"""

from collections.abc import Iterator

from jaxtyping import Float
import numpy as np

SHUFFLE_SEED = 2020


class InceptionScore:
    """Streaming Inception Score: exp of the mean KL divergence between p(y | x) and p(y), over splits of the images.

    An image's split follows from its position in file order, or in a shuffled order, and from the number of images, so
    two sums per split suffice.

    The order matters: if the files are sorted by class, every split holds few classes and the score is far too low.
    Shuffling is therefore the default; the score in file order is the one that tools without shuffling report for the
    same files.

    Source: Improved Techniques for Training GANs, arXiv 1606.03498, section 4.

    Example:
      >>> score = InceptionScore(num_images=4, num_splits=1)
      >>> score.update(1000 * np.eye(2)[[0, 1, 0, 1]])  # Certain, and both classes equally often.
      >>> round(score.result()[0], 6)
      2.0
    """

    def __init__(self, num_images: int, num_splits: int = 10, shuffle_seed: int | None = SHUFFLE_SEED) -> None:
        """Makes empty sums.

        Args:
          num_images: number of images that will arrive.
          num_splits: number of splits.
          shuffle_seed: seed of numpy's RandomState; None: file order.

        Raises:
          ValueError: there are fewer images than splits.
        """
        if num_images < num_splits:
            raise ValueError(
                f"an Inception Score of {num_splits} splits needs at least {num_splits} images, not {num_images}."
            )
        order = np.arange(num_images)
        if shuffle_seed is not None:
            order = np.random.RandomState(shuffle_seed).permutation(num_images)
        self._split = np.empty(num_images, np.int64)  # The split of the image at each position of the file order.
        for k in range(num_splits):
            self._split[order[k * num_images // num_splits : (k + 1) * num_images // num_splits]] = k
        self._seen = 0
        self._entropy = np.zeros(num_splits)  # Σ_images Σ_y p log p
        self._sum: np.ndarray | None = None  # Σ_images p, [splits, C]

    def update(self, logits: Float[np.ndarray, "N C"]) -> None:
        """Adds the logits of the next images (Inception's have 1008 classes and no bias).

        Raises:
          ValueError: there are more images than `num_images`.
        """
        logits = np.asarray(logits, np.float64)
        splits = self._split[self._seen : self._seen + len(logits)]
        if len(splits) < len(logits):
            raise ValueError(
                f"logits of {self._seen + len(logits)} images arrived, more than num_images={len(self._split)}; set it "
                "to the number of all images."
            )
        self._seen += len(logits)
        log_p = logits - logits.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        p = np.exp(log_p)
        if self._sum is None:
            self._sum = np.zeros((len(self._entropy), logits.shape[1]))
        np.add.at(self._sum, splits, p)
        np.add.at(self._entropy, splits, (p * log_p).sum(1))

    def result(self) -> tuple[float, float]:
        """Returns mean and standard deviation over the splits.

        Raises:
          ValueError: there were fewer images than `num_images`.
        """
        if self._seen < len(self._split) or self._sum is None:
            raise ValueError(
                f"logits of {self._seen} images arrived, fewer than num_images={len(self._split)}; add the rest first."
            )
        counts = np.bincount(self._split)
        mean_p = self._sum / counts[:, None]
        # A class whose probability underflows to 0 everywhere contributes 0.
        log_mean = np.log(np.where(mean_p > 0, mean_p, 1))
        scores = np.exp(self._entropy / counts - (mean_p * log_mean).sum(1))
        return float(scores.mean()), float(scores.std())


def kid(
    features_1: Float[np.ndarray, "..."],
    features_2: Float[np.ndarray, "..."],
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    degree: int = 3,
    seed: int = 2020,
) -> tuple[float, float]:
    """Returns mean and standard deviation of the Kernel Inception Distance over random subsets.

    The distance is the unbiased MMD² with the kernel (x·y / D + 1)^degree. Subsets are drawn with numpy's
    RandomState(seed).choice without replacement, in turn from `features_1` and `features_2`.

    Args:
      features_1: pooled features [N, D]; may be memory-mapped.
      features_2: pooled features [M, D]; may be memory-mapped.
      num_subsets: number of subsets drawn from each side.
      subset_size: images per subset.
      degree: degree of the polynomial kernel.
      seed: seed of the subsets.

    Raises:
      ValueError: the feature sizes differ, or there are fewer images than `subset_size`.

    Source: Demystifying MMD GANs, arXiv 1801.01401, section 4.

    Example:
      >>> features = np.random.default_rng(0).normal(size=(100, 4))
      >>> kid(features, features + 1, subset_size=50)[0] > 1
      True
    """
    _check_sizes(features_1, features_2)
    fewest = min(len(features_1), len(features_2))
    if subset_size > fewest or subset_size < 2:
        raise ValueError(
            f"KID subsets of {subset_size} images cannot be drawn from {len(features_1)} and {len(features_2)} "
            f"images; set a subset size of 2 … {fewest}."
        )
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(num_subsets):
        x = features_1[rng.choice(len(features_1), subset_size, replace=False)].astype(np.float64)
        y = features_2[rng.choice(len(features_2), subset_size, replace=False)].astype(np.float64)
        values.append(_mmd2(x, y, degree))
    return float(np.mean(values)), float(np.std(values))


def _mmd2(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "N D"], degree: int) -> float:
    """Returns the unbiased estimate of MMD² between equally many x and y."""
    n = len(x)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** degree

    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1))
    return float(within - 2 * kernel(x, y).mean())


def precision_recall(
    reference: Float[np.ndarray, "..."],
    generated: Float[np.ndarray, "..."],
    *,
    num_neighbors: int = 3,
    block_size: int = 2048,
) -> tuple[float, float]:
    """Returns precision and recall.

    Precision is the fraction of generated images inside the reference's manifold, recall the converse.

    A manifold is the union of closed balls around its images, each with the distance to the image's k-th nearest other
    image as its radius. Distances equal up to rounding count as equal.

    Args:
      reference: pooled features [N, D]; may be memory-mapped.
      generated: pooled features [M, D]; may be memory-mapped.
      num_neighbors: k.
      block_size: images on each side of a block of distances; block_size² · 8 bytes are held at a time.

    Returns:
      Precision and recall, each in [0, 1].

    Raises:
      ValueError: the feature sizes differ, or there are too few images for k neighbors.

    Source: Improved Precision and Recall Metric, arXiv 1904.06991, section 2.

    Example:
      >>> reference = np.array([[0.0], [1.0], [2.0], [3.0]])
      >>> precision_recall(reference, np.array([[0.5], [1.5], [9.0]]), num_neighbors=1)
      (0.6666666666666666, 1.0)
    """
    _check_sizes(reference, generated)
    if min(len(reference), len(generated)) <= num_neighbors:
        raise ValueError(
            f"the distance to {num_neighbors} nearest neighbors needs more than {num_neighbors} images on either side; "
            f"there are {len(reference)} and {len(generated)}."
        )
    # Distances do not change under a common shift; near the origin they lose fewer digits.
    shift = np.asarray(reference[:block_size], np.float64).mean(0)
    precision = _fraction_inside(generated, reference, shift, num_neighbors, block_size)
    return precision, _fraction_inside(reference, generated, shift, num_neighbors, block_size)


def _fraction_inside(
    points: Float[np.ndarray, "N D"],
    manifold: Float[np.ndarray, "M D"],
    shift: Float[np.ndarray, "D"],
    k: int,
    block: int,
) -> float:
    radii = np.concatenate(
        [_kth_neighbor(manifold[i : i + block], manifold, shift, k, block) for i in range(0, len(manifold), block)]
    )
    inside = 0
    for start in range(0, len(points), block):
        rows = points[start : start + block]
        found = np.zeros(len(rows), bool)
        for other, distances, rounding in _distances(rows, manifold, shift, block):
            found |= (distances <= radii[other] + rounding).any(1)
        inside += found.sum()
    return float(inside / len(points))


def _kth_neighbor(
    rows: Float[np.ndarray, "N D"],
    features: Float[np.ndarray, "M D"],
    shift: Float[np.ndarray, "D"],
    k: int,
    block: int,
) -> Float[np.ndarray, "N"]:
    """Returns the squared distance of each row, itself one of `features`, to the k-th nearest other one."""
    nearest = np.empty((len(rows), 0))
    for _, distances, _ in _distances(rows, features, shift, block):
        nearest = np.concatenate([nearest, distances], axis=1)
        if nearest.shape[1] > k + 1:  # The nearest is the row itself.
            nearest = np.partition(nearest, k, axis=1)[:, : k + 1]
    return nearest.max(1)


def _distances(
    rows: Float[np.ndarray, "N D"], features: Float[np.ndarray, "M D"], shift: Float[np.ndarray, "D"], block: int
) -> Iterator[tuple[slice, Float[np.ndarray, "N block"], Float[np.ndarray, "N block"]]]:
    """Yields slices of `features`, the squared distances to them, and bounds on the distances' rounding errors."""
    rows = np.asarray(rows, np.float64) - shift
    rows_squared = np.square(rows).sum(1)[:, None]
    for start in range(0, len(features), block):
        others = np.asarray(features[start : start + block], np.float64) - shift
        scale = rows_squared + np.square(others).sum(1)
        distances = np.maximum(scale - 2 * rows @ others.T, 0)
        yield slice(start, start + len(others)), distances, 1e-12 * scale


def _check_sizes(features_1: np.ndarray, features_2: np.ndarray) -> None:
    if features_1.ndim != 2 or features_2.ndim != 2 or features_1.shape[1] != features_2.shape[1]:
        raise ValueError(
            f"features of shapes {features_1.shape} and {features_2.shape} cannot be compared: expected [N, D] and "
            "[M, D] from the same network and layer."
        )
