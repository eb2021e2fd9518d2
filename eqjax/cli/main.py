"""The console script `eqjax`: finds the command and runs it."""

from collections.abc import Sequence
import io
import os
import sys

import eqjax
from eqjax.cli import runner
from eqjax.cli.command_line import Command
from eqjax.messages import nearest

COMMANDS = {
    command.name: command
    for command in (
        Command("demo", "samples images and panoramas with the shipped weights"),
        Command("sample", "samples images and panoramas, and outpaints images"),
        Command("serve", "serves a page on which a panorama grows and is steered", joins=False),
        Command("convert", "converts published PyTorch weights to a weights file, and back", uses_jax=False),
        Command(
            "hub",
            "fetches models from the Hugging Face Hub, and pushes them to it",
            "download|upload|card MODEL … [owner/name]",
            joins=False,
        ),
        Command("convert_data", "converts Parquet files of images to archives for training", uses_jax=False),
        Command("fetch_weights", "fetches the frozen networks of losses and metrics", "[NETWORK …]", uses_jax=False),
        Command("train_tokenizer", "trains a column tokenizer"),
        Command("train_generator", "trains a generator on a trained tokenizer"),
        Command("cache_latents", "encodes a data set once, for training without the encoder", joins=False),
        Command("evaluate", "measures generated images or reconstructions", "generation|reconstruction"),
        Command("measure_quality", "compares images of a few classes with real ones, without downloaded networks"),
        Command("make_statistics", "computes reference statistics of a set of images, for FID and others"),
        Command(
            "analyze",
            "measures equivariance, and whether all columns are one task",
            "columns|equivariance|symmetries|comparison",
        ),
        Command("check", "compares this machine's outputs with recorded ones of the original", joins=False),
        Command("benchmark", "measures how fast this machine samples and trains", "sampling|decoding|training|floor …"),
        Command("plan", "estimates the cost of a training step on other machines", uses_jax=False),
        Command(
            "gpu_compile",
            "compiles for a GPU without one: kernels, launches, memory, traffic",
            "sampling|decoding|training",
            uses_jax=False,
        ),
    )
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names.

    Args:
      arguments: the command line without the program; None for sys.argv.

    Raises:
      SystemExit: if the command fails, see `eqjax.cli.runner`.
    """
    # Help has characters such as “…”, and names of files any: locales without them get what Python's stderr shows.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # The reader of the output has left, as `eqjax plan --help | head` does.
        # Python flushes again when it ends, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _run(arguments: Sequence[str]) -> None:
    """Runs the command that the first argument names."""
    name, *rest = arguments or ["--help"]
    if name in ("--help", "-h", "-help", "help"):
        print(help_text())
    elif name == "--version":
        print(eqjax.__version__)
    elif name in COMMANDS:
        runner.run(COMMANDS[name], rest)
    else:
        known = f"the nearest is {nearest(name, COMMANDS)!r}. See: eqjax --help"
        print(f"eqjax: unknown command {name!r}; {known}", file=sys.stderr)
        raise SystemExit(1)


def help_text() -> str:
    """Returns the list of commands."""
    lines = [f"  {name:<17} {command.summary}" for name, command in COMMANDS.items()]
    head = "eqjax: equivariant image modeling in JAX\n\nusage: eqjax COMMAND [--flag=value …]\n"
    return "\n".join(
        [
            head,
            *lines,
            "\nFlags of a command: eqjax COMMAND --help; with -v, every command prints the traces of libraries.",
        ]
    )
