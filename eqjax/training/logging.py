"""Logs of a training run: JSON lines, TensorBoard, Weights & Biases, and progress on the terminal."""

from collections.abc import Iterator
import contextlib
import json
import math
import os
import sys
import time
from typing import Any, TextIO

from absl import logging
import jax
from jaxtyping import UInt8
import numpy as np
from tensorboardX import SummaryWriter
import tqdm

from eqjax import extras
from eqjax.image_output import save_image
from eqjax.io import atomic_write
from eqjax.progress import format_duration
from eqjax.typing import AnyArray, Config, Metrics, Scalar

_SECONDS_BETWEEN_LINES = 30.0
_TAIL_BYTES = 1 << 16  # What is read at once to find the end of the last whole line.


class MetricWriter:
    """Writes metrics and images of a run under its workdir; use it in a `with` statement.

    Scalars go to `metrics.jsonl` and TensorBoard, images to PNG files and TensorBoard, both also to Weights & Biases
    if a project is named. Only process 0 writes; on other processes every call does nothing.

    Example:
      >>> import pathlib, tempfile
      >>> with tempfile.TemporaryDirectory() as workdir:
      ...     with MetricWriter(workdir) as writer:
      ...         writer.scalars(1, {"loss": 0.5, "column_loss": np.array([0.25, 0.75])})
      ...     line = json.loads(pathlib.Path(workdir, "metrics.jsonl").read_text())
      >>> line["step"], line["loss"], line["column_loss/01"]
      (1, 0.5, 0.75)
    """

    def __init__(self, workdir: str | os.PathLike[str], wandb_project: str | None = None) -> None:
        """Opens the files.

        Args:
          workdir: folder of the run; made if it does not exist.
          wandb_project: Weights & Biases project, in which a resumed run stays one run; None or "": no project.

        Raises:
          ModuleNotFoundError: a project is named, but the package wandb is not installed.
        """
        self._workdir = os.fspath(workdir)
        self._file: TextIO | None = None
        self._board: Any = None
        self._wandb: Any = None
        if jax.process_index() == 0:
            os.makedirs(self._workdir, exist_ok=True)
            if wandb_project:
                self._wandb = _start_wandb(self._workdir, wandb_project)
            self._open()

    def scalars(self, step: Scalar, values: Metrics) -> None:
        """Writes metrics of a step and flushes them, so that a killed run loses no line.

        A vector becomes one curve per entry: name/00, name/01, … NaN and infinity are null in `metrics.jsonl`, as JSON
        has no such numbers.
        """
        if self._file is None:
            return
        curves = dict(_curves(values))
        line = {"step": int(step), "time": round(time.time(), 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in curves.items()}
        self._reopen_if_removed()
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in curves.items():
            self._board.add_scalar(name, value, int(step))
        self._board.flush()
        if self._wandb is not None:
            self._wandb.log(curves, step=int(step))

    def _reopen_if_removed(self) -> None:
        """Opens the files again if the workdir was removed: what is written to a removed file is lost."""
        if self._file is None or os.fstat(self._file.fileno()).st_nlink:
            return
        logging.warning("%s was removed while the run writes to it: earlier metrics are lost.", self._workdir)
        self._file.close()
        self._board.close()
        self._open()

    def _open(self) -> None:
        os.makedirs(self._workdir, exist_ok=True)
        # Opening a pipe would wait for somebody who reads it; like this it is an error.
        path = os.path.join(self._workdir, "metrics.jsonl")
        _cut_torn_line(path)
        self._file = open(path, "a", encoding="utf-8", opener=_open_without_waiting)  # noqa: SIM115 - stays open
        self._board = SummaryWriter(os.path.join(self._workdir, "tensorboard"), write_to_disk=True)

    def config(self, config: Config) -> None:
        """Writes the configuration to `config.json`."""
        if self._file is None:
            return
        path = os.path.join(self._workdir, "config.json")
        with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.write(config.to_json_best_effort(indent=2) + "\n")
        if self._wandb is not None:
            self._wandb.config.update(json.loads(config.to_json_best_effort()), allow_val_change=True)

    def image(self, step: Scalar, name: str, image: UInt8[AnyArray, "H W 3"]) -> None:
        """Writes an image to `images/NAME_STEP.png` and TensorBoard."""
        if self._file is None:
            return
        image = np.asarray(image)
        save_image(os.path.join(self._workdir, "images", f"{name}_{int(step):07d}.png"), image)
        self._board.add_image(name, image, int(step), dataformats="HWC")
        if self._wandb is not None:
            import wandb  # pyright: ignore[reportMissingImports] - optional

            self._wandb.log({name: wandb.Image(image)}, step=int(step))

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _cut_torn_line(path: str) -> None:
    """Removes the last line if its end is missing, as a process that was killed or a full disk leaves it."""
    with contextlib.suppress(OSError), open(path, "r+b", opener=_open_without_waiting) as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - _TAIL_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < file.seek(0, os.SEEK_END):
            logging.warning("The last line of %s was not whole, and is removed.", path)
            file.truncate(end)


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK, 0o644)


