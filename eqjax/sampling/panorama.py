"""Panoramas without end: columns are drawn and decoded as they come, in constant memory."""

import dataclasses
import functools
import json
import os
from typing import Any
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from eqjax import flow
from eqjax.io import atomic_write
from eqjax.sampling import sampler
from eqjax.sampling.checks import check_arrays, check_values, whole
from eqjax.sampling.class_schedule import ClassSchedule, parse_classes
from eqjax.sampling.streaming import StreamDecoder

# 2: latent_scale is compared, and there may be several seeds.
_FORMAT = "eqjax-panorama-2"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a panorama is made by; every value goes through JSON.

    Attributes: as the arguments of `panorama` that bear the same names; labels as integers.
    """

    labels: tuple[int, ...]
    class_columns: tuple[int | None, ...]
    seed: int
    seeds: tuple[int, ...] | None
    num_columns: int | None
    transition: int
    guidance_scale: float | tuple[float, ...]
    num_flow_steps: int
    solver: str
    time_grid: Any
    temperature: float
    max_position: int | None
    strip_columns: int


def panorama(
    model,
    labels=None,
    *,
    seed=0,
    seeds=None,
    num_columns=None,
    transition=0,
    guidance_scale=1.0,
    num_flow_steps=100,
    solver="euler",
    time_grid="uniform",
    temperature=1.0,
    max_position=None,
    prefix=None,
    strip_columns=16,
    state=None,
):
    """An image of any length, strip by strip.

        for strip in eqjax.panorama(model, "flower", guidance_scale=2.0): ...

    With a tokenizer that has a halo (`Tokenizer.halo_columns`) the strips together are the image
    that `model.sample(label, seeds=[seed], …)` gives. Otherwise images are decoded in overlapping
    windows of the training width, and go linearly from one to the next.

    Args:
      model: a `Model` with both halves.
      labels: one class, or [(class, columns), …], the last columns None: on and on.
      seed: an integer.
      seeds: integers [B] instead: B images at once, image i as with seeds[i] alone.
      num_columns: columns in all; None: without end.
      transition: columns over which a class goes softly into the next.
      guidance_scale: the same everywhere, or one per column (those after the end: as the last).
      num_flow_steps, solver, time_grid, temperature, max_position: as `eqjax.sample_latents`.
      prefix: scaled latents [1, P, D], or [B, P, D], that the images begin with.
      strip_columns: drawn at a time, ≥ 1; also the width of the strips where the tokenizer has a halo.
      state: a file that `Panorama.save` wrote, or what `Panorama.state` gave: goes on there; the other
        arguments but `model` are in it.

    Returns:
      A `Panorama`, an iterator.

    Raises:
      ValueError: an argument out of its range; a state of another model, or no state; neither labels
        nor state.
    """
    if state is not None:
        if labels is not None:
            raise ValueError("a saved panorama carries its classes and settings: give either labels or state.")
        return Panorama.restore(model, state)
    if labels is None:
        raise ValueError("a panorama begins with labels, or goes on from a state: give one of the two.")
    names, class_columns = ([labels], (None,)) if not isinstance(labels, list | tuple) else parse_classes(labels)
    scale = np.asarray(guidance_scale, np.float64)
    if not isinstance(time_grid, str):
        time_grid = tuple(float(t) for t in time_grid)
    settings = Settings(
        labels=tuple(int(n) for n in model.labels(names)),
        class_columns=tuple(None if n is None else whole("columns of a class", n) for n in class_columns),
        seed=whole("seed", seed),
        seeds=None if seeds is None else tuple(whole("seed", n) for n in np.atleast_1d(seeds)),
        num_columns=None if num_columns is None else whole("num_columns", num_columns),
        transition=whole("transition", transition),
        guidance_scale=tuple(scale.tolist()) if scale.ndim else scale.item(),
        num_flow_steps=whole("num_flow_steps", num_flow_steps),
        solver=solver,
        time_grid=time_grid,
        temperature=float(temperature),
        max_position=None if max_position is None else whole("max_position", max_position),
        strip_columns=whole("strip_columns", strip_columns),
    )
    made = Panorama(model, settings)
    made.begin(prefix)
    return made


class Panorama:
    """Iterator over strips, uint8 [H, w, 3], with several seeds [B, H, w, 3]; made by `panorama`.

    Attributes:
      settings: the `Settings`.
    """

    def __init__(self, model, settings):
        self.settings, self._model = settings, model
        generator, tokenizer = model.require("generator"), model.require("tokenizer")
        if settings.strip_columns < 1:
            raise ValueError(f"strip_columns={settings.strip_columns} must be ≥ 1.")
        if generator.window_size is None and settings.num_columns is None:
            raise ValueError("a generator without a window (window_size=None) sees all columns: give num_columns.")
        seeds = (settings.seed,) if settings.seeds is None else settings.seeds
        if not seeds:
            raise ValueError("seeds=() must be at least one integer.")
        self._batch = () if settings.seeds is None else (len(seeds),)
        labels = jnp.tile(jnp.asarray(settings.labels), (len(seeds), 1))  # [B, S]
        check_values(
            generator,
            labels,
            settings.num_columns,
            settings.guidance_scale,
            settings.temperature,
            settings.max_position,
        )
        self._schedule = ClassSchedule(settings.class_columns, settings.transition)
        self._schedule.check_length(settings.num_columns)
        plan = flow.solver_table(settings.solver, settings.num_flow_steps, settings.time_grid)
        position = 2**31 - 1 if settings.max_position is None else settings.max_position
        self._guidance = np.atleast_1d(np.asarray(settings.guidance_scale, np.float32))
        guided = sampler.is_guided(self._guidance)
        self._run = _make_sampler(
            generator, guided, model.generator_params, labels, plan, settings.temperature, np.int32(position)
        )
        self._keys = jax.vmap(jax.random.key)(np.asarray(seeds))
        self._decoder = StreamDecoder(
            tokenizer, model.tokenizer_params, model.latent_scale, settings.strip_columns, self._batch
        )
        self._column, self._ready = 0, []

    def begin(self, prefix=None):
        """Goes to the first column, or behind a prefix [B, P, D].

        Raises:
          ValueError: a prefix of another shape.
        """
        generator, settings = self._run.generator, self.settings
        check_arrays(generator, np.zeros(len(self._keys)), settings.num_columns or 2**31, None, self._keys, prefix)
        first = jax.tree.map(lambda a: a[0], self._schedule.at(np.arange(1)))
        self._state = _start(self._run, first, settings.num_columns or 2**31 - 1)
        if prefix is not None and prefix.shape[1]:
            latents = jnp.moveaxis(jnp.asarray(prefix, jnp.float32), 1, 0)
            self._column = latents.shape[0]
            after = self._schedule.at(np.arange(1, self._column + 1))
            self._state = _take(self._run, self._state, latents, after)
            self._ready = self._decoder.push(self._rows(latents), last=self._column == settings.num_columns)

    def __iter__(self):
        return self

    def __next__(self):
        total = self.settings.num_columns
        while not self._ready:
            if total is not None and self._column >= total:
                raise StopIteration
            latents = self._draw()
            self._ready = self._decoder.push(latents, last=self._column == total)
        return self._ready.pop(0)

    @property
    def emitted(self):
        """Columns given out so far."""
        waiting = sum(strip.shape[-2] for strip in self._ready)
        return self._decoder.emitted - waiting // self._model.tokenizer.column_width

    def _rows(self, latents):
        """Latents [n, B, D] as the decoder takes them: [n, D], with several seeds [B, n, D]."""
        return np.asarray(jnp.moveaxis(latents, 1, 0) if self._batch else latents[:, 0])

    def _draw(self):
        """The next columns' latents, [n, D] or [B, n, D]."""
        numbers = self._column + np.arange(self.settings.strip_columns)
        guidance = self._guidance[np.minimum(numbers, len(self._guidance) - 1)]
        columns = sampler.ColumnInputs(guidance, self._schedule.at(numbers + 1))
        self._state, latents = sampler.sample_chunk(self._run, self._state, self._keys, columns)
        # The last strip may be drawn beyond the end, so that all compile once.
        left = len(numbers) if self.settings.num_columns is None else self.settings.num_columns - self._column
        latents = self._rows(latents[:left])
        self._column += latents.shape[-2]
        return latents

    def state(self):
        """All that the rest of the image depends on besides the model: {name: array}, small."""
        arrays = {f"decoder_{name}": array for name, array in self._decoder.state().items()}
        for name, leaf in (
            ("context", self._state.context),
            ("ring_keys", self._state.cache.keys),
            ("ring_values", self._state.cache.values),
        ):
            arrays[name] = np.asarray(leaf.astype(jnp.float32))
        height = self._model.tokenizer.resolution
        empty = np.zeros((*self._batch, height, 0, 3), np.uint8)
        arrays["ready"] = np.concatenate([empty, *self._ready], axis=-2)
        about = dict(
            format=_FORMAT,
            settings=dataclasses.asdict(self.settings),
            column=self._column,
            drawn=int(self._state.column),
            model=fingerprint(self._model),
        )
        return {**arrays, "about": np.array(json.dumps(about))}

    def save(self, path):
        """Writes `state` to a file (.npz), whole or not at all; `panorama(model, state=path)` goes on."""
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **self.state())

    @classmethod
    def restore(cls, model, state):
        """A `Panorama` that goes on from a `state`, or a file of one.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: not a saved panorama, or one of another model: both are named.
        """
        where = "this state"
        if isinstance(state, str | os.PathLike):
            where, state = os.fspath(state), _read(state)
        given = fingerprint(model)
        try:
            about = json.loads(str(state["about"]))
            if about["format"] == "eqjax-panorama-1":
                raise ValueError(
                    f"{where} was saved by an earlier version of eqjax (format 'eqjax-panorama-1', this one reads "
                    f"{_FORMAT!r}): begin the panorama anew."
                )
            if about["format"] != _FORMAT:
                raise KeyError("format")
            _compare(where, about["model"], given)
            settings = Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in about["settings"].items()})
            column, drawn, ready = about["column"], jnp.int32(about["drawn"]), state["ready"]
            dtype = model.generator.dtype
            context, *ring = (jnp.asarray(state[name], dtype) for name in ("context", "ring_keys", "ring_values"))
            decoder = {name: state[f"decoder_{name}"] for name in StreamDecoder.STATE}
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{where} is not a saved panorama of format {_FORMAT!r} ({error}).") from error
        made = cls(model, settings)
        made._state = sampler.SamplerState(drawn, context, sampler.KVCache(*ring))
        made._column = column
        made._ready = [ready] if ready.size else []
        made._decoder.restore(decoder)
        return made


