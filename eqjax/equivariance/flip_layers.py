"""Layers that commute with horizontal flips, at half the parameters, and a small autoencoder made of them.

Channels are of two kinds: a flip reverses the width of all, and also changes the sign of the *odd* ones. Even channels
come first. Between channels of one kind kernels are symmetric along the width, between even and odd ones antisymmetric,
so half of the weights are free. Nonlinearities act on e + o and e − o, which a flip exchanges, and odd channels have no
bias.

This is the part of octic-equivariant networks that columns allow: their other symmetries turn columns into rows.

Letters: B images, H and h rows, W and w positions along the width, C channels, N columns, D latent size.

Source: Stronger ViTs with octic equivariance, arXiv 2505.15441, section 4, for the group of a flip alone.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float
import numpy as np

from eqjax.typing import AnyArray, Params, PRNGKey


def flip_channels(x: Float[AnyArray, "... w C"], even: int | None = None) -> Float[jax.Array, "... w C"]:
    """Returns features of the flipped image: the reversed width, and the opposite sign of odd channels.

    Args:
      x: features or columns.
      even: number of even channels, the first; None: half of all.

    Source: arXiv 2505.15441, section 3.

    Example:
      >>> flip_channels(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
      [[3.0, -4.0], [1.0, -2.0]]
    """
    x = jnp.asarray(x)
    even = x.shape[-1] // 2 if even is None else even
    signs = np.where(np.arange(x.shape[-1]) < even, 1.0, -1.0).astype(np.float32)
    return jnp.flip(x, -2) * jax.lax.broadcast_to_rank(jnp.asarray(signs, x.dtype), x.ndim)


def symmetric_kernel(
    free: Float[AnyArray, "*rows taps in out"], width: int, sign: int
) -> Float[jax.Array, "*rows {width} in out"]:
    """Returns a kernel that is symmetric or antisymmetric along its width, from its free half.

    Args:
      free: the taps up to the middle; the middle one of an odd width belongs to symmetric kernels alone.
      width: taps of the kernel.
      sign: 1: symmetric; −1: antisymmetric.

    Source: arXiv 2306.00356, section 3 (the projection to kernels that respect a symmetry).

    Example:
      >>> symmetric_kernel(jnp.array([1.0, 2.0])[:, None, None], 3, 1).ravel().tolist()
      [1.0, 2.0, 1.0]
      >>> symmetric_kernel(jnp.array([1.0])[:, None, None], 3, -1).ravel().tolist()
      [1.0, 0.0, -1.0]
    """
    free = jnp.asarray(free)
    axis, half = free.ndim - 3, width // 2
    mirrored = sign * jnp.flip(jax.lax.slice_in_dim(free, 0, half, axis=axis), axis)
    if width % 2 and sign < 0:
        shape = [*free.shape[:axis], 1, *free.shape[-2:]]
        free = jnp.concatenate([free, jnp.zeros(shape, free.dtype)], axis)
    return jnp.concatenate([free, mirrored], axis)


class FlipConv(nn.Module):
    """Convolution over rows and columns, or columns alone, that commutes with horizontal flips.

    With stride 1 rows and columns are mirrored at the ends; with a stride, the kernel has its size, and patches do not
    overlap.

    Attributes:
      features: output channels.
      kernel: rows and columns, or columns.
      stride: of every axis; 1, or the kernel's size.
      even_in: number of even input channels; None: half of them; the channels of an image are all even.
      even_out: number of even output channels; None: half of them.
      dtype: compute dtype; parameters are float32.

    Source: arXiv 2505.15441, section 4.

    Example:
      >>> layer, x = FlipConv(8, even_in=3), jax.random.normal(jax.random.key(0), (1, 4, 6, 3))
      >>> params = layer.init(jax.random.key(1), x)
      >>> flipped = layer.apply(params, x[:, :, ::-1])
      >>> bool(jnp.allclose(flipped, flip_channels(layer.apply(params, x)), atol=1e-6))
      True
    """

    features: int
    kernel: Sequence[int] = (3, 3)
    stride: Sequence[int] | None = None
    even_in: int | None = None
    even_out: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B *size C"]) -> Float[jax.Array, "B *size2 {self.features}"]:
        """Maps [B, …, C] to [B, …, features].

        Raises:
          ValueError: the stride is neither 1 nor the kernel's size, or does not divide the map.
        """
        kernel, bias = free_parameters(self, self.kernel, x.shape[-1], self.features)
        stride = tuple(self.stride or (1,) * len(self.kernel))
        if all(n == 1 for n in stride):
            pads = [(0, 0), *((size // 2, size // 2) for size in self.kernel), (0, 0)]
            x = jnp.pad(x, pads, mode="reflect")
        elif stride != tuple(self.kernel) or any(n % s for n, s in zip(x.shape[1:-1], stride, strict=True)):
            raise ValueError(
                f"stride={stride} must be that of patches: kernel={tuple(self.kernel)}, and divide the map of "
                f"{x.shape[1:-1]} positions; another grid of positions is not its own mirror image."
            )
        letters = "HW"[-len(self.kernel) :]
        dimensions = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        out = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), stride, "VALID", dimension_numbers=dimensions
        )
        return out + jax.lax.broadcast_to_rank(bias.astype(self.dtype), out.ndim)


class FlipConvTranspose(nn.Module):
    """Upsampling by patches that commutes with horizontal flips: every position becomes a patch.

    Attributes:
      features: output channels.
      patch: rows and columns of a patch.
      even_out: number of even output channels; None: half of them.
      dtype: compute dtype; parameters are float32.

    Source: arXiv 2505.15441, section 4.

    Example:
      >>> layer, x = FlipConvTranspose(4), jnp.zeros((1, 4, 6, 8))
      >>> layer.apply(layer.init(jax.random.key(1), x), x).shape
      (1, 8, 12, 4)
    """

    features: int
    patch: Sequence[int] = (2, 2)
    even_out: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h2 w2 {self.features}"]:
        """Maps [B, h, w, C] to [B, h · rows, w · columns, features]."""
        kernel, bias = free_parameters(self, self.patch, x.shape[-1], self.features)
        patches = jnp.einsum("bhwc,ijco->bhiwjo", x.astype(self.dtype), kernel.astype(self.dtype))
        b, h, i, w, j, c = patches.shape
        return patches.reshape(b, h * i, w * j, c) + bias.astype(self.dtype)[None, None, None]


class FlipDense(nn.Module):
    """Matrix product per position that commutes with horizontal flips: two blocks, of even and of odd channels.

    Attributes:
      features: output channels.
      even_in: number of even input channels; None: half of them.
      even_out: number of even output channels; None: half of them.
      dtype: compute dtype; parameters are float32.

    Source: arXiv 2505.15441, section 4.

    Example:
      >>> layer, x = FlipDense(6), jnp.zeros((1, 5, 4))
      >>> params = layer.init(jax.random.key(1), x)["params"]
      >>> sum(leaf.size for leaf in jax.tree.leaves(params)), 4 * 6 + 6  # Half of those of nn.Dense.
      (15, 30)
    """

    features: int
    even_in: int | None = None
    even_out: int | None = None
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "... C"]) -> Float[jax.Array, "... {self.features}"]:
        """Maps [..., C] to [..., features]."""
        kernel, bias = free_parameters(self, (1,), x.shape[-1], self.features)
        out = x.astype(self.dtype) @ kernel[0].astype(self.dtype)
        return out + jax.lax.broadcast_to_rank(bias.astype(self.dtype), out.ndim)


def free_parameters(module: Any, kernel: Sequence[int], channels: int, features: int) -> tuple[jax.Array, jax.Array]:
    """Creates the free parameters of a layer and returns its full kernel and bias; to be called in a compact method.

    Args:
      module: the layer, with `even_out`, and `even_in` if its inputs are not half even.
      kernel: size of the kernel, the width last.
      channels: input channels.
      features: output channels.

    Returns:
      Kernel [*kernel, channels, features] and bias [features], float32.
    """
    even_in, even_out = getattr(module, "even_in", None), module.even_out
    inputs = [channels - channels // 2 if even_in is None else even_in, 0]
    outputs = [features - features // 2 if even_out is None else even_out, 0]
    inputs[1], outputs[1] = channels - inputs[0], features - outputs[0]
    *rows, width = kernel
    bound = 1 / math.sqrt(math.prod(kernel) * channels)

    def init(key: PRNGKey, shape: Sequence[int]) -> jax.Array:
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    def part(i: int, j: int) -> jax.Array:
        taps = width // 2 if i != j else (width + 1) // 2
        shape = (*rows, taps, inputs[i], outputs[j])
        if not math.prod(shape):
            return jnp.zeros((*rows, width, inputs[i], outputs[j]))
        name = f"{'even' if i == 0 else 'odd'}_to_{'even' if j == 0 else 'odd'}"
        return symmetric_kernel(module.param(name, init, shape), width, 1 if i == j else -1)

    full = jnp.concatenate([jnp.concatenate([part(i, j) for j in (0, 1)], axis=-1) for i in (0, 1)], axis=-2)
    bias = module.param("bias", init, (outputs[0],)) if outputs[0] else jnp.zeros(0)
    return full, jnp.pad(bias, (0, outputs[1]))


def flip_activation(
    x: Float[AnyArray, "... C"], function: Callable[[jax.Array], jax.Array] = nn.silu
) -> Float[jax.Array, "... C"]:
    """Applies a nonlinearity to half even, half odd channels: to (e + o)/√2 and (e − o)/√2, and transforms back.

    Args:
      x: features.
      function: any function of single values.

    Raises:
      ValueError: the number of channels is odd.

    Source: arXiv 2505.15441, section 4 (the transform to the regular representation), for two elements.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (5, 4))
      >>> bool(jnp.allclose(flip_activation(flip_channels(x)), flip_channels(flip_activation(x)), atol=1e-6))
      True
    """
    x = jnp.asarray(x)
    if x.shape[-1] % 2:
        raise ValueError(f"x has {x.shape[-1]} channels; half of them must be even and half odd ones.")
    even, odd = jnp.split(x, 2, axis=-1)
    half = math.sqrt(0.5)
    plus, minus = function((even + odd) * half), function((even - odd) * half)
    return jnp.concatenate([plus + minus, plus - minus], axis=-1) * half


class FlipAutoencoder(nn.Module):
    """A small column autoencoder that commutes with flips exactly: an example of what the layers make.

    A flip of the image reverses the columns and changes the sign of the second half of their channels,
    `flip_channels`.

    Attributes:
      channels: width of all layers, even.
      levels: halvings of height and width; a column is 2**levels pixels wide.
      height: image height in pixels, a multiple of 2**levels.
      latent_dim: channels of a latent, even.

    Raises:
      ValueError: channels, latent size or height do not fit.

    Source: arXiv 2505.15441, section 4.

    Example:
      >>> model = FlipAutoencoder(channels=8, levels=2, height=16, latent_dim=4)
      >>> params = jax.eval_shape(model.init_params, jax.random.key(0))
      >>> encode = lambda p, x: model.apply({"params": p}, x, method="encode")
      >>> jax.eval_shape(encode, params, jnp.zeros((1, 16, 32, 3))).shape
      (1, 8, 4)
    """

    channels: int = 32
    levels: int = 3
    height: int = 32
    latent_dim: int = 32

    def setup(self) -> None:
        if self.channels % 2 or self.latent_dim % 2 or self.height % 2**self.levels:
            raise ValueError(
                f"channels={self.channels} and latent_dim={self.latent_dim} must be even, and height={self.height} a "
                f"multiple of {2**self.levels}, as levels={self.levels} halve it."
            )
        rows = self.height // 2**self.levels
        self.conv_in = FlipConv(self.channels, even_in=3)
        self.downs = [FlipConv(self.channels, (2, 2), (2, 2)) for _ in range(self.levels)]
        self.encoder_blocks = [FlipConv(self.channels) for _ in range(self.levels)]
        self.quant = FlipConv(self.latent_dim, (3,))
        self.post_quant = FlipConv(self.channels * rows, (3,))
        self.ups = [FlipConvTranspose(self.channels) for _ in range(self.levels)]
        self.decoder_blocks = [FlipConv(self.channels) for _ in range(self.levels)]
        self.conv_out = FlipConv(3, even_out=3)

    @nn.nowrap
    def init_params(self, key: PRNGKey) -> Params:
        """Returns new parameters, float32."""
        return self.init({"params": key}, jnp.zeros((1, self.height, 2 * 2**self.levels, 3)))["params"]

    def __call__(self, images: Float[jax.Array, "B H W 3"]) -> Float[jax.Array, "B H W 3"]:
        """Encodes and decodes images."""
        return self.decode(self.encode(images))

    def encode(self, images: Float[jax.Array, "B H W 3"]) -> Float[jax.Array, "B N D"]:
        """Encodes images in [-1, 1] to latents, one per 2**levels pixels."""
        x = self.conv_in(images)
        for down, block in zip(self.downs, self.encoder_blocks, strict=True):
            x = down(flip_activation(x))
            x = x + block(flip_activation(x))
        x = jnp.moveaxis(x, 1, -1)  # [B, N, C, h]: even channels of all rows come first.
        return self.quant(x.reshape(*x.shape[:2], -1))

    def decode(self, latents: Float[jax.Array, "B N D"]) -> Float[jax.Array, "B H W 3"]:
        """Decodes latents to images."""
        x = self.post_quant(latents)
        x = jnp.moveaxis(x.reshape(*x.shape[:2], self.channels, -1), -1, 1)  # [B, h, N, C]
        for up, block in zip(self.ups, self.decoder_blocks, strict=True):
            x = up(flip_activation(x))
            x = x + block(flip_activation(x))
        return self.conv_out(flip_activation(x))
