"""Panoramas of any length: columns are sampled and decoded as they are needed, in constant memory."""

from collections.abc import Iterator, Mapping
import copy
import dataclasses
import functools
import json
import os
import threading
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from eqjax import npz
from eqjax.differences import check_equal
from eqjax.fingerprint import fingerprint
from eqjax.io import atomic_write
from eqjax.messages import shorten
from eqjax.model import Model
from eqjax.pretrained import module_to_dict
from eqjax.rules import Instance, Integer, Items
from eqjax.sampling import chunks, memory, panorama_state, sampler
from eqjax.sampling.checks import NUM_COLUMNS, SEED, SEEDS, as_seeds, check_labels, check_prefix
from eqjax.sampling.class_schedule import TRANSITION, ClassSchedule, parse_classes
from eqjax.sampling.options import SamplingKeywords, SamplingOptions
from eqjax.sampling.streaming import StreamDecoder

_STRIP_COLUMNS = Integer(least=1, most=2**16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanoramaOptions(SamplingOptions):
    """Everything that determines a panorama besides the model and the prefix; all values have a JSON form.

    Attributes:
      labels: integer classes along the columns.
      class_columns: columns of each class; None for the last one: to the end.
      seed: seed of a single panorama.
      seeds: seeds of several panoramas, which replace `seed`; None: a single one.
      num_columns: columns in all; None: without end.
      transition: columns over which one class blends into the next.
      strip_columns: columns sampled at a time, ≥ 1.

    Raises:
      ValueError: an option is out of its range.
    """

    labels: tuple[int, ...]
    class_columns: tuple[int | None, ...] = (None,)
    seed: Any = 0
    seeds: Any = None
    num_columns: Any = None
    transition: Any = 0
    strip_columns: Any = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "labels": Items(Integer(least=0), least=1),
            "class_columns": Items(Integer(least=1, optional=True), least=1),
            "seed": SEED,
            "seeds": dataclasses.replace(SEEDS, optional=True),
            "num_columns": dataclasses.replace(NUM_COLUMNS, optional=True, none_means="without end"),
            "transition": TRANSITION,
            "strip_columns": _STRIP_COLUMNS,
        }
        for name, rule in rules.items():
            object.__setattr__(self, name, rule.check(name, getattr(self, name)))
        self.class_schedule().check_length(self.num_columns)

    def class_schedule(self) -> ClassSchedule:
        """Returns the schedule of the classes."""
        return ClassSchedule(self.class_columns, self.transition)

    @property
    def row_seeds(self) -> tuple[int, ...]:
        """Seeds of all panoramas."""
        return (self.seed,) if self.seeds is None else self.seeds

    def leading_scales(self, training_columns: int) -> Float[np.ndarray, "n"]:
        """Returns the guidance scales of the first columns; all later columns have the last one.

        Args:
          training_columns: columns of a training image, over which a "linear" scale rises in a panorama without end.
        """
        if isinstance(self.guidance_scale, tuple) or self.guidance_schedule == "constant":
            return np.atleast_1d(np.asarray(self.guidance_scale, np.float32))
        return np.asarray(self.guidance_scales(self.num_columns or training_columns))


