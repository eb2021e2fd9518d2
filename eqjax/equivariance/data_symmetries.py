"""Which symmetries images have: how much transformed images and images look alike to a network that tells them apart.

A data set has a symmetry if a transformed image is as likely as the image itself. No autoencoder can tell: its task,
the identity, commutes with every transform. A critic can: a small network is trained to rate images above transformed
ones, and is read on images that it has not seen. With the area A under its ROC curve,

    overlap = min(1, 2 (1 − A))

is 1 if it cannot tell them apart, so the data have the symmetry as far as it sees, and 0 if it always can. Symmetries
are then weighted by overlap^power: those that the data lack are let go of.

Letters: B images, H height, W width in pixels.

Source: classifier two-sample tests, arXiv 1610.06545, section 3; a discriminator between data and transformed data
finds symmetries: LieGAN, arXiv 2302.00236, section 4; weights that are set once, by power: PER, arXiv 2306.00356,
section 4.
"""

from collections.abc import Iterable, Iterator
import dataclasses
from fractions import Fraction
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Num
import numpy as np
import optax

from eqjax import pixels
from eqjax.equivariance.actions import Action, act_image
from eqjax.equivariance.geometry import ColumnGeometry
from eqjax.equivariance.groups import Group
from eqjax.rules import Instance, Integer
from eqjax.typing import AnyArray, Params, PRNGKey

_IMAGES = "images [batch, height, width, 3], uint8 or floats in [-1, 1]"
_OPTIMIZER = optax.adam(1e-3)
# Rows that the critic sees. At least every two pixels are averaged, so that it cannot tell what interpolation does to
# the finest details, and takes that for a property of the data.
_ROWS = 64
_LEAST_POOL = 2


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What a critic found out about a symmetry of images.

    Attributes:
      auc: area under the ROC curve of its ratings of held-out images against transformed ones, in [0, 1]; 0.5: it
        cannot tell them apart.
      num_images: held-out images that it rated.
    """

    auc: float
    num_images: int

    @property
    def fraction(self) -> float:
        """The overlap, in [0, 1]; 1: the data have the symmetry as far as the critic sees."""
        return float(np.clip(2 * (1 - self.auc), 0, 1))


class SymmetryCritic(nn.Module):
    """A small convolutional network that rates how much images look like data: a mean over positions.

    Attributes:
      channels: channels of its first layer, a multiple of 8; later ones have twice as many.

    Example:
      >>> critic, images = SymmetryCritic(), jnp.zeros((2, 32, 64, 3))
      >>> params = critic.init(jax.random.key(0), images, jnp.ones(64, bool))
      >>> critic.apply(params, images, jnp.ones(64, bool)).shape
      (2,)
    """

    channels: int = 32

    @nn.compact
    def __call__(self, images: Float[jax.Array, "B H W 3"], valid: Bool[jax.Array, "W"]) -> Float[jax.Array, "B"]:
        """Returns the ratings of images.

        Args:
          images: images in [-1, 1], at least 8 pixels high and wide.
          valid: which columns of pixels it may look at.
        """
        mask = jnp.broadcast_to(valid.astype(images.dtype)[:, None], (*images.shape[:-1], 1))
        pool = max(_LEAST_POOL, images.shape[1] // _ROWS)
        x = _average(jnp.concatenate([images * mask, mask], axis=-1), pool)
        for factor, stride in ((1, 2), (2, 2), (2, 1)):
            x = nn.Conv(factor * self.channels, (3, 3), (stride, stride))(x)
            x = nn.gelu(nn.GroupNorm(num_groups=8)(x))
        return jnp.mean(nn.Dense(1)(x), axis=(1, 2, 3))


def _average(x: Float[jax.Array, "B H W C"], pool: int) -> Float[jax.Array, "B h w C"]:
    """Returns means of squares of pool × pool pixels; what does not fill one at the right and bottom is left out."""
    height, width = x.shape[1] // pool, x.shape[2] // pool
    cut = x[:, : height * pool, : width * pool]
    return cut.reshape(len(x), height, pool, width, pool, -1).mean((2, 4))


def measure_overlap(
    geometry: Any, group: Any, batches: Iterable[Any], held_out: Iterable[Any], *, steps: Any = 500, seed: Any = 0
) -> Overlap:
    """Trains a critic to tell images from transformed ones, and reads it on held-out images.

    The critic sees each image and its transform, within the same mask and of the same width; shifts are rounded to
    whole pixels.

    Args:
      geometry: how columns lie on images; its boundary and interpolation are those of the transforms.
      group: the symmetry, such as `flips()`; its elements are drawn at random, but never without the flip or at the
        scale of 1 that it has.
      batches: batches of images [B, H, W, 3] for training, uint8 or floats in [-1, 1], all of one shape; endless, or
        they are repeated.
      held_out: some batches of other images.
      steps: steps of training, each on one batch.
      seed: seed of the network and of all draws.

    Raises:
      TypeError: an argument is of another type.
      ValueError: the group has the identity alone, there are no images, or they do not fit the geometry.

    Source: arXiv 1610.06545, section 3.

    Example:
      >>> from eqjax.equivariance import flips
      >>> ramp = np.linspace(-1, 1, 32, dtype=np.float32)  # Dark at the left.
      >>> ramps = np.broadcast_to(ramp[:, None], (4, 16, 32, 3))
      >>> measure_overlap(ColumnGeometry(stride=4), flips(), [ramps], [ramps], steps=20).fraction
      0.0
    """
    geometry = Instance(ColumnGeometry, "a ColumnGeometry").check("geometry", geometry)
    group = Instance(Group, "a Group, such as flips()").check("group", group)
    steps, seed = Integer(least=1).check("steps", steps), Integer(least=0).check("seed", seed)
    scales = tuple(scale for scale in group.scales if scale != 1) or (Fraction(1),)
    if scales == (1,) and not (group.flips or group.max_shift or group.warp):
        raise ValueError("the group has the identity alone, which every image has; give one that moves images.")
    root = jax.random.key(seed)
    training = _repeat(batches, "batches")
    state: Any = None
    for step in range(steps):
        images = next(training)
        scale = scales[np.random.default_rng((seed, step)).integers(len(scales))]
        if state is None:
            state = _initial_state(jax.random.fold_in(root, steps), images)
        state = _train_step(geometry, group, scale, state, jax.random.fold_in(root, step), images)
    real, moved = [], []
    for number, batch in enumerate(held_out):
        key = jax.random.fold_in(jax.random.fold_in(root, steps + 1), number)
        ratings = _rate(geometry, group, scales[number % len(scales)], state[0], key, _checked(batch, "held_out"))
        real.append(ratings[0])
        moved.append(ratings[1])
    if not real:
        raise ValueError("held_out has no batches; give images that were not trained on.")
    return Overlap(_area_under_roc(np.concatenate(real), np.concatenate(moved)), sum(map(len, real)))


def _repeat(batches: Iterable[Any], name: str) -> Iterator[jax.Array]:
    """Yields checked batches without end."""
    while True:
        batch = None
        for batch in batches:
            yield _checked(batch, name)
        if batch is None:
            raise ValueError(f"{name} has no batches, or was exhausted before; give a list, or an endless iterator.")


def _checked(batch: Any, name: str) -> jax.Array:
    """Returns a batch of images as floats.

    Raises:
      TypeError: it is no such array.
      ValueError: it has another shape.
    """
    shape, dtype = tuple(getattr(batch, "shape", ())), getattr(batch, "dtype", None)
    if dtype is None or not (dtype == np.uint8 or jnp.issubdtype(dtype, jnp.floating)):
        raise TypeError(f"{name} holds {dtype or type(batch).__name__}; expected {_IMAGES}.")
    if len(shape) != 4 or shape[-1] != 3 or 0 in shape:
        raise ValueError(f"{name} holds an array of shape {shape}; expected {_IMAGES}.")
    return pixels.from_uint8(batch) if dtype == np.uint8 else jnp.asarray(batch, jnp.float32)


def _initial_state(key: PRNGKey, images: Float[jax.Array, "B H W 3"]) -> tuple[Params, Any]:
    params = SymmetryCritic().init(key, images[:1], jnp.ones(images.shape[2], bool))
    return params, _OPTIMIZER.init(params)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _train_step(
    geometry: ColumnGeometry,
    group: Group,
    scale: Fraction,
    state: tuple[Params, Any],
    key: PRNGKey,
    images: Float[jax.Array, "B H W 3"],
) -> tuple[Params, Any]:
    """Returns parameters and optimizer's state after a step of the logistic loss."""
    params, optimizer_state = state
    real, moved, valid = _pair(geometry, group, scale, key, images)

    def loss(params: Params) -> jax.Array:
        ratings = (SymmetryCritic().apply(params, images, valid) for images in (real, moved))
        of_real, of_moved = (jnp.asarray(rating) for rating in ratings)
        return jnp.mean(jax.nn.softplus(-of_real) + jax.nn.softplus(of_moved))

    gradients = jax.grad(loss)(params)
    with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to integer powers.
        updates, optimizer_state = _OPTIMIZER.update(gradients, optimizer_state)
    moved_params: Any = optax.apply_updates(params, updates)
    return moved_params, optimizer_state


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _rate(
    geometry: ColumnGeometry,
    group: Group,
    scale: Fraction,
    params: Params,
    key: PRNGKey,
    images: Float[jax.Array, "B H W 3"],
) -> tuple[Any, Any]:
    """Returns the ratings of images and of their transforms."""
    real, moved, valid = _pair(geometry, group, scale, key, images)
    return SymmetryCritic().apply(params, real, valid), SymmetryCritic().apply(params, moved, valid)


