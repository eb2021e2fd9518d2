"""The common shell of all commands: flags, help, set-up of JAX, error messages and exit codes."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import importlib
import logging as python_logging
import os
import re
import signal
import sys
import textwrap
import types

from absl import flags, logging
import ml_collections
from ml_collections import config_flags
from ml_collections.config_flags import config_path
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from eqjax import config_files, debug_log
from eqjax.arguments import nearest
from eqjax.cli import processes
from eqjax.progress import announced

# Exit codes: 0 for success, 1 for an error that a restart would meet again, and this one (EX_TEMPFAIL of sysexits.h)
# for a command that was asked to stop and has saved its progress; the same command resumes it.
EXIT_PREEMPTED = 75
# What shells report for a program that Ctrl-C ended.
EXIT_INTERRUPTED = 128 + signal.SIGINT

# Errors whose message names the problem and the remedy; a traceback would hide it.
_EXPLAINED = (ValueError, OSError, FloatingPointError, ModuleNotFoundError)
_CACHE_VARIABLE, _CACHE = "JAX_COMPILATION_CACHE_DIR", os.path.join("~", ".cache", "eqjax", "xla")
# Flags on which memory depends.
_SIZES = ("batch_size", "num_columns", "classes", "seeds", "num_images", "num_stored_features", "left", "right")
_VERBOSE = ("-v", "--verbose")  # Of every command: prints traces instead of keeping them in a file.
_GROUP, _WIDTH, _INDENT = "group: ", 100, 29


@dataclasses.dataclass(frozen=True)
class Command:
    """An entry of `eqjax.cli.main.COMMANDS`.

    Attributes:
      module: name of the module in `eqjax.cli`.
      summary: one line for `eqjax --help`.
      words: the arguments besides flags, as --help shows them; "" if the command takes none.
      uses_jax: whether to set up JAX before the command runs.
      joins: whether to connect the processes that a starter started.
    """

    module: str
    summary: str
    words: str = ""
    uses_jax: bool = True
    joins: bool = True

    @property
    def name(self) -> str:
        """The name on the command line."""
        return self.module.replace("_", "-")

    def load(self) -> types.ModuleType:
        """Imports the module."""
        return importlib.import_module(f"eqjax.cli.{self.module}")


@contextlib.contextmanager
def flag_group(values: flags.FlagValues, title: str) -> Iterator[None]:
    """Puts the flags that are defined in the block under a title of `eqjax NAME --help`.

    Args:
      values: the flags.
      title: the title, such as "Output".
    """
    before = set(values)
    yield
    for name in values:
        if name not in before:
            values.register_flag_by_module(_GROUP + title, values[name])


def define_config(
    values: flags.FlagValues, text: str = "Configuration: a shipped name or a file, with :variant."
) -> None:
    """Defines a required --config: a shipped configuration or a file, whose fields are flags --config.name=value."""
    config_flags.DEFINE_config_file("config", None, text, flag_values=values)
    flags.mark_flag_as_required("config", flag_values=values)


def run(command: Command, arguments: Sequence[str]) -> None:
    """Runs a command; returns if it succeeds.

    Args:
      command: the command.
      arguments: the rest of the command line after its name.

    Raises:
      SystemExit: with `EXIT_PREEMPTED`, with `EXIT_INTERRUPTED` after Ctrl-C, or with 1 after one message.
    """
    try:
        _run(command, arguments)
    except KeyboardInterrupt:
        print(f"eqjax {command.name}: interrupted.", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None


def _run(command: Command, arguments: Sequence[str]) -> None:
    if any(argument in ("--help", "-h", "-help", "--helpfull") for argument in arguments):
        print(help_text(command))
        return
    try:
        verbose = any(argument in _VERBOSE for argument in arguments)
        args, words = parse(command, [argument for argument in arguments if argument not in _VERBOSE])
        # What a command can say without JAX.
        answer = getattr(command.load(), "answer", lambda *_: None)(args, arguments)
    except (flags.Error, *_EXPLAINED) as error:
        print(f"eqjax {command.name}: {error}\nSee: eqjax {command.name} --help", file=sys.stderr)
        raise SystemExit(1) from error
    if answer is not None:
        print(answer)
        return
    work = command.load().run
    finish(
        lambda: work(args, words) if command.words else work(args),
        uses_jax=command.uses_jax,
        joins=command.joins,
        cache=args.compilation_cache if command.uses_jax else None,
        workdir=args.workdir if "workdir" in args else None,
        verbose=verbose,
        request=_request(args),
    )


def _request(args: flags.FlagValues) -> str:
    """Returns the flags on which memory depends, as they were given."""
    found = [f"--{name}={args[name].value}" for name in _SIZES if name in args and args[name].value is not None]
    return " ".join(found) or "this request"


def parse(command: Command, arguments: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """Parses the flags of a command.

    Args:
      command: the command.
      arguments: the rest of the command line after its name.

    Returns:
      The flags, and the words between them.

    Raises:
      absl.flags.Error: an unknown flag, named with the nearest known one; a wrong or missing value.
      FileNotFoundError: there is no such configuration file.
      ValueError: an unknown field of the configuration, named with the nearest known one; an unknown variant; words
        for a command that takes none.
    """
    argv = [f"eqjax {command.name}", *arguments]
    with _as_sys_argv(argv):
        values = _define(command)
        config = values["config"].parser if "config" in values else None
        if isinstance(config, ConfigFileFlagParser):
            argv[:] = find_config(argv)
            check_fields(argv)
        try:
            words = values(argv)[1:]
        except flags.UnrecognizedFlagError as error:
            known = nearest(error.flagname, list(values))
            raise flags.Error(f"unknown flag --{error.flagname}; the nearest is --{known}.") from error
        except flags.IllegalFlagValueError as error:
            missing = [name for name in values if f"Flag --{name} must have a value" in str(error)]
            raise flags.Error(f"--{missing[0]} is missing." if missing else str(error)) from error
    if words and not command.words:
        raise ValueError(f"unknown arguments {' '.join(words)}; flags are given as --name=value.")
    return values, words


def finish(
    work: Callable[[], object],
    *,
    uses_jax: bool = True,
    joins: bool = True,
    cache: str | None = None,
    workdir: str | None = None,
    verbose: bool = False,
    request: str = "this request",
) -> None:
    """Sets up logging and JAX, and does the work; returns if it succeeds.

    Errors that are handled end in one sentence; traces, of libraries too, go to `debug.log` in the workdir.

    Args:
      work: the function to call.
      uses_jax, joins: as the attributes of `Command`.
      cache: folder of compiled programs; "" for none, None for JAX_COMPILATION_CACHE_DIR or ~/.cache/eqjax/xla.
      workdir: folder of the run; None: there is none, and traces are lost.
      verbose: whether to print traces instead.
      request: the flags on which memory depends, for a message.

    Raises:
      SystemExit: with `EXIT_PREEMPTED`, or with 1 after one message.
    """
    try:
        if not verbose:
            _keep_traces(workdir, guarded=uses_jax and joins)
        set_up(uses_jax=uses_jax, joins=joins, cache=cache, verbose=verbose)
        work()
    except Exception as error:
        _end(error, request)
        debug_log.LOG.uninstall()
        raise
    except BaseException:
        debug_log.LOG.uninstall()
        raise
    debug_log.LOG.uninstall()


def _keep_traces(workdir: str | None, guarded: bool) -> None:
    """Sends traces to the debug log, those of C++ libraries too if there are several processes."""
    debug_log.LOG.install()
    if workdir is None:
        return
    index, count = processes.process_numbers(os.environ) or (0, 1)
    name = f"debug-{index}.log" if index else "debug.log"
    debug_log.LOG.open_in(workdir, name)
    if guarded and count > 1:
        from eqjax.training.fault_tolerance import PEER_LOST

        logging.use_absl_handler()  # Else it would be given the guarded stream.
        path = os.path.join(workdir, name)
        debug_log.start_guard(path, f"{PEER_LOST} Messages of the libraries are in {path}.")


def _end(error: Exception, request: str) -> None:
    """Ends the process with one message, if the error is one that explains itself.

    Raises:
      SystemExit: it is.
    """
    is_memory = isinstance(error, MemoryError)
    if not isinstance(error, (*_EXPLAINED, MemoryError)):
        # Imported only here: these import JAX, which not every command needs.
        from eqjax import memory
        from eqjax.checkpoints import UnreadableError
        from eqjax.training.fault_tolerance import PeerLostError, Preempted

        if isinstance(error, Preempted):
            logging.info("%s Exit code %d; the same command resumes it.", error, EXIT_PREEMPTED)
            raise SystemExit(EXIT_PREEMPTED) from error
        is_memory = memory.is_out_of_memory(error)
        if not is_memory and not isinstance(error, (UnreadableError, PeerLostError)):
            return
        if isinstance(error, PeerLostError):
            debug_log.LOG.record(error)
            debug_log.end_guarded(1)  # JAX's own end would wait for the lost process.
    text = str(error)
    if is_memory:
        from eqjax import memory

        text = memory.describe(error, request, "lower these, or take a device or a machine with more memory")
    logging.error("%s%s", text, debug_log.LOG.record(error))
    raise SystemExit(1) from error


def set_up(*, uses_jax: bool = True, joins: bool = True, cache: str | None = None, verbose: bool = False) -> None:
    """Sets up logging to the terminal, connects the processes and sets JAX's folder of compiled programs.

    Args:
      uses_jax, joins, cache, verbose: as for `finish`.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # absl's own flags, which its logging reads.
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.addFilter(_is_of_interest)
    if not verbose:
        handler.addFilter(_is_not_covered)
    if not uses_jax:
        return
    with announced("Loading JAX", patience=2.0):
        import jax

    if joins:
        processes.join_processes()
    if cache is None and not os.environ.get(_CACHE_VARIABLE):
        cache = _CACHE
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(cache) or None)
    if joins:
        logging.info("Devices: %s", jax.devices())