def panorama(
    model: Any,
    labels: Any = None,
    *,
    seed: Any = 0,
    seeds: Any = None,
    num_columns: Any = None,
    transition: Any = 0,
    prefix: Any = None,
    strip_columns: Any = 16,
    state: str | os.PathLike[str] | Mapping[str, np.ndarray] | None = None,
    **options: Unpack[SamplingKeywords],
) -> "Panorama":
    """Samples an image of any length, strip by strip.

    With a tokenizer of limited reach (`Tokenizer.halo_columns` is not None) and with `num_columns`, the strips joined
    equal the image of `model.sample(labels, seeds=[seed], …)` with the same arguments, up to rounding. Other
    tokenizers decode overlapping windows of the training width, which fade linearly into each other.

    Several threads may take strips from one panorama: every strip is returned once, in order.

    Args:
      model: a `Model` with tokenizer and generator.
      labels: one class, or [(class, columns), …]; None for the last number of columns: to the end.
      seed: an integer.
      seeds: integers [B] instead, for B images at once; image i is that of seeds[i] alone.
      num_columns: columns in all; None: without end.
      transition: columns over which one class blends into the next.
      prefix: scaled latents [1, P, D], or [B, P, D], with which the images begin.
      strip_columns: columns sampled at a time, ≥ 1; also the width of the strips if the tokenizer has a halo.
      state: a file that `Panorama.save` wrote, or the arrays of `Panorama.state`, to resume from; it replaces all
        other arguments but `model`.
      **options: fields of `SamplingOptions`, with its defaults: guidance_scale (1.0), guidance_schedule ("linear"),
        num_flow_steps (100), solver ("euler"), time_grid ("uniform"), temperature (1.0), max_position (None).
        A "linear" guidance scale rises over num_columns; without end it rises over the columns of one training
        image and stays at guidance_scale. Scales per column may have any length; the last one applies to all later
        columns.

    Returns:
      A `Panorama`, an iterator over strips.

    Raises:
      ValueError: an argument is out of its range, the state is another model's, or neither labels nor a state is given.
      FileNotFoundError: there is no file `state`.
      TypeError: an argument is of another type, or unknown.
      MemoryError: the panoramas are too many for the memory.

    Example:
      >>> import eqjax
      >>> model = eqjax.load_pretrained("photos")
      >>> strips = eqjax.panorama(model, [("flower", 12), ("rocket", None)], transition=4, num_flow_steps=2)
      >>> next(strips).shape
      (64, 256, 3)
    """
    Instance(Model, "a model, as eqjax.load_pretrained returns it").check("model", model)
    if state is not None:
        if labels is not None:
            raise ValueError("a saved panorama contains its classes and options: give either labels or state.")
        return Panorama.restore(model, state)
    if labels is None:
        raise ValueError("a panorama begins with labels, or resumes from a state: give one of the two.")
    classes = labels if isinstance(labels, list | tuple) else [(labels, None)]
    names, class_columns = parse_classes(classes)
    panorama_options = PanoramaOptions(
        labels=tuple(np.asarray(model.labels(names)).tolist()),
        class_columns=class_columns,
        seed=seed,
        seeds=None if seeds is None else as_seeds(seeds),
        num_columns=num_columns,
        transition=transition,
        strip_columns=strip_columns,
        **options,
    )
    return Panorama.begin(model, panorama_options, prefix)


