"""What a pass over a batch takes besides parameters and images: random draws, and which terms are on."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from eqjax.tokenizer import Tokenizer
from eqjax.tokenizer.augment import NUM_UNIFORMS
from eqjax.tokenizer.posterior import posterior_noise
from eqjax.training.state import stream
from eqjax.typing import AnyArray, PRNGKey

Images: TypeAlias = Float[AnyArray, "B H W 3"]
Terms: TypeAlias = dict[str, Any]
# Whether a term is on: True if always, else a traced boolean.
Switch: TypeAlias = bool | Bool[AnyArray, ""]


@flax.struct.dataclass
class RandomDraws:
    """The random draws of one pass over a batch.

    Attributes:
      posterior_noise: noise added to the posterior's mean, [B, L, D].
      real_uniforms: uniforms in [0, 1) that augment the images, [B, 7].
      fake_uniforms: uniforms in [0, 1) that augment the reconstructions, [B, 7], and decoded samples, [2B, 7].
      sampled: unscaled latents of a generator's samples, [B, L, D], or None.
      real_key: key with which the discriminator crops or resizes images; None: it resizes.
      fake_key: the same for reconstructions.
    """

    posterior_noise: jax.Array
    real_uniforms: jax.Array
    fake_uniforms: jax.Array
    sampled: jax.Array | None = None
    real_key: PRNGKey | None = None
    fake_key: PRNGKey | None = None

    @classmethod
    def from_key(
        cls, key: PRNGKey, tokenizer: Tokenizer, shape: tuple[int, ...], pool: Float[AnyArray, "N L D"] | None = None
    ) -> "RandomDraws":
        """Returns draws for images of a shape [B, H, W, 3], with as many latents of the pool, if there is one."""
        columns = shape[2] // tokenizer.column_width
        latents_shape, sampled = (shape[0], columns, tokenizer.embed_dim), None
        if pool is not None:
            index = jax.random.randint(stream(key, "sampled"), shape[:1], 0, len(pool), jnp.int32)
            sampled = jnp.asarray(pool)[index]
        num_fakes = shape[0] if sampled is None else 2 * shape[0]
        return cls(
            posterior_noise=posterior_noise(stream(key, "posterior"), latents_shape, tokenizer.posterior_std),
            real_uniforms=jax.random.uniform(stream(key, "augment_real"), (shape[0], NUM_UNIFORMS), jnp.float32),
            fake_uniforms=jax.random.uniform(stream(key, "augment_fake"), (num_fakes, NUM_UNIFORMS), jnp.float32),
            sampled=sampled,
            real_key=stream(key, "view_real"),
            fake_key=stream(key, "view_fake"),
        )


class ActiveTerms(NamedTuple):
    """Which of the terms that start late are on: True if always, else a traced boolean."""

    semantic: Switch = True
    adversarial: Switch = True


def only_if(on: Switch, compute: Callable[[], tuple[Any, Any]], otherwise: Any) -> tuple[Any, Any]:
    """Returns compute() if `on`, else (zeros, otherwise) without computing.

    Args:
      on: whether to compute; True makes no branch in the program.
      compute: () → (values, state); traced.
      otherwise: the state if nothing is computed.
    """
    if on is True:
        return compute()

    def skip() -> tuple[Any, Any]:
        values, _ = jax.eval_shape(compute)
        return jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), values), otherwise

    return jax.lax.cond(on, compute, skip)