def _start_wandb(workdir: str, project: str) -> Any:
    """Returns the W&B run whose id is in the workdir, or a new one whose id is written there."""
    extras.require("wandb", f"wandb_project={project!r} needs the package wandb (metrics.jsonl is written without)")
    import wandb  # pyright: ignore[reportMissingImports] - optional

    path, run_id = os.path.join(workdir, "wandb_run.txt"), None
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            run_id = file.read().strip()
    name = os.path.basename(os.path.abspath(workdir))
    run = wandb.init(project=project, name=name, dir=workdir, id=run_id, resume="allow")
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(run.id + "\n")
    return run


class Progress:
    """Shows speed and time left on process 0: a bar on a terminal, log lines elsewhere.

    Between the lines with metrics, which may be far apart, a line every half a minute says how far the run is.
    """

    def __init__(self, first_step: int, total_steps: int, images_per_step: int) -> None:
        """Starts the clock.

        Args:
          first_step: steps that were done before.
          total_steps: steps of the whole run.
          images_per_step: the global batch size.
        """
        self._total, self._images = total_steps, images_per_step
        self._last_step, self._last_time = first_step, time.monotonic()
        self._last_line, self._shown_step = self._last_time, first_step
        show = jax.process_index() == 0 and sys.stderr.isatty()
        self._bar = tqdm.tqdm(total=total_steps, initial=first_step, unit="step") if show else None

    def update(self, step: int, metrics: Metrics) -> float:
        """Shows metrics of a step; returns the images per second since the last call."""
        now = time.monotonic()
        steps, seconds = step - self._last_step, max(now - self._last_time, 1e-9)
        self._last_step, self._last_time, self._last_line = step, now, now
        images_per_second = steps * self._images / seconds
        text = " ".join(f"{name}={float(value):.4g}" for name, value in metrics.items() if np.ndim(value) == 0)
        if self._bar is not None:
            self._bar.update(step - self._shown_step)
            self._shown_step = step
            self._bar.set_postfix_str(text)
        elif jax.process_index() == 0:
            left = format_duration((self._total - step) * seconds / max(steps, 1))
            logging.info("step %d/%d %s | %.1f images/s, %s left", step, self._total, text, images_per_second, left)
        return images_per_second

    def tick(self, step: int) -> None:
        """Shows a step between those whose metrics are shown."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(step - self._shown_step)
            self._shown_step = step
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES and jax.process_index() == 0:
            self._last_line = now
            seconds = (now - self._last_time) / max(step - self._last_step, 1)
            left = format_duration((self._total - step) * seconds)
            logging.info("step %d/%d | %.1f images/s, %s left", step, self._total, self._images / seconds, left)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock inside the block: for checkpoints, evaluation and images."""
        start = time.monotonic()
        yield
        self._last_line = time.monotonic()
        self._last_time += self._last_line - start

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def _curves(values: Metrics) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        array = np.asarray(value)
        if array.ndim == 0:
            yield name, float(array)
        else:
            yield from ((f"{name}/{i:02d}", float(entry)) for i, entry in enumerate(array))
