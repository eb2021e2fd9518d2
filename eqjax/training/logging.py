"""Logs of a run: JSON lines, TensorBoard, and progress for people."""

import contextlib
import json
import math
import os
import sys
import time

from absl import logging
import jax
import numpy as np
from tensorboardX import SummaryWriter
import tqdm

from eqjax import pixels
from eqjax.io import atomic_write


class MetricWriter:
    """Writes scalars to `metrics.jsonl` and TensorBoard, images to TensorBoard and PNG files, both to W&B if wanted.

    Only process 0 writes; on the others every call does nothing. Use it in a `with` statement.
    """

    def __init__(self, workdir, wandb_project=None):
        """Opens the files.

        Args:
          workdir: their folder.
          wandb_project: of Weights & Biases, where a run that is continued stays one run; None: none.

        Raises:
          ModuleNotFoundError: a project is named, and the package wandb is not installed.
        """
        self._file = self._board = self._wandb = None
        self._workdir = workdir
        if jax.process_index() == 0:
            os.makedirs(workdir, exist_ok=True)
            if wandb_project:
                self._wandb = _start_wandb(workdir, wandb_project)
            self._file = open(os.path.join(workdir, "metrics.jsonl"), "a", encoding="utf-8")
            self._board = SummaryWriter(os.path.join(workdir, "tensorboard"), write_to_disk=True)

    def scalars(self, step, values):
        """Writes {name: number} at a step, flushed at once: a killed run loses no line.

        A vector becomes one curve per entry: name/00, name/01, … What is no finite number is null in the file, as
        JSON has no such numbers.
        """
        if self._file is None:
            return
        values = dict(_curves(values))
        line = {"step": int(step), "time": round(time.time(), 3)}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, int(step))
        self._board.flush()
        if self._wandb is not None:
            self._wandb.log(values, step=int(step))

    def config(self, config):
        """Writes a ConfigDict to `config.json`, beside what comes of it."""
        if self._file is not None:
            with atomic_write(os.path.join(self._workdir, "config.json")) as temporary:
                with open(temporary, "w", encoding="utf-8") as file:
                    file.write(config.to_json_best_effort(indent=2) + "\n")
            if self._wandb is not None:
                self._wandb.config.update(json.loads(config.to_json_best_effort()), allow_val_change=True)

    def image(self, step, name, image):
        """Writes a uint8 image [H, W, 3] to `images/<name>_<step>.png` and TensorBoard."""
        if self._file is None:
            return
        pixels.save_png(os.path.join(self._workdir, "images", f"{name}_{int(step):07d}.png"), image)
        self._board.add_image(name, np.asarray(image), int(step), dataformats="HWC")
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(np.asarray(image))}, step=int(step))

    def close(self):
        """Closes the files."""
        if self._file is not None:
            self._file.close()
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def _start_wandb(workdir, project):
    """The W&B run of a workdir: the one that its file names, or a new one."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"wandb_project={project!r} needs the package wandb: pip install wandb, or set it to None; "
            "metrics.jsonl and TensorBoard are written in any case."
        ) from error
    path, kept = os.path.join(workdir, "wandb_run.txt"), None
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            kept = file.read().strip()
    name = os.path.basename(os.path.abspath(workdir))
    run = wandb.init(project=project, name=name, dir=workdir, id=kept, resume="allow")
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(run.id + "\n")
    return run


class Progress:
    """Rate and time left: a bar on a terminal, log lines elsewhere; process 0 only."""

    def __init__(self, first_step, total_steps, images_per_step):
        self._total, self._images = total_steps, images_per_step
        self._last_step, self._last_time = first_step, time.monotonic()
        show = jax.process_index() == 0 and sys.stderr.isatty()
        self._bar = tqdm.tqdm(total=total_steps, initial=first_step, unit="step") if show else None

    def update(self, step, metrics):
        """Reports `metrics` at a step, and returns the images per second since the last call."""
        now = time.monotonic()
        steps, seconds = step - self._last_step, max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        rate = steps * self._images / seconds
        text = " ".join(f"{name}={float(value):.4g}" for name, value in metrics.items() if np.ndim(value) == 0)
        if self._bar is not None:
            self._bar.update(steps)
            self._bar.set_postfix_str(text)
        elif jax.process_index() == 0:
            left = (self._total - step) * seconds / max(steps, 1)
            logging.info("step %d/%d %s | %.1f images/s, %s left", step, self._total, text, rate, _clock(left))
        return rate

    @contextlib.contextmanager
    def paused(self):
        """Leaves out of the rate what happens inside: checkpoints, evaluation, images."""
        start = time.monotonic()
        yield
        self._last_time += time.monotonic() - start

    def close(self):
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def _curves(values):
    for name, value in values.items():
        value = np.asarray(value)
        if value.ndim == 0:
            yield name, float(value)
        else:
            yield from ((f"{name}/{i:02d}", float(entry)) for i, entry in enumerate(value))


def _clock(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
