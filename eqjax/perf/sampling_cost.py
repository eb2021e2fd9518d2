"""Lower bounds on the cost of sampling, which measured times are compared with.

FLOPs are those of matrix products, 2 per multiplication and addition. Bytes are the traffic of slow memory if
nothing stays in caches: weights for every use, keys and values, modulations written and read.

Letters: B batch, R = B or 2B rows, L columns, T condition tokens, E width, W flow width, M velocity evaluations.
"""

import dataclasses
import math

import jax.numpy as jnp

from eqjax.generator import Generator
from eqjax.generator.flow_head import TIME_FEATURES
from eqjax.sampling import sampler


@dataclasses.dataclass(frozen=True)
class Cost:
    """The arithmetic and memory traffic that a computation needs at least.

    Attributes:
      flops: floating-point operations.
      bytes: bytes read from and written to slow memory.
    """

    flops: float
    bytes: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Returns the least time on a machine: the longer of computing and moving bytes.

        Example:
          >>> Cost(flops=2e12, bytes=1e12).seconds(flops_per_second=1e12, bytes_per_second=1e12)
          2.0
        """
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def sampling_cost(
    generator: Generator, *, batch_size: int, num_columns: int, num_evaluations: int, guided: bool = True
) -> dict[str, Cost]:
    """Returns the cost of sampling a batch of latents, by part of the generator.

    Args:
      generator: a generator; only its fields matter.
      batch_size: B.
      num_columns: L.
      num_evaluations: M per column, `flow.solver_table(…).times.size`.
      guided: whether classifier-free guidance doubles the rows, R = 2B.

    Returns:
      {"condition", "transformer", "flow head"}: the `Cost` of all columns.

    Example:
      >>> cost = sampling_cost(Generator(), batch_size=1, num_columns=16, num_evaluations=100)
      >>> round(sum(part.flops for part in cost.values()) / 1e9)  # GFLOP of an image of the L size.
      711
    """
    g, item_size = generator, jnp.dtype(generator.dtype).itemsize
    rows = batch_size * (2 if guided else 1)
    e2, w2, tokens = g.width**2, g.flow_width**2, g.num_cond_tokens
    classes = min(batch_size + (1 if guided else 0), g.num_classes + 1)
    condition = Cost(2 * g.depth * 10 * e2 * tokens * classes, item_size * g.depth * 10 * e2)
    seen = min(g.window_size or num_columns, num_columns) + tokens
    column = Cost(
        rows * (2 * g.depth * (14 * e2 + 2 * g.width * seen) + 2 * g.latent_dim * g.width),
        item_size * g.depth * (14 * e2 + rows * 2 * g.width * seen),
    )
    wide = 3 * g.flow_depth + 2
    chunk = max(1, sampler.MODULATION_BYTES // (rows * wide * g.flow_width * item_size))
    modulations = Cost(
        num_evaluations * (rows * 2 * w2 * wide + 2 * (TIME_FEATURES * g.flow_width + w2))
        + rows * 2 * g.width * g.flow_width,
        item_size * (math.ceil(num_evaluations / chunk) * w2 * wide + 2 * num_evaluations * rows * wide * g.flow_width),
    )
    ends = g.latent_dim * g.flow_width
    denoise = Cost(
        num_evaluations * (rows * (4 * g.flow_depth * w2 + 2 * ends) + batch_size * 2 * ends),
        num_evaluations * item_size * (2 * g.flow_depth * w2 + 2 * ends),
    )
    head = modulations + denoise
    return {
        "condition": condition,
        "transformer": Cost(num_columns * column.flops, num_columns * column.bytes),
        "flow head": Cost(num_columns * head.flops, num_columns * head.bytes),
    }
