"""Encodes images into the latents that a generator is trained on, inside the training step or ahead of it.

The names of axes are B (batch), H and W (pixels), L (columns) and D (latent channels).
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float, Shaped, UInt8
import numpy as np

from eqjax import pixels, sharding
from eqjax.precision import computing_in
from eqjax.pretrained import Weights
from eqjax.published import LATENT_SCALE
from eqjax.tokenizer import ENCODER_PARTS, Tokenizer
from eqjax.tokenizer.posterior import Posterior
from eqjax.typing import Params, PRNGKey


def encoder_params(params: Params) -> Params:
    """Returns the parameters of a tokenizer's encoder, the only ones that a generator's training step uses."""
    return {name: params[name] for name in ENCODER_PARTS if name in params}


def latent_scale(weights: Weights) -> float:
    """Returns the factor by which training multiplies latents: the tokenizer file's, else the published one."""
    return LATENT_SCALE if weights.latent_scale is None else weights.latent_scale


def noise_mean_square(std: float) -> float:
    """Returns E[s²] of a posterior's noise level s ~ N(0, std/0.8), clipped to ±std.

    A draw from the posterior has this much more mean square than the posterior's mean. With c = 0.8, φ the normal
    density and Q its upper tail, it is (std/c)² · (1 − 2Q(c) − 2cφ(c) + 2c²Q(c)).

    Example:
      >>> round(noise_mean_square(2.5), 4)
      3.7496
    """
    c = 0.8
    density, tail = math.exp(-c * c / 2) / math.sqrt(2 * math.pi), math.erfc(c / math.sqrt(2)) / 2
    return (std / c) ** 2 * (1 - 2 * tail - 2 * c * density + 2 * c * c * tail)


@dataclasses.dataclass(frozen=True)
class LatentEncoder:
    """Turns a batch into scaled latents; the same ones for images and for a cache, up to the cache's rounding.

    Calls can be traced by `jax.jit`.

    Attributes:
      tokenizer: the frozen tokenizer.
      scale: the factor that latents are multiplied by.
    """

    tokenizer: Tokenizer
    scale: float

    def __call__(
        self, params: Params, batch: Mapping[str, Any], key: PRNGKey
    ) -> tuple[Float[jax.Array, "B L D"], Shaped[jax.Array | np.ndarray, " B"]]:
        """Returns a scaled draw from the posterior, and the labels.

        Args:
          params: the tokenizer's parameters, see `encoder_params`; an empty dict for cached latents.
          batch: "label" [B], and either "image" (uint8 [B, H, W, 3]) or "latents" (posterior means [B, L, D]).
          key: random key of the posterior's noise.
        """
        if "latents" in batch:
            posterior = Posterior(jnp.asarray(batch["latents"], jnp.float32), self.tokenizer.posterior_std)
        else:
            images = pixels.from_uint8(batch["image"])
            posterior: Any = self.tokenizer.apply({"params": params}, images, method="encode")
        return posterior.sample(key) * self.scale, batch["label"]


class MeanEncoder:
    """Encodes images into posterior means on all devices of this process, in calls of one size.

    Attributes:
      batch_size: images per call, a multiple of the number of devices.
    """

    def __init__(self, weights: Weights, dtype: np.dtype, batch_size: int, precision: str = "highest") -> None:
        """Puts the encoder on this process's devices.

        Args:
          weights: the tokenizer.
          dtype: dtype of the means.
          batch_size: images per call, rounded up to a multiple of the number of devices.
          precision: of products of float32 numbers, see `eqjax.precision.computing_in`.
        """
        mesh = sharding.make_mesh(jax.local_devices())
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._sharding = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES))
        self._params = jax.device_put(weights.params["tokenizer"], sharding.replicated(mesh))
        tokenizer = weights.modules["tokenizer"]

        @jax.jit
        def encode(params: Params, images: UInt8[jax.Array, "B H W 3"]) -> Float[jax.Array, "B L D"]:
            with computing_in(precision):
                posterior = tokenizer.apply({"params": params}, pixels.from_uint8(images), method="encode")
            return posterior.mode().astype(dtype)

        self._encode = encode

    def __call__(self, images: UInt8[np.ndarray, "N H W 3"]) -> list[Float[jax.Array, "B L D"]]:
        """Starts encoding and returns the latents of each call; the last call is padded to the batch size."""
        padding = -len(images) % self.batch_size
        images = np.concatenate([images, np.zeros((padding, *images.shape[1:]), np.uint8)])
        starts = range(0, len(images), self.batch_size)
        return [
            self._encode(self._params, jax.device_put(images[i : i + self.batch_size], self._sharding)) for i in starts
        ]
