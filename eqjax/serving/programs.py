"""The compiled programs of the engine, which have a row for every slot: they draw for as many viewers at once.

Rows do not see each other, so what a row holds, and which row a viewer is given, changes nothing in the others: on a
CPU not a bit. Between two calls a viewer's state is on the host; it is small.

Letters: S slots, C columns sampled in one call at most, D latent size, H height of images, K classes in the table.
"""

import collections
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int, UInt32
import numpy as np

from eqjax import flow
from eqjax.generator import Condition, Generator
from eqjax.model import Model
from eqjax.sampling import chunks, strips
from eqjax.sampling.class_schedule import Blend, ClassSchedule
from eqjax.sampling.options import SamplingOptions
from eqjax.sampling.sampler import Sampler, SamplerInputs, compute_params
from eqjax.sampling.shortcuts import Shortcuts
from eqjax.sampling.streaming import Window
from eqjax.serving.steering import Steering
from eqjax.tokenizer import Tokenizer
from eqjax.tokenizer.windows import decode_window, encode_window
from eqjax.typing import AnyArray, Params, Scalar

# Columns of the widest photograph.
MAX_PHOTO_COLUMNS = 64
# Classes whose conditions are kept, unless there are fewer, or more slots.
_TABLE_CLASSES = 64


@dataclasses.dataclass(frozen=True)
class Row:
    """What one slot samples in one call.

    Attributes:
      state: the state before the columns, of one image; on the host.
      key: data of the random key.
      steering: what governs the columns.
      count: number of columns, 0 … C.
    """

    state: strips.StripState
    key: UInt32[np.ndarray, "..."]
    steering: Steering
    count: int


