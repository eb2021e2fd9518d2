"""Losses that train an autoencoder to be more equivariant, and the guard against their collapse.

    implicit   L(T x, D(T' E(x)))                                   the decoder is asked for the transformed image
    explicit   ‖E(T x) − T' E(x)‖² / ‖T' E(x)‖²                     latents are asked to move with the image
               ‖D(T' E(x)) − T D(E(x))‖² / ‖T D(E(x))‖²

The implicit loss takes the place of a reconstruction loss and costs no more. Explicit losses are least for latents that
carry nothing: trained from scratch, or without a measure of size, they collapse. Use them relative, with the gradient
stopped at their targets, on a trained autoencoder, and watched by a `CollapseGuard`.

Letters: B images, H height, W width in pixels, N columns, D latent size, a prime what a transform made of it.

Source: EQ-VAE, arXiv 2502.09509, section 3.2 (implicit), section 4.3 with table 7 (explicit, and its collapse); AF-LDM,
arXiv 2503.09419, section 3 (explicit losses of encoder and decoder, masks, and where gradients stop).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from eqjax.equivariance.actions import Action, act_columns, act_image
from eqjax.equivariance.geometry import Codec, ColumnGeometry
from eqjax.rules import Instance, Number
from eqjax.typing import AnyArray, Scalar

# Decay of the running mean of the spread: single batches differ.
_GUARD_DECAY = 0.9


def transformed_pair(
    geometry: ColumnGeometry,
    action: Action,
    images: Float[AnyArray, "B H W 3"],
    latents: Float[AnyArray, "B N D"],
    decode: Callable[[Any], Any],
) -> tuple[Float[jax.Array, "B H W2 3"], Float[jax.Array, "B H W2 3"]]:
    """Returns transformed images, and what the decoder makes of the latents transformed alike.

    Args:
      geometry: how columns lie on the images.
      action: the transform, one for all images.
      images: images in [-1, 1].
      latents: their latents.
      decode: function from latents to images.

    Returns:
      T x, and D(T' z) where T x is known; elsewhere T x itself, so that a loss of the two sees no difference where what
      entered the image is made up.

    Source: EQ-VAE, arXiv 2502.09509, section 3.2; the mask: AF-LDM, arXiv 2503.09419, section 3.

    Example:
      >>> from eqjax.equivariance import make_action
      >>> flat = lambda z: jnp.repeat(z, 4, axis=1)[:, None].repeat(16, axis=1)
      >>> images, latents = jnp.ones((2, 16, 8, 3)), jnp.zeros((2, 2, 3))
      >>> target, decoded = transformed_pair(ColumnGeometry(4), make_action(shift=4), images, latents, flat)
      >>> decoded[0, 0, :, 0].tolist()  # The first four pixels entered.
      [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    target, valid = act_image(geometry, action, images)
    moved, _ = act_columns(geometry, action, latents)
    return target, jnp.where(valid[None, None, :, None], decode(moved), target)


def implicit_loss(codec: Any, images: Any, action: Any, loss: Callable[[Any, Any], Any]) -> Float[jax.Array, ""]:
    """Returns the implicit loss: that of the transformed image and the decoded transformed latents.

    Only latents are transformed; the encoder never sees T x. In training draw the identity in half of the steps.

    Args:
      codec: a `Codec`.
      images: [B, H, W, 3] in [-1, 1].
      action: the transform, an `Action`.
      loss: (T x, D(T' E(x))) → scalar, such as the reconstruction loss in use.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the images or the transform do not fit the geometry.

    Source: EQ-VAE, arXiv 2502.09509, section 3.2.

    Example:
      >>> from eqjax.equivariance import make_action
      >>> codec = Codec(  # The mean color of every column of 4 pixels.
      ...     lambda x: x.reshape(*x.shape[:2], -1, 4, 3).mean((1, 3)),
      ...     lambda z: jnp.repeat(z, 4, axis=1)[:, None].repeat(16, axis=1),
      ...     ColumnGeometry(stride=4),
      ... )
      >>> images = jnp.broadcast_to(jnp.linspace(-1, 1, 4).repeat(4)[:, None], (2, 16, 16, 3))
      >>> loss = implicit_loss(codec, images, make_action(flip=True), lambda x, y: jnp.mean(jnp.abs(x - y)))
      >>> round(float(loss), 6)
      0.0
    """
    Instance(Codec, "a Codec").check("codec", codec)
    Instance(Action, "an Action, such as make_action returns").check("action", action)
    latents = codec.encode(images)
    return jnp.asarray(loss(*transformed_pair(codec.geometry, action, images, latents, codec.decode)))


class ExplicitLosses(NamedTuple):
    """Explicit losses of both halves of a codec.

    Attributes:
      encoder: error of E(T x) against T' E(x).
      decoder: error of D(T' E(x)) against T D(E(x)).
    """

    encoder: Float[AnyArray, ""]
    decoder: Float[AnyArray, ""]


def explicit_losses(
    codec: Any, images: Any, action: Any, *, relative: bool = True, stop_gradient: bool = True
) -> ExplicitLosses:
    """Returns the explicit losses of encoder and decoder, for fine-tuning alone.

    Args:
      codec: a `Codec`.
      images: [B, H, W, 3] in [-1, 1].
      action: the transform, an `Action`.
      relative: whether squared errors are divided by the squares of their target; else they are summed over the values
        of an image, which latents that shrink lower.
      stop_gradient: whether targets are constant, and the decoder's error does not reach the encoder.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the images or the transform do not fit the geometry.

    Source: AF-LDM, arXiv 2503.09419, section 3; without its options: EQ-VAE, arXiv 2502.09509, table 7.

    Example:
      >>> from eqjax.equivariance import make_action
      >>> first = Codec(  # The color of the first pixel of every column of 4: what a flip makes the last.
      ...     lambda x: x[:, 0, ::4], lambda z: jnp.repeat(z, 4, axis=1)[:, None].repeat(16, axis=1), ColumnGeometry(4)
      ... )
      >>> images = jnp.broadcast_to(jnp.linspace(-1, 1, 16)[:, None], (2, 16, 16, 3))
      >>> losses = explicit_losses(first, images, make_action(flip=True))
      >>> float(losses.encoder) > 0.1, float(losses.decoder)
      (True, 0.0)
    """
    Instance(Codec, "a Codec").check("codec", codec)
    Instance(Action, "an Action, such as make_action returns").check("action", action)
    latents = codec.encode(images)
    found = codec.encode(act_image(codec.geometry, action, images)[0])
    constant = jax.lax.stop_gradient if stop_gradient else (lambda x: x)
    encoder = encoder_error(codec.geometry, action, found, constant(latents), relative=relative)
    fixed = constant(latents)
    decoded, moved = codec.decode(fixed), act_columns(codec.geometry, action, fixed)[0]
    decoder = decoder_error(codec.geometry, action, codec.decode(moved), constant(decoded), relative=relative)
    return ExplicitLosses(encoder, decoder)


def encoder_error(
    geometry: ColumnGeometry,
    action: Action,
    found: Float[AnyArray, "B N2 D"],
    latents: Float[AnyArray, "B N D"],
    relative: bool = True,
) -> Float[jax.Array, ""]:
    """Returns the squared error of the latents of transformed images, E(T x), against transformed latents, T' E(x).

    Args:
      geometry: how columns lie on the images.
      action: the transform.
      found: latents of the transformed images.
      latents: latents of the images.
      relative: whether it is divided by the square of the transformed latents; else it is summed per image.

    Source: EQ-VAE, arXiv 2502.09509, section 4.3; AF-LDM, arXiv 2503.09419, section 3.
    """
    target, valid = act_columns(geometry, action, latents)
    return _error(found, target, valid, relative)


def decoder_error(
    geometry: ColumnGeometry,
    action: Action,
    found: Float[AnyArray, "B H W2 3"],
    decoded: Float[AnyArray, "B H W 3"],
    relative: bool = True,
) -> Float[jax.Array, ""]:
    """Returns the squared error of decoded transformed latents, D(T' z), against transformed decoded ones, T D(z).

    Args:
      geometry: how columns lie on the images.
      action: the transform.
      found: decoded transformed latents.
      decoded: decoded latents.
      relative: whether it is divided by the square of the transformed images; else it is summed per image.

    Source: AF-LDM, arXiv 2503.09419, section 3.
    """
    target, valid = act_image(geometry, action, decoded)
    return _error(found, target, valid, relative)


def _error(
    found: Float[AnyArray, "B ..."], target: Float[AnyArray, "B ..."], valid: Bool[AnyArray, "n"], relative: bool
) -> Float[jax.Array, ""]:
    valid = jnp.reshape(valid, (*[1] * (target.ndim - 2), -1, 1))
    error = jnp.sum(jnp.where(valid, jnp.square(found - target), 0))
    if not relative:
        return error / found.shape[0]
    # The size is a scale alone: an error that falls because its target grows is none.
    size = jax.lax.stop_gradient(jnp.sum(jnp.where(valid, jnp.square(target), 0)))
    return error / jnp.maximum(size, 1e-12)


# ── Collapse ────────────────────────────────────────────────────────────────────────────────────


def latent_spread(latents: Float[AnyArray, "B N D"]) -> Float[jax.Array, ""]:
    """Returns the spread of latents: the root mean variance of their channels over all columns of all images.

    Unlike their size, it falls to 0 where every column gets the same latent.

    Args:
      latents: means of the posterior, as noise would hide a collapse.

    Example:
      >>> float(latent_spread(jnp.full((2, 4, 8), 3.0)))
      0.0
    """
    return jnp.sqrt(jnp.mean(jnp.var(jnp.asarray(latents), axis=(0, 1))))


@flax.struct.dataclass
class CollapseGuard:
    """Watches the spread of latents, and turns explicit losses off for good when it falls too far.

    A pytree of scalars, to be carried from step to step; `init` makes one.

    Attributes:
      start: spread of the first batch; 0 before it.
      spread: running mean of the spread.
      fired: whether the spread fell below the threshold at any time.

    Source: the collapse: EQ-VAE, arXiv 2502.09509, table 7; the guard is ours.
    """

    start: Float[AnyArray, ""]
    spread: Float[AnyArray, ""]
    fired: Bool[AnyArray, ""]

    @classmethod
    def init(cls) -> "CollapseGuard":
        """Returns the guard before the first batch."""
        return cls(jnp.zeros(()), jnp.zeros(()), jnp.zeros((), bool))

    def update(self, spread: Scalar, threshold: Any = 0.5) -> "CollapseGuard":
        """Returns the guard after a batch.

        Args:
          spread: `latent_spread` of the batch.
          threshold: the guard fires when the running mean is below this fraction of the first spread; 0: never.

        Raises:
          TypeError: the threshold is no number.
          ValueError: it is not in [0, 1].

        Example:
          >>> guard = CollapseGuard.init()
          >>> for spread in (2.0, 1.8, *[0.3] * 10):
          ...     guard = guard.update(spread)
          >>> bool(guard.fired), float(guard.start)
          (True, 2.0)
        """
        threshold = Number(least=0, most=1).check("threshold", threshold)
        value = jnp.asarray(spread, jnp.float32)
        is_first = self.start == 0
        start = jnp.where(is_first, value, self.start)
        mean = jnp.where(is_first, value, _GUARD_DECAY * self.spread + (1 - _GUARD_DECAY) * value)
        return CollapseGuard(start, mean, self.fired | (mean < threshold * start))

    @property
    def weight(self) -> Float[jax.Array, ""]:
        """The factor of the explicit losses: 1, and 0 after the guard has fired."""
        return jnp.where(self.fired, 0.0, 1.0)
