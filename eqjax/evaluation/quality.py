"""Quality of images of a few known classes, compared with real ones: for small models, without downloaded networks.

Letters: N and M images, H height, W width, F features, O octaves.
"""

import dataclasses

from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image, ImageFilter

from eqjax import extras
from eqjax.evaluation.fid import frechet_distance
from eqjax.evaluation.filter_bank import filter_features
from eqjax.evaluation.roughness import border_roughness
from eqjax.evaluation.spectrum import energy_kept

# Copies of real images from which the classifier learns beside the images themselves: standard deviations of a blur in
# pixels and of noise in 1/255. Sharpness and grain are measured by their spectrum, and would otherwise decide which
# class a soft or a grainy image is taken for.
_DEGRADED = ((1, 0), (2, 0), (3, 0), (5, 0), (0, 4), (1, 8), (2, 4), (1, 16))


@dataclasses.dataclass(frozen=True)
class LabeledImages:
    """Images and their classes.

    Attributes:
      images: uint8 [N, H, W, 3].
      labels: class of every image, [N].
    """

    images: UInt8[np.ndarray, "N H W 3"]
    labels: Int[np.ndarray, "N"]

    def of_class(self, label: int) -> UInt8[np.ndarray, "n H W 3"]:
        """Returns the images of a class."""
        return self.images[self.labels == label]


@dataclasses.dataclass(frozen=True)
class ClassQuality:
    """Quality of the images of one class.

    Attributes:
      energy_kept: power per octave over that of the reference, coarse to fine; see `spectrum.energy_kept`.
      border: roughness at column borders over the reference's; see `roughness.border_roughness`.
      middle: the same at the middles of columns.
      recognized: fraction of images that a classifier trained on the reference, and on blurred and noisy copies of it,
        takes for this class.
      diversity: mean distance between two images of the class over that of two reference images, in the standardized
        space of `filter_features`; near 0: the images are all alike.
    """

    energy_kept: Float[np.ndarray, "O"]
    border: float
    middle: float
    recognized: float
    diversity: float


@dataclasses.dataclass(frozen=True)
class Quality:
    """Quality of a set of images against a reference.

    Attributes:
      classes: measures of every class, by label.
      frechet: Fréchet distance of all images to the reference, in the standardized space of `filter_features`; depends
        on the number of images, so compare models at equal numbers.
    """

    classes: dict[int, ClassQuality]
    frechet: float

    def mean(self, name: str) -> np.ndarray | np.floating:
        """Returns the mean of a measure over the classes."""
        return np.mean([getattr(quality, name) for quality in self.classes.values()], axis=0)

    def median(self, name: str) -> np.ndarray | np.floating:
        """Returns the median of a measure over the classes; ratios to a class without detail do not sway it."""
        return np.median([getattr(quality, name) for quality in self.classes.values()], axis=0)

    def farthest(self, name: str) -> float:
        """Returns the value of a measure in the class where it is farthest from 1."""
        return max((float(getattr(quality, name)) for quality in self.classes.values()), key=lambda v: abs(v - 1))


class QualityReference:
    """Real images that others are compared with: their features, and a classifier trained on them.

    Example:
      >>> random = np.random.default_rng(0)
      >>> dark = random.integers(0, 99, (16, 32, 64, 3), np.uint8)
      >>> bright = random.integers(99, 255, (16, 32, 64, 3), np.uint8)
      >>> real = LabeledImages(np.concatenate([dark, bright]), np.repeat([0, 1], 16))
      >>> reference = QualityReference(real, column_width=16)
      >>> swapped = LabeledImages(real.images[::-1], real.labels)
      >>> [reference.measure(images).classes[0].recognized for images in (real, swapped)]
      [1.0, 0.0]
    """

    def __init__(self, reference: LabeledImages, column_width: int) -> None:
        """Computes features and trains the classifier: linear discriminants with a shrunk covariance.

        It is trained on blurred and noisy copies of the images too, so that it judges colors and shapes rather than
        sharpness and grain.

        Args:
          reference: at least two images of each of two or more classes.
          column_width: width of a column in pixels.

        Raises:
          ModuleNotFoundError: scikit-learn is missing.
          ValueError: there are too few images or classes.
        """
        extras.require("sklearn", "measuring quality needs scikit-learn")
        from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

        labels, counts = np.unique(reference.labels, return_counts=True)
        if len(labels) < 2 or counts.min() < 2:
            raise ValueError(
                f"the reference has {dict(zip(labels.tolist(), counts.tolist(), strict=True))} images per class; a "
                "classifier needs two or more of each of two or more classes."
            )
        self._reference = reference
        self._column_width = column_width
        features = filter_features(reference.images)
        self._mean, self._std = features.mean(0), np.maximum(features.std(0), 1e-6)
        self._features = self._standardized(features)
        self._classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        random = np.random.default_rng(0)
        copies = [self._features]
        for blur, noise in _DEGRADED:
            copies.append(self._standardized(filter_features(_degraded(reference.images, blur, noise, random))))
        self._classifier.fit(np.concatenate(copies), np.tile(reference.labels, len(copies)))

    def measure(self, found: LabeledImages, *, paired: LabeledImages | None = None) -> Quality:
        """Compares images with the reference.

        Args:
          found: images of the reference's size and classes; at least two of each of its classes.
          paired: real images whose spectra and roughness `found` is compared with instead of the reference's, such as
            the originals of reconstructions.

        Raises:
          ValueError: the classes or the sizes differ.
        """
        originals = paired or self._reference
        labels, counts = np.unique(found.labels, return_counts=True)
        unknown = sorted(set(labels.tolist()) - set(originals.labels.tolist()))
        if unknown or counts.min() < 2:
            raise ValueError(
                f"the images have {dict(zip(labels.tolist(), counts.tolist(), strict=True))} images per class; give "
                f"two or more of each, of the reference's classes {sorted(set(originals.labels.tolist()))}."
            )
        features = self._standardized(filter_features(found.images))
        named = self._classifier.predict(features)
        classes = {}
        for label in labels.tolist():
            images, real = found.of_class(label), originals.of_class(label)
            rough, smooth = (border_roughness(x, self._column_width) for x in (images, real))
            inside = found.labels == label
            classes[label] = ClassQuality(
                energy_kept=energy_kept(images, real),
                border=rough.border / smooth.border,
                middle=rough.middle / smooth.middle,
                recognized=float(np.mean(named[inside] == label)),
                diversity=_spread(features[inside]) / _spread(self._features[self._reference.labels == label]),
            )
        moments = [(x.mean(0), np.cov(x, rowvar=False)) for x in (features, self._features)]
        return Quality(classes, frechet_distance(*moments[0], *moments[1]))

    def _standardized(self, features: Float[np.ndarray, "N F"]) -> Float[np.ndarray, "N F"]:
        return (features - self._mean) / self._std


def _degraded(
    images: UInt8[np.ndarray, "N H W 3"], blur: float, noise: float, random: np.random.Generator
) -> UInt8[np.ndarray, "N H W 3"]:
    kernel = ImageFilter.GaussianBlur(blur)
    soft = np.stack([np.asarray(Image.fromarray(image).filter(kernel)) for image in images])
    if not noise:
        return soft
    return np.clip(np.rint(soft + random.normal(0, noise, soft.shape)), 0, 255).astype(np.uint8)


def _spread(features: Float[np.ndarray, "N F"]) -> float:
    """Returns the mean Euclidean distance of two different rows."""
    distances = [np.linalg.norm(features[:i] - row, axis=1) for i, row in enumerate(features)]
    return float(np.concatenate(distances).mean())
