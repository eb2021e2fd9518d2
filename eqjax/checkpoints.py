"""Checkpoints of a training run: state, data position and configuration, in one Orbax step."""

import json
import os

from absl import logging
import jax
import orbax.checkpoint as ocp


class ConfigMismatchError(ValueError):
    """A checkpoint was written under another configuration of the model."""


# Parts of a configuration that decide what the saved arrays mean. Others (the learning rate, the
# number of steps, how often to log) may change between runs that continue each other.
FIXED_PARTS = ("stage", "model", "tokenizer", "discriminator", "generator")


class Checkpoints:
    """Saves and restores a run under `directory`; use it in a `with` statement.

    Saving is asynchronous; a step appears whole or not at all. Restoring takes the newest step
    that can be read: a damaged one is reported, removed, and the one before it is taken.
    """

    def __init__(self, directory, config, *, keep=2):
        """Args: directory; config, a plain dict that travels inside; keep, the number of steps kept."""
        # Through JSON once, so that it compares equal to what comes back from a file.
        self._config = json.loads(json.dumps(config))
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(os.path.abspath(directory), options=options)

    def save(self, step, state, data_state):
        """Saves a pytree of arrays and the data iterator's state (JSON values) as step `step`."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(data_state),
            config=ocp.args.JsonSave(self._config),
        )
        if not self._manager.save(step, args=args):
            raise RuntimeError(f"Orbax did not save step {step} under {self._manager.directory}: it exists already.")

    def restore(self, template):
        """The newest readable step.

        Args:
          template: the state as a pytree of arrays or jax.ShapeDtypeStruct with shardings.

        Returns:
          (state, data_state), or None where there is no checkpoint.

        Raises:
          ConfigMismatchError: the checkpoint belongs to another model; both sides are named.
          RuntimeError: there are checkpoints, and none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        template = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        errors = []
        for step in steps:
            try:
                parts = self._manager.restore(
                    step, args=ocp.args.Composite(data=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())
                )
                self._check(parts.config, step)
                args = ocp.args.Composite(state=ocp.args.StandardRestore(template))
                state = self._manager.restore(step, args=args).state
            except ConfigMismatchError:
                raise
            except Exception as error:  # Orbax raises bare Exceptions for damaged chunks.
                reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
                errors.append(f"step {step}: {reason}")
                logging.error("Checkpoint %s of %s cannot be read: %s", step, self._manager.directory, reason)
                continue
            for bad in (s for s in steps if s > step):
                # Orbax silently refuses to save again onto a step that exists.
                logging.warning("Removing the damaged checkpoint of step %d; resuming from step %d.", bad, step)
                self._manager.delete(bad)
            return state, parts.data
        if errors:
            raise RuntimeError(
                f"no checkpoint under {self._manager.directory} can be read; remove the directory to start anew.\n"
                + "\n".join(errors)
            )
        return None

    def _check(self, saved, step):
        differences = []
        for part in FIXED_PARTS:
            _compare(part, saved.get(part), self._config.get(part), differences)
        if differences:
            raise ConfigMismatchError(
                f"the checkpoint of step {step} under {self._manager.directory} was written under another "
                "configuration; use its configuration or another workdir.\n" + "\n".join(differences)
            )

    def wait(self):
        """Blocks until what was saved lies on disk."""
        self._manager.wait_until_finished()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._manager.wait_until_finished()
        self._manager.close()


def _compare(name, saved, current, differences):
    if isinstance(saved, dict) and isinstance(current, dict):
        for key in sorted(saved.keys() | current.keys()):
            _compare(f"{name}.{key}", saved.get(key), current.get(key), differences)
    elif saved != current:
        differences.append(f"  {name}: checkpoint {saved!r}, this run {current!r}")
