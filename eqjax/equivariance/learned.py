"""Learned canonicalization over a finite group of shifts and flips.

A score function rates how canonical an image looks. Every element of the group is undone in turn, and the one whose
result scores best is the image's: a permutation of the group permutes the scores, so the choice is exactly equivariant,
whatever the function. The choice is not differentiable; `canonical_images` passes gradients to the scores through the
softmax (straight-through), a soft average over the group's elements.

Letters: B images, H height, W width in pixels, G elements.

Source: Equivariance with learned canonicalization functions, arXiv 2211.06489, sections 3.2 and 3.3; the prior:
Equivariant adaptation of large pretrained models, arXiv 2310.01647, section 3.2.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from eqjax.equivariance.actions import Action
from eqjax.equivariance.canonicalize import inverses, make_elements, permute
from eqjax.rules import Array, Boolean, Function, Instance, Integer, Number
from eqjax.typing import AnyArray

_IMAGES = Array(("images", "height", "width", 3))


def shift_flip_group(width: Any, step: Any = 1, flips: Any = False) -> Action:
    """Returns the finite group of circular shifts by multiples of `step`, with flips or without; the identity first.

    Args:
      width: width of the images in pixels.
      step: pixels between shifts; `width` for no shifts.
      flips: whether every shift occurs with a flip, too.

    Returns:
      Its elements, leaves [G].

    Raises:
      TypeError: an argument is of another type.
      ValueError: the step does not divide the width, so the shifts are no group.

    Example:
      >>> shift_flip_group(8, 4, flips=True).shift.tolist()
      [0.0, 4.0, 0.0, 4.0]
    """
    width, step = Integer(least=1).check("width", width), Integer(least=1).check("step", step)
    if width % step:
        raise ValueError(f"step={step} does not divide width={width}: circular shifts by its multiples are no group.")
    repeats = 2 if Boolean().check("flips", flips) else 1
    shift = np.tile(np.arange(0, width, step), repeats)
    return make_elements(shift, np.arange(len(shift)) >= width // step)


@dataclasses.dataclass(frozen=True)
class LearnedCanonicalizer:
    """Chooses the element of a finite group under which an image scores best.

    Attributes:
      elements: the group, leaves [G], the identity first; see `shift_flip_group`.
      score: function from images [B, H, W, 3] to scores [B], such as a `ScoreNetwork` with its parameters.
      beta: inverse temperature of the softmax that gradients pass through.

    Raises:
      TypeError: a field is of another type.
      ValueError: beta is not positive.

    Source: arXiv 2211.06489, section 3.2.

    Example:
      >>> brightness_left = lambda x: x[:, :, :4].mean((1, 2, 3))
      >>> canonicalizer = LearnedCanonicalizer(shift_flip_group(8), brightness_left)
      >>> image = jnp.zeros((1, 2, 8, 3)).at[:, :, 3:7].set(1.0)
      >>> canonicalizer.element(image).shift
      Array([3.], dtype=float32)
    """

    elements: Any
    score: Any
    beta: Any = 1.0

    def __post_init__(self) -> None:
        Instance(Action, "an Action with leaves [G], such as shift_flip_group returns").check("elements", self.elements)
        Function().check("score", self.score)
        Number(above=0).check("beta", self.beta)

    def element(self, images: Any) -> Action:
        """Returns the element of every image, leaves [B].

        Args:
          images: [B, H, W, 3] in [-1, 1].

        Raises:
          TypeError: the images are no array of floats.
          ValueError: there are none.
        """
        best = jnp.argmax(self.logits(images), axis=1)
        chosen: Any = jax.tree.map(lambda leaf: jnp.take(jnp.asarray(leaf), best), self.elements)
        return chosen

    def logits(self, images: Any) -> Float[jax.Array, "B G"]:
        """Returns the score of every image with every element undone.

        Args:
          images: [B, H, W, 3] in [-1, 1].

        Raises:
          TypeError: the images are no array of floats.
          ValueError: there are none, or the score function returns another shape.
        """
        scores = jax.vmap(self.score)(self._candidates(_IMAGES.check("images", images)))
        expected = (self.elements.shift.shape[0], len(images))
        if scores.shape != expected:
            raise ValueError(
                f"score returned shape {scores.shape[1:]} for {len(images)} images; expected one number per image."
            )
        return scores.T

    def canonical_images(self, images: Float[AnyArray, "B H W 3"]) -> Float[jax.Array, "B H W 3"]:
        """Returns canonical images, through which gradients reach the scores.

        The values are those of the best element alone.

        Args:
          images: the images.
        """
        weights = straight_through(self.logits(images), self.beta)
        return jnp.einsum("bg,gbhwc->bhwc", weights, self._candidates(images), precision="highest")

    def _candidates(self, images: Float[AnyArray, "B H W 3"]) -> Float[jax.Array, "G B H W 3"]:
        """Returns the images with every element undone."""
        images, back = jnp.asarray(images), inverses(self.elements)

        def one(shift: jax.Array, flip: jax.Array) -> jax.Array:
            return permute(images, jnp.broadcast_to(shift, len(images)), jnp.broadcast_to(flip, len(images)))

        return jax.vmap(one)(jnp.asarray(back.shift), jnp.asarray(back.flip))


def straight_through(logits: Float[AnyArray, "B G"], beta: float = 1.0) -> Float[jax.Array, "B G"]:
    """Returns weights that are 1 at the largest logit and 0 elsewhere, with the gradient of the softmax.

    Args:
      logits: scores of the elements.
      beta: inverse temperature of the softmax.

    Source: arXiv 2211.06489, section 3.2; straight-through estimators: arXiv 1308.3432, section 2.3.

    Example:
      >>> straight_through(jnp.array([[0.0, 2.0]]))
      Array([[0., 1.]], dtype=float32)
    """
    soft = jax.nn.softmax(beta * jnp.asarray(logits), axis=-1)
    hard = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=soft.dtype)
    return hard + (soft - jax.lax.stop_gradient(soft))


def prior_loss(logits: Float[AnyArray, "B G"]) -> Float[jax.Array, ""]:
    """Returns the cross-entropy of the softmax of scores to the identity, the first element.

    It keeps images as a pretrained codec knows them, unless moving them pays.

    Args:
      logits: of `LearnedCanonicalizer.logits`.

    Source: arXiv 2310.01647, section 3.2.

    Example:
      >>> round(float(prior_loss(jnp.zeros((2, 4)))), 4)  # log 4
      1.3863
    """
    return -jnp.mean(jax.nn.log_softmax(jnp.asarray(logits), axis=-1)[:, 0])


class ScoreNetwork(nn.Module):
    """A small convolutional network that rates images: convolutions with stride, then a mean over positions.

    Attributes:
      channels: channels of its layers.
      depth: layers, each of which halves height and width, rounded up.

    Example:
      >>> network, images = ScoreNetwork(), jnp.zeros((2, 16, 32, 3))
      >>> params = network.init(jax.random.key(0), images)
      >>> network.apply(params, images).shape
      (2,)
    """

    channels: int = 16
    depth: int = 3

    @nn.compact
    def __call__(self, images: Float[jax.Array, "B H W 3"]) -> Float[jax.Array, "B"]:
        """Returns the scores of images."""
        x = images
        for _ in range(self.depth):
            x = nn.gelu(nn.Conv(self.channels, (3, 3), (2, 2), padding="CIRCULAR")(x))
        # The position within the image counts: a mean over positions alone would not see shifts by whole strides.
        x = nn.Dense(1)(x)[..., 0].mean(1)
        return x @ self.param("position", nn.initializers.normal(0.1), (x.shape[1],))