class Programs:
    """The programs of one model, with their constant arguments on the device.

    Attributes:
      num_slots: S.
      strip_columns: C.
      first_state: the state before column 0, on the host.
    """

    def __init__(self, model: Model, options: SamplingOptions, num_slots: int, strip_columns: int) -> None:
        """Prepares the programs; what they need is compiled by their first calls.

        Args:
          model: a model with tokenizer and generator.
          options: solver, its steps, and the bound of positions.
          num_slots: S.
          strip_columns: C.
        """
        self._model, self.num_slots, self.strip_columns = model, num_slots, strip_columns
        self._generator, self._tokenizer = model.require("generator"), model.require("tokenizer")
        self._inputs = SamplerInputs.create(
            self._generator, model.generator_params, np.zeros((1, 1), np.int32), options
        )
        self._params = jax.device_put(compute_params(self._generator, model.generator_params))
        self._decoder_params = jax.device_put(model.tokenizer_params)
        self._table = _ConditionTable(self._generator, self._params, max(_TABLE_CLASSES, 2 * num_slots))
        state = strips.first_state(self._generator, 1, True, chunks.cache_columns(self._generator, None))
        self.first_state: strips.StripState = jax.tree.map(np.asarray, state)
        self._idle = Row(self.first_state, self.key(0), Steering(0, 0), 0)

    def key(self, seed: int) -> UInt32[np.ndarray, "..."]:
        """Returns the data of the random key of a seed."""
        return np.asarray(jax.random.key_data(jax.random.key(seed)))

    def sample(self, rows: Sequence[Row]) -> list[tuple[strips.StripState, Float[np.ndarray, "n D"]]]:
        """Samples columns for up to S viewers; returns the state after them, and their latents.

        Args:
          rows: what each of them samples.
        """
        padded = [*rows, *[self._idle] * (self.num_slots - len(rows))]
        steerings = [row.steering for row in padded]
        pairs = [_classes(steering) for steering in steerings]
        table, null, places = self._table.places([label for pair in pairs for label in pair])
        slots = _Slots(
            state=jax.tree.map(lambda *leaves: np.stack(leaves), *(row.state for row in padded)),
            key=np.stack([row.key for row in padded]),
            classes=np.asarray(places, np.int32).reshape(-1, 2),
            mix=np.asarray([0.0 if s.mix == 1 else s.mix for s in steerings], np.float32),
            guidance_scale=np.asarray([s.guidance_scale for s in steerings], np.float32),
            temperature=np.asarray([s.temperature for s in steerings], np.float32),
            count=np.asarray([row.count for row in padded], np.int32),
        )
        shared = _Shared(self._params, self._inputs.solver_table, self._inputs.max_position, table, null)
        made = _sample(self._generator, self.strip_columns, shared, slots)
        states, latents = jax.tree.map(np.asarray, made)
        return [
            (jax.tree.map(lambda leaf, i=i: leaf[i].copy(), states), latents[i, 0, : row.count].copy())
            for i, row in enumerate(rows)
        ]

    def prefill(
        self, state: strips.StripState, latents: Float[np.ndarray, "P D"], steering: Steering
    ) -> strips.StripState:
        """Returns a viewer's state after the columns of a photograph.

        Args:
          state: the state before column 0.
          latents: the columns.
          steering: its classes are those of the photograph.
        """
        first, second = _classes(steering)
        table, null, places = self._table.places([first, second])
        mix = np.float32(0.0 if steering.mix == 1 else steering.mix)
        shared = _Shared(self._params, self._inputs.solver_table, self._inputs.max_position, table, null)
        made = _bind(self._generator, shared, np.asarray(places, np.int32), mix, np.float32(1))
        done = strips.prefill(made, state, latents[None], ClassSchedule())
        return jax.tree.map(np.array, done)

    def decode(self, windows: Sequence[Window]) -> list[Float[np.ndarray, "H w 3"]]:
        """Decodes up to S windows to float pixels."""
        latents = np.zeros((self.num_slots, *windows[0].latents.shape), np.float32)
        counts = np.ones(self.num_slots, np.int32)
        for i, window in enumerate(windows):
            latents[i], counts[i] = window.latents, window.count
        decoded = np.asarray(_decode(self._tokenizer, self._decoder_params, latents, counts))
        return [decoded[i] for i in range(len(windows))]

    def encode(self, photo: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "2 P D"]:
        """Returns the scaled latents of a photograph, and of it in the mirror.

        Args:
          photo: pixels in [-1, 1], at most MAX_PHOTO_COLUMNS columns wide.
        """
        count = photo.shape[1] // self._tokenizer.column_width
        both = np.stack([photo, photo[:, ::-1]])
        space = (MAX_PHOTO_COLUMNS - count) * self._tokenizer.column_width
        both = np.pad(both, ((0, 0), (0, 0), (0, space), (0, 0)))
        latents = encode_window(self._tokenizer, self._decoder_params, both, np.int32(count))
        return np.asarray(latents)[:, :count] * np.float32(self._model.latent_scale)

    def state_bytes(self) -> int:
        """Returns the bytes of one viewer's state between two strips of one side."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._idle.state))


@flax.struct.dataclass
class _Shared:
    """Arguments that all rows share.

    Attributes:
      params: parameters of the generator, in its compute dtype.
      solver_table: the flow solver.
      max_position: bound of positions.
      table: `Condition` of classes, leaves [K, …].
      null: `Condition` of the null class.
    """

    params: Params
    solver_table: flow.SolverTable
    max_position: Scalar
    table: Condition
    null: Condition


@flax.struct.dataclass
class _Slots:
    """Arguments with a row for every slot; see `Row`.

    Attributes:
      classes: places of the first and the second class in the table.
      mix: share of the second class, 0 … 1.
    """

    state: strips.StripState
    key: UInt32[AnyArray, "S ..."]
    classes: Int[AnyArray, "S 2"]
    mix: Float[AnyArray, "S"]
    guidance_scale: Float[AnyArray, "S"]
    temperature: Float[AnyArray, "S"]
    count: Int[AnyArray, "S"]


def _classes(steering: Steering) -> tuple[int, int]:
    """Returns the classes that are interpolated; at a mix of 1 exactly the second one."""
    return (steering.second_class if steering.mix == 1 else steering.first_class), steering.second_class


def _sampler(
    generator: Generator, shared: _Shared, classes: Int[AnyArray, "2"], mix: Float[AnyArray, ""], temperature: Scalar
) -> Sampler:
    """Returns the sampler of one viewer: a row of a blend of two classes, and a row of the null class."""

    def blend(table: jax.Array, null: jax.Array, axis: int) -> jax.Array:
        first, second = table[classes[0]], table[classes[1]]
        mixed = first + jnp.asarray(mix, table.dtype) * (second - first)
        return jnp.stack([mixed, null], axis)[None]  # One segment.

    table, null = shared.table, shared.null
    conditions = Condition(
        blend(table.keys, null.keys, 1), blend(table.values, null.values, 1), blend(table.first, null.first, 0)
    )
    return Sampler(
        generator=generator,
        is_guided=True,
        params=shared.params,
        conditions=conditions,
        solver_table=shared.solver_table,
        temperature=temperature,
        max_position=shared.max_position,
        shortcuts=Shortcuts(None, None, None),
    )


_bind = jax.jit(_sampler, static_argnames="generator")


@functools.partial(jax.jit, static_argnames=("generator", "size"))
def _sample(
    generator: Generator, size: int, shared: _Shared, slots: _Slots
) -> tuple[strips.StripState, Float[jax.Array, "S 1 C D"]]:
    """Samples up to `size` columns in every slot."""

    def sample(slot: _Slots) -> tuple[strips.StripState, Float[jax.Array, "1 C D"]]:
        made = _sampler(generator, shared, slot.classes, slot.mix, slot.temperature)
        keys = jax.random.wrap_key_data(jnp.asarray(slot.key))[None]
        classes = Blend(jnp.zeros(size, jnp.int32), jnp.zeros(size))
        return strips.sample_strip(made, slot.state, keys, jnp.full(size, slot.guidance_scale), classes, slot.count)

    return jax.vmap(sample)(slots)


@functools.partial(jax.jit, static_argnames="tokenizer")
def _decode(
    tokenizer: Tokenizer, params: Params, latents: Float[AnyArray, "S C D"], counts: Int[AnyArray, "S"]
) -> Float[jax.Array, "S H W 3"]:
    """Decodes a window in every slot."""

    def decode(latents: jax.Array, count: jax.Array) -> jax.Array:
        return decode_window(tokenizer, params, latents[None], count, False)[0]

    return jax.vmap(decode)(jnp.asarray(latents), jnp.asarray(counts))


class _ConditionTable:
    """The conditions of the classes that were used last, computed one at a time, so that a class's never differ."""

    def __init__(self, generator: Generator, params: Params, capacity: int) -> None:
        """Prepares an empty table with room for `capacity` classes, or for all."""
        self._generator, self._params = generator, params
        self._null = _condition(generator, params, np.int32(generator.num_classes))
        size = min(capacity, generator.num_classes + 1)
        self._table = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), self._null)
        # Place of every class, the one used longest ago first; negative labels stand for places not yet used.
        self._places = collections.OrderedDict((-1 - i, i) for i in range(size))

    def places(self, labels: Sequence[int]) -> tuple[Condition, Condition, list[int]]:
        """Returns the table, the condition of the null class, and the places of classes in the table.

        Args:
          labels: classes, of which no more may be different than the table has room for.
        """
        for label in labels:
            if label in self._places:
                self._places.move_to_end(label)
        for label in labels:
            if label not in self._places:
                condition = _condition(self._generator, self._params, np.int32(label))
                place = self._places.popitem(last=False)[1]
                self._table = _put(self._table, condition, np.int32(place))
                self._places[label] = place
        return self._table, self._null, [self._places[label] for label in labels]


@functools.partial(jax.jit, static_argnames="generator")
def _condition(generator: Generator, params: Params, label: Int[AnyArray, ""]) -> Condition:
    """Returns the `Condition` of one class, leaves [depth, T, H, d] and [E]."""
    found: Any = generator.apply({"params": params}, jnp.asarray(label)[None], method="condition")
    return Condition(found.keys[:, 0], found.values[:, 0], found.first[0])


@functools.partial(jax.jit, donate_argnums=0)
def _put(table: Condition, condition: Condition, place: Int[AnyArray, ""]) -> Condition:
    """Puts a condition at a place of the table."""
    return jax.tree.map(lambda rows, row: rows.at[place].set(row), table, condition)