def _is_of_interest(record: python_logging.LogRecord) -> bool:
    """Returns whether to log a record: not Orbax's many INFO lines per checkpoint, nor JAX's on absent platforms.

    Nor Orbax's warning that a step has no metrics, which is so whenever checkpoints are more frequent than evaluations.
    """
    if "orbax" in record.pathname and record.getMessage().startswith("Requested `tracked_metric`"):
        return False
    foreign = "orbax" in record.pathname or "xla_bridge" in record.pathname
    return record.levelno > python_logging.INFO or not foreign


def _is_not_covered(record: python_logging.LogRecord) -> bool:
    return not debug_log.is_covered(record)


# ── Flags ─────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _as_sys_argv(argv: list[str]) -> Iterator[None]:
    """Sets sys.argv, in which ml_collections looks for the fields of a configuration, for the block."""
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


def _define(command: Command) -> flags.FlagValues:
    """Returns the flags of a command, not parsed yet."""
    values = flags.FlagValues()
    command.load().define_flags(values)
    if command.uses_jax:
        with flag_group(values, "Output"):
            flags.DEFINE_string(
                "compilation_cache", None, f'Folder of compiled programs, {_CACHE}; "" for none.', flag_values=values
            )
    return values


def _config_arguments(argv: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Yields (index, value) of every --config=value; the value may be the next argument."""
    for i, argument in enumerate(argv):
        if found := re.fullmatch("--?config(?:=(.*))?", argument):
            if found[1] is not None:
                yield i, found[1]
            elif i + 1 < len(argv):
                yield i + 1, argv[i + 1]


def find_config(argv: Sequence[str]) -> list[str]:
    """Returns a command line with the paths of its configurations, shipped ones looked up by name.

    Raises:
      FileNotFoundError: there is no such configuration file.
    """
    found = list(argv)
    for i, value in _config_arguments(argv):
        try:
            path = config_files.find(value)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--config={value}: {error}") from error
        found[i] = path if argv[i] == value else f"--config={path}"
    return found


def check_fields(argv: Sequence[str]) -> None:
    """Compares the fields that a command line sets by name with those of its configuration.

    Raises:
      FileNotFoundError: there is no such configuration file.
      ValueError: an unknown field, named with the nearest known one; an unknown variant.
    """
    values = [value for _, value in _config_arguments(argv)]
    if not values:
        return
    config = config_files.load(values[-1])
    for field in (found[1] for argument in argv if (found := re.match(r"--?(?:no)?config\.([^=]+)", argument))):
        try:
            config_path.get_value(field, config)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError(
                f"--config.{field}: {os.path.basename(values[-1]).partition(':')[0]} has no such field; the nearest is "
                f"--config.{nearest(field, _field_names(config))}."
            ) from error


def _field_names(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _field_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


# ── Help ──────────────────────────────────────────────────────────────────────────────────────


def help_text(command: Command) -> str:
    """Returns the help of a command: the head of its module's docstring, and its flags in groups."""
    with _as_sys_argv([f"eqjax {command.name}"]):
        values = _define(command)
    lines = [f"usage: eqjax {command.name} {f'{command.words} ' if command.words else ''}[--flag=value …]", ""]
    lines += _head(command.load().__doc__ or "")
    groups = {
        title.removeprefix(_GROUP): members
        for title, members in values.flags_by_module_dict().items()
        if title.startswith(_GROUP)
    }
    grouped = {flag.name for members in groups.values() for flag in members}
    if others := [values[name] for name in values if name not in grouped]:
        groups = {"Flags": others, **groups}
    for title, members in groups.items():
        lines += ["", f"{title}:"]
        for flag in members:
            lines += _flag_lines(flag)
    return "\n".join(lines)


def _head(text: str) -> list[str]:
    """Returns the lines of a docstring up to its first example, which is indented."""
    kept: list[str] = []
    for paragraph in text.split("\n\n"):
        kept.append(paragraph)
        if paragraph.startswith("    "):
            break
    return list("\n\n".join(kept).rstrip().split("\n"))


def _flag_lines(flag: flags.Flag) -> list[str]:
    """Returns the description of a flag: its name, default (… for none) and text."""
    if flag.boolean:
        name = f"  --{'no' if flag.value else ''}{flag.name}"
    elif isinstance(flag.default, ml_collections.ConfigDict):
        name = f"  --{flag.name}.NAME=…"
    else:
        default = "…" if flag.default is None or not isinstance(flag.default_as_str, str) else flag.default_as_str
        name = f"  --{flag.name}={default.strip(chr(39))}"
    name = name.ljust(_INDENT - 2) + "  "
    return textwrap.wrap(
        flag.help or "", _WIDTH, initial_indent=name, subsequent_indent=" " * _INDENT, break_on_hyphens=False
    )
