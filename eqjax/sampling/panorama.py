"""Panoramas of any length: columns are sampled and decoded as they are needed, in constant memory."""

from collections.abc import Iterator, Mapping
import copy
import dataclasses
import functools
import os
import threading
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from eqjax import npz
from eqjax.differences import check_equal
from eqjax.generator import KVCache
from eqjax.io import atomic_write
from eqjax.messages import shorten
from eqjax.model import Model
from eqjax.rules import Instance, Integer
from eqjax.sampling import chunks, memory, panorama_state, strips
from eqjax.sampling.checks import as_seeds, check_labels, check_prefix
from eqjax.sampling.class_schedule import parse_classes
from eqjax.sampling.options import SamplingKeywords
from eqjax.sampling.panorama_options import PanoramaOptions
from eqjax.sampling.sampler import SamplerInputs
from eqjax.sampling.steering import PanoramaSteering
from eqjax.sampling.streaming import StreamDecoder


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
        num_flow_steps (100), solver ("euler"), time_grid ("uniform"), temperature (1.0), max_position (None),
        modulation_times (None), parallel_steps (None), parallel_tolerance (0.0001),
        gpu_kernels ("auto").
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
      (128, 256, 3)
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
        labels = np.tile(np.asarray(options.labels, np.int32), (batch_size, 1))  # [B, S]
        check_labels(generator, labels)
        at_once = options.modulations_at_once
        memory.check_latents(generator, labels.shape, slots, options.is_guided, modulations_at_once=at_once)
        self._schedule = options.class_schedule()
        self._training_columns = max(1, tokenizer.resolution // tokenizer.column_width)
        self._inputs = SamplerInputs.create(generator, model.generator_params, labels, options)
        self._steering = PanoramaSteering()
        with model.with_precision():
            self._sampler = strips.begin(self._inputs)
            self._state = strips.first_state(generator, batch_size, options.is_guided, slots)
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
        self._state = strips.prefill(self._sampler, self._state, latents, self._schedule)
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
        scales, classes = self.options.scales_at(indices, self._training_columns), self._schedule.at(indices)
        if self._steering.guidance_scale is not None:
            scales = np.full(size, self._steering.guidance_scale, np.float32)
        if self._steering.labels is not None:
            classes = self._steering.blend(size)
        state, latents = strips.sample_strip(self._sampler, self._state, self._keys, scales, classes, np.int32(count))
        rows = self._to_rows(np.asarray(latents)[:, :count])
        self._state, self._sampled = state, self._sampled + count
        return rows

    @property
    def sampled(self) -> int:
        """Columns sampled so far, returned or not, which `steer` changes no more."""
        with self._lock:
            return self._sampled

    def steer(
        self, labels: Any = None, *, mix: Any = None, guidance_scale: Any = None, temperature: Any = None
    ) -> None:
        """Changes how the image goes on, from the next sampled column on; what is not given stays as it is.

        It may be called between any two strips, any number of times, and compiles nothing. Columns up to `sampled` stay
        as they are: a strip is decoded together with the columns behind it that the tokenizer sees (`halo_columns`),
        so about as many are sampled ahead of the strip that was returned last.

        Args:
          labels: a class, or a pair of classes (first, second), by names or integers. It ends the schedule of classes.
          mix: share of the second class, 0 … 1; 0 until it is given.
          guidance_scale: scale of all columns from here on, ≥ 0.
          temperature: scale on the initial noise, ≥ 0.

        Raises:
          ValueError: a class is unknown, or a value out of its range; there is a mix of one class; nothing is given; or
            there is a guidance scale other than 1 and the panorama was begun without guidance. Guidance needs the rows
            of the null class from the first column on: begin with a guidance_scale other than 1, and steer to 1 where
            none is wanted.
          TypeError: an argument is of another type.

        Example:
          >>> import eqjax
          >>> model = eqjax.load_pretrained("photos")
          >>> strips = eqjax.panorama(model, "flower", guidance_scale=2.0, num_flow_steps=2)
          >>> first = next(strips)
          >>> strips.steer(("flower", "rocket"), mix=0.5)  # Half a flower.
          >>> strips.steer(mix=1.0, guidance_scale=3.0)  # A rocket.
          >>> next(strips).shape
          (128, 256, 3)
        """
        with self._lock:
            steering = self._steering.change(
                self._model, self.options.is_guided, labels, mix, guidance_scale, temperature
            )
            self._apply(steering)

    def _apply(self, steering: PanoramaSteering) -> None:
        """Makes the sampler of a steering, with the programs that made the first one."""
        inputs, labels = self._inputs, steering.labels
        if steering.temperature is not None:
            inputs = dataclasses.replace(inputs, temperature=steering.temperature)
        with self._model.with_precision():
            if labels is None:
                self._sampler = strips.begin(inputs)
            else:
                self._sampler = steering.sampler(inputs)
        self._steering = steering

    def state(self) -> dict[str, np.ndarray]:
        """Returns everything that the rest of the image depends on besides the model; the arrays are small."""
        with self._lock:
            arrays = {f"decoder_{name}": array for name, array in self._decoder.state().items()}
            for name, leaf in (
                ("latent", self._state.latent),
                ("cache_keys", self._state.cache.keys),
                ("cache_values", self._state.cache.values),
            ):
                arrays[name] = np.asarray(leaf).astype(np.float32)
            empty = np.zeros((*self._batch_shape, self._model.require("tokenizer").resolution, 0, 3), np.uint8)
            arrays["ready"] = np.concatenate([empty, *self._ready], axis=-2)
            about = {
                "format": panorama_state.FORMAT,
                "options": self.options.to_dict(),
                "steering": self._steering.to_dict(),
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
                identity = panorama_state.identity(model)
                check_equal(
                    about["model"],
                    identity,
                    f"{saved.source} belongs to another model; load that one, or begin another panorama:",
                    found_name="saved",
                    expected_name="this model",
                )
                options = {name: tuple(v) if isinstance(v, list) else v for name, v in about["options"].items()}
                made = cls(model, PanoramaOptions(**options))
                made._identity = identity
                made._restore(saved)
                steering = PanoramaSteering().change(model, made.options.is_guided, **about["steering"])
                if steering != PanoramaSteering():
                    made._apply(steering)
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
        leaves = dict(zip(_SAMPLER_ARRAYS, (first.latent, first.cache.keys, first.cache.values), strict=True))
        expected: dict[str, Any] = {name: ("f", [(n, n) for n in leaf.shape]) for name, leaf in leaves.items()}
        expected |= {f"decoder_{name}": value for name, value in self._decoder.expected_state(sampled).items()}
        batch, tokenizer = [(n, n) for n in self._batch_shape], self._model.require("tokenizer")
        widths = (0, sampled * tokenizer.column_width)
        expected["ready"] = ("u", [*batch, (tokenizer.resolution,) * 2, widths, (3, 3)])
        arrays = saved.arrays(expected)
        latent, keys, values = (arrays[name] for name in _SAMPLER_ARRAYS)
        cache = KVCache(jnp.asarray(keys, generator.dtype), jnp.asarray(values, generator.dtype))
        self._state = strips.StripState(np.int32(next_column), latent, cache)
        self._sampled, ready = sampled, arrays["ready"]
        self._ready = [ready] if ready.size else []
        self._decoder.restore({name: arrays[f"decoder_{name}"] for name in StreamDecoder.STATE}, saved.source)

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return panorama_state.identity(self._model)


# Arrays of a `StripState` in a saved state, and all arrays of one.
_SAMPLER_ARRAYS = ("latent", "cache_keys", "cache_values")
_COLUMN = Integer(least=-(2**63), most=2**63)  # Whether they fit is checked together.
_STATE_ARRAYS = (*_SAMPLER_ARRAYS, "ready", *(f"decoder_{name}" for name in StreamDecoder.STATE))