class Panorama:
    """Iterator over strips, uint8 [H, w, 3], or [B, H, w, 3] with several seeds; `panorama` makes it.

    Attributes:
      options: the `PanoramaOptions`.
    """

    def __init__(self, model: Model, options: PanoramaOptions) -> None:
        """Prepares everything but the state between columns; use `begin` or `restore`."""
        generator, tokenizer = model.require("generator"), model.require("tokenizer")
        slots = chunks.cache_columns(generator, options.num_columns)
        self.options, self._model = options, model
        self._lock = threading.RLock()
        batch_size = len(options.row_seeds)
        self._batch_shape = () if options.seeds is None else (batch_size,)
        labels = jnp.tile(jnp.asarray(options.labels), (batch_size, 1))  # [B, S]
        check_labels(generator, labels)
        memory.check_latents(generator, labels.shape, slots, options.is_guided)
        self._schedule = options.class_schedule()
        self._scales = options.leading_scales(max(1, tokenizer.resolution // tokenizer.column_width))
        inputs = sampler.SamplerInputs.create(generator, model.generator_params, labels, options)
        first_classes = jax.tree.map(lambda a: a[0], self._schedule.at([0]))
        with model.with_precision():
            self._sampler, self._state = chunks.begin(inputs, first_classes, num_columns=slots)
        self._keys = jax.vmap(jax.random.key)(np.asarray(options.row_seeds))
        self._decoder = StreamDecoder(
            tokenizer, model.tokenizer_params, model.latent_scale, options.strip_columns, self._batch_shape
        )
        self._sampled = 0  # Columns whose latents the decoder has.
        self._ready: list[UInt8[np.ndarray, "*B H w 3"]] = []

    @classmethod
    def begin(cls, model: Model, options: PanoramaOptions, prefix: Any = None) -> "Panorama":
        """Returns a panorama before its first column.

        Args:
          model: a `Model` with tokenizer and generator.
          options: the options.
          prefix: scaled latents [B, P, D] with which the images begin.

        Raises:
          ValueError: the options do not fit the model, or the prefix has another shape.
        """
        made = cls(model, options)
        if prefix is not None:
            check_prefix(model.require("generator"), len(made._keys), options.num_columns, prefix)
            if np.shape(prefix)[1]:
                with model.with_precision():
                    made._prefill(np.asarray(prefix, np.float32))
        return made

    def _prefill(self, latents: Float[np.ndarray, "B P D"]) -> None:
        """Fills the KV cache with known columns, and decodes them."""
        self._sampled = latents.shape[1]
        self._state = chunks.prefill_columns(self._sampler, self._state, latents, self._schedule)
        self._ready = self._decoder.push(self._to_rows(latents), last=self._sampled == self.options.num_columns)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "*B H w 3"]]:
        return self

    def __next__(self) -> UInt8[np.ndarray, "*B H w 3"]:
        with self._lock, self._model.with_precision():
            while not self._ready:
                if self.options.num_columns is not None and self._sampled >= self.options.num_columns:
                    raise StopIteration
                before = self._state, self._sampled, copy.copy(self._decoder)
                try:
                    latents = self._sample_strip()
                    self._ready = self._decoder.push(latents, last=self._sampled == self.options.num_columns)
                except BaseException:  # Such as Ctrl-C: the next call begins the same columns again.
                    self._state, self._sampled, self._decoder = before
                    raise
            return self._ready.pop(0)

    @property
    def emitted(self) -> int:
        """Columns returned so far."""
        with self._lock:
            waiting = sum(strip.shape[-2] for strip in self._ready)
            return self._decoder.emitted - waiting // self._model.require("tokenizer").column_width

    def _to_rows(self, latents: Float[np.ndarray, "B n D"]) -> Float[np.ndarray, "*B n D"]:
        """Returns latents as the decoder expects them: [n, D], or [B, n, D] with several seeds."""
        return latents if self._batch_shape else latents[0]

    def _sample_strip(self) -> Float[np.ndarray, "*B n D"]:
        """Samples the latents of the next columns."""
        size, end = self.options.strip_columns, self.options.num_columns
        count = size if end is None else min(size, end - self._sampled)
        indices = self._sampled + np.arange(size)
        scales = self._scales[np.minimum(indices, len(self._scales) - 1)]
        columns = sampler.ColumnInputs(scales, self._schedule.at(indices + 1))
        state, latents = chunks.sample_chunk(self._sampler, self._state, self._keys, columns, np.int32(count))
        rows = self._to_rows(np.asarray(latents)[:, :count])
        self._state, self._sampled = state, self._sampled + count
        return rows

    def state(self) -> dict[str, np.ndarray]:
        """Returns everything that the rest of the image depends on besides the model; the arrays are small."""
        with self._lock:
            arrays = {f"decoder_{name}": array for name, array in self._decoder.state().items()}
            for name, leaf in (
                ("context", self._state.context),
                ("cache_keys", self._state.cache.keys),
                ("cache_values", self._state.cache.values),
            ):
                arrays[name] = np.asarray(leaf.astype(jnp.float32))
            empty = np.zeros((*self._batch_shape, self._model.require("tokenizer").resolution, 0, 3), np.uint8)
            arrays["ready"] = np.concatenate([empty, *self._ready], axis=-2)
            about = {
                "format": panorama_state.FORMAT,
                "options": self.options.to_dict(),
                "sampled": self._sampled,
                "next_column": int(self._state.column),
                "model": self._identity,
            }
            return {**arrays, "about": npz.signed(arrays, about)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `state` to a file (.npz) atomically; `panorama(model, state=path)` resumes from it."""
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            arrays: dict[str, Any] = self.state()
            np.savez_compressed(file, **arrays)

    @classmethod
    def restore(cls, model: Model, state: str | os.PathLike[str] | Mapping[str, np.ndarray]) -> "Panorama":
        """Returns a panorama that resumes from a `state`, or from a file of one.

        Args:
          model: the model that sampled it.
          state: arrays of `state`, or the path of a file that `save` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is not a saved panorama, or belongs to another model.
        """
        with panorama_state.open_state(state, _STATE_ARRAYS) as saved:
            try:
                about = saved.about
                identity = _identity(model)
                check_equal(
                    about["model"],
                    identity,
                    f"{saved.source} belongs to another model; load that one, or begin another panorama:",
                    found_name="saved",
                    expected_name="this model",
                )
                options = {name: _to_tuple(value) for name, value in about["options"].items()}
                made = cls(model, PanoramaOptions(**options))
                made._identity = identity
                made._restore(saved)
            except (KeyError, TypeError, AttributeError, OverflowError) as error:
                raise ValueError(
                    f"{saved.source} is not a saved panorama of format {panorama_state.FORMAT!r} "
                    f"({shorten(str(error))})."
                ) from error
        return made

    def _restore(self, saved: panorama_state.SavedState) -> None:
        """Takes over the state between columns.

        Raises:
          ValueError: numbers or shapes contradict each other or the model.
        """
        generator, num_columns = self._model.require("generator"), self.options.num_columns
        sampled, next_column = (_COLUMN.check(name, saved.about[name]) for name in ("sampled", "next_column"))
        if sampled != next_column or (num_columns is not None and sampled > num_columns):
            raise ValueError(
                f"{saved.source} is not a saved panorama: {sampled} columns are sampled, and the next one is "
                f"{next_column}."
            )
        first = self._state
        leaves = dict(zip(_SAMPLER_ARRAYS, (first.context, first.cache.keys, first.cache.values), strict=True))
        expected: dict[str, Any] = {name: ("f", [(n, n) for n in leaf.shape]) for name, leaf in leaves.items()}
        expected |= {f"decoder_{name}": value for name, value in self._decoder.expected_state(sampled).items()}
        batch, tokenizer = [(n, n) for n in self._batch_shape], self._model.require("tokenizer")
        widths = (0, sampled * tokenizer.column_width)
        expected["ready"] = ("u", [*batch, (tokenizer.resolution,) * 2, widths, (3, 3)])
        arrays = saved.arrays(expected)
        context, keys, values = (jnp.asarray(arrays[name], generator.dtype) for name in _SAMPLER_ARRAYS)
        self._state = sampler.SamplerState(jnp.int32(next_column), context, sampler.KVCache(keys, values))
        self._sampled, ready = sampled, arrays["ready"]
        self._ready = [ready] if ready.size else []
        self._decoder.restore({name: arrays[f"decoder_{name}"] for name in StreamDecoder.STATE}, saved.source)

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return _identity(self._model)


# Arrays of a `SamplerState` in a saved state, and all arrays of one.
_SAMPLER_ARRAYS = ("context", "cache_keys", "cache_values")
_COLUMN = Integer(least=-(2**63), most=2**63)  # Whether they fit is checked together.
_STATE_ARRAYS = (*_SAMPLER_ARRAYS, "ready", *(f"decoder_{name}" for name in StreamDecoder.STATE))


def _identity(model: Model) -> dict[str, Any]:
    """Returns JSON values that identify a model: fields of both modules, latent scale, fingerprints of the weights."""
    identity = {
        "latent_scale": float(model.latent_scale),
        "tokenizer": module_to_dict(model.require("tokenizer")),
        "tokenizer_weights": fingerprint(model.tokenizer_params),
        "generator": module_to_dict(model.require("generator")),
        "generator_weights": fingerprint(model.generator_params),
    }
    return json.loads(json.dumps(identity))


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
