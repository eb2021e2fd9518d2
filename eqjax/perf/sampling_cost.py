"""What sampling must compute and read: the floor that measured times are compared with.

Only matrix products count as operations (2 per multiplication and addition). Bytes are what slow memory must
deliver when nothing stays in caches: weights for every use, keys and values, modulations written and read.

Letters: B batch, R = B or 2B rows, L columns, T condition tokens, E width, W flow width, M evaluations.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from eqjax.generator.flow_head import TIME_FEATURES
from eqjax.sampling import sampler


@dataclasses.dataclass(frozen=True)
class Cost:
    """Floating-point operations, and bytes of slow memory."""

    flops: float
    bytes: float

    def __add__(self, other):
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def seconds(self, flops_per_second, bytes_per_second):
        """The floor: the longer of the two times."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def sampling_cost(generator, *, batch, num_columns, evaluations, guided=True):
    """{"condition", "transformer", "flow head": `Cost`} of drawing a batch of latents.

    Args:
      generator: a `Generator`; only its fields matter.
      batch: B.
      num_columns: L.
      evaluations: M per column, of the flow's solver (`flow.solver_table(…).times.size`).
      guided: with the null class.
    """
    g, item = generator, jnp.dtype(generator.dtype).itemsize
    rows = batch * (2 if guided else 1)
    e2, w2, tokens = g.width**2, g.flow_width**2, g.num_cond_tokens
    classes = min(batch + (1 if guided else 0), g.num_classes + 1)
    condition = Cost(2 * g.depth * 10 * e2 * tokens * classes, item * g.depth * 10 * e2)
    seen = min(g.window_size or num_columns, num_columns) + tokens
    column = Cost(
        rows * (2 * g.depth * (14 * e2 + 2 * g.width * seen) + 2 * g.latent_dim * g.width),
        item * g.depth * (14 * e2 + rows * 2 * g.width * seen),
    )
    wide = 3 * g.flow_depth + 2
    chunk = max(1, sampler.MODULATION_BYTES // (rows * wide * g.flow_width * item))
    modulations = Cost(
        evaluations * (rows * 2 * w2 * wide + 2 * (TIME_FEATURES * g.flow_width + w2))
        + rows * 2 * g.width * g.flow_width,
        item * (math.ceil(evaluations / chunk) * w2 * wide + 2 * evaluations * rows * wide * g.flow_width),
    )
    ends = g.latent_dim * g.flow_width
    denoise = Cost(
        evaluations * (rows * (4 * g.flow_depth * w2 + 2 * ends) + batch * 2 * ends),
        evaluations * item * (2 * g.flow_depth * w2 + 2 * ends),
    )
    head = modulations + denoise
    return {
        "condition": condition,
        "transformer": Cost(num_columns * column.flops, num_columns * column.bytes),
        "flow head": Cost(num_columns * head.flops, num_columns * head.bytes),
    }


def compiled_cost(function, *args):
    """`Cost` by the compiler's count, of a function without loops: it counts a loop's body once."""
    analysis = jax.jit(function).lower(*args).compile().cost_analysis()
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    return Cost(analysis.get("flops", 0.0), analysis.get("bytes accessed", 0.0))
