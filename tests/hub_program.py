"""A process that uses the Hub, for tests: huggingface_hub reads its environment variables when it is imported.

It reads calls from standard input, a line of JSON each, [function, arguments, keywords], and answers each with a line:
{"value": …}, or {"error": type, "bases": names, "message": text}.
"""

import json
import logging
import os
import pathlib
import subprocess
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent


class Program:
    """The process, seen from the test."""

    def __init__(self, environment, library=None):
        """Starts it.

        Args:
          environment: environment variables.
          library: folder of another huggingface_hub, or None.
        """
        path = os.pathsep.join(str(folder) for folder in (library, ROOT) if folder)
        self._process: Any = subprocess.Popen(
            [sys.executable, "-m", "tests.hub_program"],
            cwd=ROOT, env=dict(os.environ, PYTHONPATH=path, **environment), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.stdin.close()
        self._process.wait(60)

    def begin(self, name, *args, **keywords):
        """Sends a call, without waiting for the answer."""
        self._process.stdin.write(json.dumps([name, list(map(str, args)), keywords]) + "\n")
        self._process.stdin.flush()

    def answer(self):
        """Returns the answer to the last call."""
        line = self._process.stdout.readline()
        assert line, self._process.stderr.read()[-3000:]
        return json.loads(line)

    def call(self, name, *args, **keywords):
        """Returns the value of a call that succeeds."""
        self.begin(name, *args, **keywords)
        found = self.answer()
        assert "value" in found, found
        return found["value"]

    def error(self, name, *args, **keywords):
        """Returns the message of a call that fails as this project's errors do: an OSError or a ValueError."""
        self.begin(name, *args, **keywords)
        found = self.answer()
        assert "error" in found, found
        assert {"OSError", "ValueError"} & set(found["bases"]) and found["module"].startswith(("eqjax", "builtins"))
        assert len(found["message"].splitlines()) == 1, found["message"]
        return found["message"]


def version():
    """Returns huggingface_hub's version."""
    import huggingface_hub

    return huggingface_hub.__version__


def fetch(*args, **keywords):
    """Calls `download.fetch`."""
    from eqjax.hub import download

    return download.fetch(*args, **keywords)


def resolve(source):
    """Calls `loading.resolve_path`."""
    from eqjax import loading

    return loading.resolve_path(source)


def load(*sources, **keywords):
    """Loads a model; returns what tells it apart."""
    import eqjax
    from eqjax.evaluation.protocol import weights_id

    model = eqjax.load_pretrained(*sources, **keywords)
    return {"weights": weights_id(model), "classes": model.class_names, "scale": model.latent_scale,
            "precision": model.precision, "dtype": str(model.require("tokenizer").dtype)}  # fmt: skip


def sample(source, shape):
    """Loads a model and samples an image; returns its shape."""
    import eqjax

    images = eqjax.load_pretrained(source).sample([0], num_columns=int(shape), num_flow_steps=1)
    return list(images.shape)


def push(source, repo, **keywords):
    """Pushes a model."""
    import eqjax

    return eqjax.push_to_hub(source, repo, **keywords)


def set_published(sha256):
    """Sets the SHA-256 of all published files."""
    import dataclasses

    from eqjax import published

    model: Any = published.MODELS["places-large"]
    files = tuple(dataclasses.replace(file, sha256=sha256) for file in model.files)
    published.MODELS["places-large"] = dataclasses.replace(model, files=files)


def log():
    """Returns the messages logged so far."""
    return _LOG


_LOG: list[str] = []


class _Handler(logging.Handler):
    def emit(self, record):
        _LOG.append(record.getMessage())


def main():
    """Answers calls until the input ends."""
    logging.getLogger("absl").addHandler(_Handler())
    logging.getLogger("absl").setLevel(logging.INFO)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        name, args, keywords = json.loads(line)
        try:
            found: dict[str, Any] = {"value": globals()[name](*args, **keywords)}
        except Exception as error:
            kind = type(error)
            found = {"error": kind.__name__, "module": kind.__module__, "message": str(error)}
            found["bases"] = [base.__name__ for base in kind.__mro__]
        answers.write(json.dumps(found, default=str) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
