"""The common shell of all commands: set-up of JAX, error messages and exit codes."""

from collections.abc import Callable, Sequence
import logging as python_logging
import os
import signal
import sys

from absl import flags, logging

from eqjax import debug_log
from eqjax.cli import processes
from eqjax.cli.command_line import CACHE, CACHE_VARIABLE, Command, help_text, parse
from eqjax.io import check_writable
from eqjax.progress import announced

# Exit codes: 0 for success, 1 for an error that a restart would meet again, and this one (EX_TEMPFAIL of sysexits.h)
# for a command that was asked to stop and has saved its progress; the same command resumes it.
EXIT_PREEMPTED = 75
# What shells report for a program that Ctrl-C ended.
EXIT_INTERRUPTED = 128 + signal.SIGINT

# Errors whose message names the problem and the remedy; a traceback would hide it.
_EXPLAINED = (ValueError, OSError, FloatingPointError, ModuleNotFoundError)
# Flags on which memory depends.
_SIZES = ("batch_size", "num_columns", "classes", "seeds", "num_images", "num_stored_features", "left", "right")
# Flags that name what a command writes.
_PLACES = ("output", "animation", "workdir")
_VERBOSE = ("-v", "--verbose")  # Of every command: prints traces instead of keeping them in a file.


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
        for name in _PLACES:
            if name in args and args[name].value and "://" not in args[name].value:  # Addresses have their own check.
                check_writable(args[name].value, f"--{name}")
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
      cache: folder of compiled programs; "" for none, None for JAX_COMPILATIONCACHE_DIR or ~/.cache/eqjax/xla.
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
    if cache is None and not os.environ.get(CACHE_VARIABLE):
        cache = CACHE
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
