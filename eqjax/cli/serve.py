r"""Serves a page on which a panorama grows while one watches, and turns into what one chooses.

    eqjax serve
    eqjax serve --weights=runs/generator --port=8000 --max_sessions=4
    eqjax serve --host=0.0.0.0 --allowed_hosts=demo.example.org

The page needs the extra serve: pip install 'eqjax[serve]'. Ctrl-C ends the command.

Only this machine reaches the page, unless --host says otherwise. Requests are then answered under every name, unless
--allowed_hosts lists them; behind a proxy it lists the names that the proxy passes on. There is neither TLS nor a
password: a proxy in front adds both.
"""

import contextlib
import os
import signal
import socket
import threading
from typing import Any

from absl import flags, logging

from eqjax import extras
from eqjax.cli.command_line import flag_group
from eqjax.cli.model_flags import define_model_flags, load_model
from eqjax.progress import announced

# Seconds in which requests may finish when the server ends.
_GRACE = 3


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "What"):
        define_model_flags(values)
    with flag_group(values, "How"):
        flags.DEFINE_integer("num_flow_steps", 16, "Solver steps per column.", 1, flag_values=values)
        flags.DEFINE_string("solver", "adams_bashforth", "Flow solver: euler, heun or adams_bashforth.",
                            flag_values=values)  # fmt: skip
        flags.DEFINE_string("time_grid", "uniform", "Times of the solver's steps: uniform, shifted or cosine.",
                            flag_values=values)  # fmt: skip
        flags.DEFINE_integer("max_position", None, "Bound on cross-attention's positions; none as published.",
                             flag_values=values)  # fmt: skip
        flags.DEFINE_integer("strip_columns", 8, "Columns that a request draws.", 1, flag_values=values)
        flags.DEFINE_integer("slots", 8, "Viewers whose columns are drawn in one step.", 1, flag_values=values)
        flags.DEFINE_integer("max_sessions", None, "Viewers at the same time; as many as this machine keeps up with.",
                             1, flag_values=values)  # fmt: skip
    with flag_group(values, "Where"):
        flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: other machines reach the page.",
                            flag_values=values)  # fmt: skip
        flags.DEFINE_integer("port", 7860, "Port; 0 for any free one.", 0, 65535, flag_values=values)
        flags.DEFINE_list("allowed_hosts", None, "Names under which requests are answered; *.name, or * for all.",
                          flag_values=values)  # fmt: skip
        flags.DEFINE_list("frame_ancestors", None, "Origins of pages that may embed the page; Colab and Spaces.",
                          flag_values=values)  # fmt: skip


def run(args: flags.FlagValues) -> None:
    """Serves until it is interrupted.

    Raises:
      ModuleNotFoundError: the extra is missing.
      ValueError: the weights lack a tokenizer or a generator, or an option is out of its range.
      OSError: the port is taken, or the address is none of this machine.
    """
    for package in ("starlette", "uvicorn"):
        extras.require(package, "eqjax serve")
    with contextlib.closing(bind(args.host, args.port)) as listener:
        engine, app = prepare(args)
        try:
            _serve(app, listener, args.host)
        finally:
            engine.close()
    logging.info("The server has ended.")


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that has the port, but does not listen yet: preparing takes longer than finding a port taken.

    Args:
      host: address or name.
      port: the port; 0 for any free one.

    Raises:
      OSError: the port is taken, or the address is none of this machine.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise OSError(f"--host={host} is no address: {error.strerror}.") from error
    family, kind, _, _, address = found[0]
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(
            f"--host={host} --port={port} cannot be used ({error.strerror}): name another port; 0 is any free one."
        ) from error
    return listener


def prepare(args: flags.FlagValues) -> tuple[Any, Any]:
    """Returns the started engine and the application.

    Args:
      args: parsed flags.

    Raises:
      ValueError: the weights lack a tokenizer or a generator, or an option is out of its range.
    """
    from eqjax.serving import description
    from eqjax.serving.engine import Engine
    from eqjax.serving.security import FRAME_ANCESTORS, LOOPBACK_HOSTS, is_loopback
    from eqjax.serving.server import ServerOptions, create_app

    model = load_model(args)
    options: dict[str, Any] = {
        name: args[name].value for name in ("num_flow_steps", "solver", "time_grid", "max_position", "strip_columns")
    }
    options["num_slots"] = args.slots
    engine = Engine(model, max_sessions=args.max_sessions, **options)
    try:
        with announced("Compiling the model"):
            engine.start(lambda text: logging.info("%s", text))
        with announced("Drawing the classes", patience=2.0):
            thumbnails = description.draw_thumbnails(engine)
        about = description.describe(engine, ", ".join(os.path.basename(name) for name in args.weights), options)
        hosts = args.allowed_hosts or (LOOPBACK_HOSTS if is_loopback(args.host) else ("*",))
        ancestors = FRAME_ANCESTORS if args.frame_ancestors is None else args.frame_ancestors
        bounds = ServerOptions(
            allowed_hosts=hosts, frame_ancestors=ancestors, max_waiting=2 * engine.max_sessions + args.slots
        )
        return engine, create_app(engine, about, thumbnails, bounds)
    except BaseException:
        engine.close()
        raise


def _serve(app: Any, listener: socket.socket, host: str) -> None:
    """Answers requests until the process is interrupted or told to end."""
    import uvicorn

    port = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else "localhost" if host in ("0.0.0.0", "127.0.0.1") else host
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,  # Addresses hold the ids of sessions.
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_GRACE,
    )
    listener.listen()  # From here on, connections wait until they are taken.
    logging.info("The page is at http://%s:%d/ · Ctrl-C ends the server.", shown, port)
    if threading.current_thread() is threading.main_thread():
        # uvicorn ends at either signal, and then raises it again, for those who wait for it.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
