"""Metrics on features other than the Fréchet distance: Inception Score, KID, precision and recall.

All are computed on the host in float64. The Inception Score streams; the other two compare features
pair by pair, in blocks, and read them from arrays that may lie on disk.
"""

import numpy as np

SHUFFLE_SEED = 2020


class InceptionScore:
    """exp of the mean KL divergence between p(y | x) and p(y), over parts of the images; streams.

    Images belong to `splits` parts by their position, in file order or in a shuffled order. Which part an
    image belongs to is known from the number of images alone, so per part two sums are kept.

    File order matters: where images are sorted by class, every part holds few classes and the score is
    far too low. Shuffled is therefore the default; the score in file order is what tools that do not
    shuffle report on the same files.

    Source: Improved Techniques for Training GANs, arXiv 1606.03498, section 4.
    """

    def __init__(self, num_images, splits=10, shuffle_seed=SHUFFLE_SEED):
        """Makes the empty sums.

        Args:
          num_images: how many will arrive.
          splits: parts.
          shuffle_seed: of numpy's RandomState; None: file order.

        Raises:
          ValueError: fewer images than parts.
        """
        if num_images < splits:
            raise ValueError(f"an Inception Score of {splits} parts needs at least {splits} images, not {num_images}.")
        order = np.arange(num_images)
        if shuffle_seed is not None:
            order = np.random.RandomState(shuffle_seed).permutation(num_images)
        self._part = np.empty(num_images, np.int64)  # Of the image at each position of the file order.
        for k in range(splits):
            self._part[order[k * num_images // splits : (k + 1) * num_images // splits]] = k
        self._seen = 0
        self._entropy = np.zeros(splits)  # Σ_images Σ_y p log p
        self._sum = None  # Σ_images p, [splits, classes]

    def update(self, logits):
        """Takes in the next images' logits [N, classes] (of Inception: 1008, without bias)."""
        logits = np.asarray(logits, np.float64)
        parts = self._part[self._seen : self._seen + len(logits)]
        if len(parts) < len(logits):
            raise ValueError(f"more logits arrived than the {len(self._part)} images announced.")
        self._seen += len(logits)
        log_p = logits - logits.max(1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
        p = np.exp(log_p)
        if self._sum is None:
            self._sum = np.zeros((len(self._entropy), logits.shape[1]))
        np.add.at(self._sum, parts, p)
        np.add.at(self._entropy, parts, (p * log_p).sum(1))

    def result(self):
        """(mean, standard deviation) over the parts.

        Raises:
          ValueError: not all images have arrived.
        """
        if self._seen < len(self._part):
            raise ValueError(f"logits of {self._seen} images arrived, {len(self._part)} were announced.")
        counts = np.bincount(self._part)
        mean_p = self._sum / counts[:, None]
        # A class whose probability underflows to 0 everywhere contributes 0.
        log_mean = np.log(np.where(mean_p > 0, mean_p, 1))
        scores = np.exp(self._entropy / counts - (mean_p * log_mean).sum(1))
        return float(scores.mean()), float(scores.std())


def kid(features_1, features_2, *, subsets=100, subset_size=1000, degree=3, seed=2020):
    """Kernel Inception Distance: unbiased MMD² with the kernel (x·y / D + 1)^degree, over random subsets.

    Subsets are drawn as numpy's RandomState(seed).choice without replacement, first from `features_1`,
    then from `features_2`, in turn.

    Args:
      features_1, features_2: [N, D] and [M, D], pooled; may be memory-mapped.
      subsets: how many are drawn.
      subset_size: images of each.
      degree: of the polynomial.
      seed: of the subsets.

    Returns:
      (mean, standard deviation) over the subsets.

    Raises:
      ValueError: sizes that differ, or fewer images than a subset takes.

    Source: Demystifying MMD GANs, arXiv 1801.01401, section 4.
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
    for _ in range(subsets):
        x = features_1[rng.choice(len(features_1), subset_size, replace=False)].astype(np.float64)
        y = features_2[rng.choice(len(features_2), subset_size, replace=False)].astype(np.float64)
        values.append(_mmd2(x, y, degree))
    return float(np.mean(values)), float(np.std(values))


def _mmd2(x, y, degree):
    """The unbiased estimate of MMD² for as many x as y."""
    n = len(x)

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** degree

    xx, yy = kernel(x, x), kernel(y, y)
    within = (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1))
    return within - 2 * kernel(x, y).mean()


def precision_recall(reference, generated, *, k=3, block=2048):
    """Share of generated images inside the reference's manifold, and of the reference's inside theirs.

    A manifold is the union of balls around its images, each reaching to the image's k-th nearest other
    one; its edge belongs to it. Distances equal up to rounding count as equal.

    Args:
      reference: [N, D], pooled; may be memory-mapped.
      generated: [M, D].
      k: neighbors.
      block: images on each side of a block of distances: block² · 8 bytes are held at a time.

    Returns:
      (precision, recall), each in [0, 1].

    Raises:
      ValueError: sizes that differ, or too few images for k neighbors.

    Source: Improved Precision and Recall Metric, arXiv 1904.06991, section 2.
    """
    _check_sizes(reference, generated)
    if min(len(reference), len(generated)) <= k:
        raise ValueError(
            f"the distance to the {k} nearest neighbors needs more than {k} images on either side; "
            f"there are {len(reference)} and {len(generated)}."
        )
    # Distances do not change under a common shift; near the origin they lose fewer digits.
    shift = np.asarray(reference[:block], np.float64).mean(0)
    precision = _share_inside(generated, reference, shift, k, block)
    return precision, _share_inside(reference, generated, shift, k, block)


def _share_inside(points, manifold, shift, k, block):
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


def _kth_neighbor(rows, features, shift, k, block):
    """Squared distance of each row, itself one of `features`, to the k-th nearest other one."""
    nearest = np.empty((len(rows), 0))
    for _, distances, _ in _distances(rows, features, shift, block):
        nearest = np.concatenate([nearest, distances], axis=1)
        if nearest.shape[1] > k + 1:  # The nearest is the row itself.
            nearest = np.partition(nearest, k, axis=1)[:, : k + 1]
    return nearest.max(1)


def _distances(rows, features, shift, block):
    """Yields (slice of `features`, squared distances to them, what rounding may have done to those)."""
    rows = np.asarray(rows, np.float64) - shift
    rows_squared = np.square(rows).sum(1)[:, None]
    for start in range(0, len(features), block):
        others = np.asarray(features[start : start + block], np.float64) - shift
        scale = rows_squared + np.square(others).sum(1)
        distances = np.maximum(scale - 2 * rows @ others.T, 0)
        yield slice(start, start + len(others)), distances, 1e-12 * scale


def _check_sizes(features_1, features_2):
    if features_1.ndim != 2 or features_2.ndim != 2 or features_1.shape[1] != features_2.shape[1]:
        raise ValueError(
            f"features of shapes {features_1.shape} and {features_2.shape} cannot be compared: expected [N, D] and "
            "[M, D] from the same network and layer."
        )