def fingerprint(model):
    """What tells one model from another: fields of both halves, and a checksum over a sample of the weights."""
    about = {"latent_scale": float(model.latent_scale)}
    for half in ("tokenizer", "generator"):
        module = model.require(half)
        for field in dataclasses.fields(module):
            if field.name not in ("parent", "name"):
                about[f"{half}.{field.name}"] = str(getattr(module, field.name))
        checksum = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(getattr(model, f"{half}_params")):
            some = np.asarray(leaf.reshape(-1)[:: max(1, leaf.size // 64)], np.float32)
            checksum = zlib.crc32(some.tobytes(), zlib.crc32(jax.tree_util.keystr(path).encode(), checksum))
        about[f"{half} weights"] = f"{checksum:08x}"
    return about


def _compare(where, saved, given):
    different = [name for name in sorted(saved.keys() | given.keys()) if saved.get(name) != given.get(name)]
    if different:
        lines = [f"  {name}: saved {saved.get(name)}, this model {given.get(name)}" for name in different]
        raise ValueError(f"{where} belongs to another model; load that one, or start anew:\n" + "\n".join(lines))


def _read(path):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no saved panorama at {os.fspath(path)}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as a saved panorama ({error}).") from error


_make_sampler = jax.jit(sampler.make_sampler, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=2)
def _start(run, first, num_columns):
    return sampler.start(run, first, num_columns)


@functools.partial(jax.jit, donate_argnums=1)
def _take(run, state, latents, after):
    return sampler.prefill(run, state, latents, after)