def _pair(
    geometry: ColumnGeometry, group: Group, scale: Fraction, key: PRNGKey, images: Float[jax.Array, "B H W 3"]
) -> tuple[Float[jax.Array, "B H w 3"], Float[jax.Array, "B H w 3"], Bool[jax.Array, "w"]]:
    """Returns images and their transforms, both cut to the width of the narrower ones, and where to look at both."""
    element_key, window_key = jax.random.split(key)
    element = group.sample(element_key, scale)
    shift, flip = jnp.round(element.shift), jnp.full((), group.flips)
    moved, valid = act_image(geometry, Action(shift, flip, element.warp, element.scale), images)
    width = min(images.shape[2], moved.shape[2])

    def window(x: jax.Array, axis: int) -> jax.Array:
        start = jax.random.randint(window_key, (), 0, x.shape[axis] - width + 1, jnp.int32)
        return jax.lax.dynamic_slice_in_dim(x, start, width, axis)

    return window(images, 2), window(moved, 2), window(valid, 0)


def _area_under_roc(above: Num[AnyArray, "n"], below: Num[AnyArray, "m"]) -> float:
    """Returns how often a number of the first kind is above one of the second; ties count half."""
    ordered = np.sort(below)
    wins = np.searchsorted(ordered, above, side="left") + np.searchsorted(ordered, above, side="right")
    return float(np.mean(wins) / (2 * len(below)))
