"""The serving command: what it refuses before it compiles, what it passes on, and how it begins and ends."""

import re
import signal
import socket
import sys
import types
import urllib.error
import urllib.request

import pytest
from starlette.testclient import TestClient

from eqjax import pretrained
from eqjax.cli import command_line, serve
from eqjax.cli.main import COMMANDS, main
from tests import subprocesses
from tests.sampling.small_models import local_model
from tests.serving.fake_engine import FakeEngine


def parse(*arguments):
    return command_line.parse(COMMANDS["serve"], arguments)[0]


@pytest.fixture(name="weights", scope="module")
def _weights(tmp_path_factory):
    """A file of a tiny model."""
    m = local_model()
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    modules = {"tokenizer": m.tokenizer, "generator": m.generator}
    params = {"tokenizer": m.tokenizer_params, "generator": m.generator_params}
    pretrained.save(path, pretrained.Weights(modules, params, m.latent_scale, m.class_names))
    return str(path)


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"eqjax serve: the package {package} is missing.*'eqjax\[serve\]'"):
        serve.run(parse())


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(monkeypatch, capsys):
    monkeypatch.setattr(serve, "load_model", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"--host=127.0.0.1 --port={port} cannot be used .*another port"):
            serve.run(parse(f"--port={port}"))
    with pytest.raises(OSError, match="--host=no.such.host.invalid is no address"):
        serve.run(parse("--host=no.such.host.invalid"))
    with pytest.raises(SystemExit):
        main(["serve", "--port=70000"])
    assert "--port=70000" in capsys.readouterr().err


@pytest.fixture(name="prepared")
def _prepared(monkeypatch):
    """A function that prepares the server with an engine that paints stripes: (engine, a client)."""
    made = []

    def make(model, **options):
        made.append(FakeEngine())
        made[-1].given = (model, options)
        return made[-1]

    monkeypatch.setitem(sys.modules, "eqjax.serving.engine", types.SimpleNamespace(Engine=make))
    model = types.SimpleNamespace(tokenizer=1, generator=1)
    monkeypatch.setattr(serve, "load_model", lambda _: model)

    def prepare(*arguments):
        engine, app = serve.prepare(parse(*arguments))
        return engine, TestClient(app, base_url="http://localhost")

    return prepare


def test_options_reach_the_engine_and_every_class_has_an_image(prepared):
    engine, client = prepared("--num_flow_steps=3", "--slots=2", "--max_sessions=5", "--weights=runs/a,runs/b")
    options = engine.given[1]
    assert (options["num_flow_steps"], options["num_slots"], options["max_sessions"]) == (3, 2, 5)
    assert (options["solver"], options["strip_columns"], options["max_position"]) == ("adams_bashforth", 8, None)
    images = {client.get(f"/api/classes/{label}").content for label in range(8)}
    assert len(images) == 8 and not engine.sessions
    assert client.get("/api/model").json()["name"] == "a, b"


def test_other_hosts_are_answered_only_where_others_reach_the_server(prepared):
    for arguments, status in (([], 403), (["--host=0.0.0.0"], 200), (["--allowed_hosts=a.example,b.example"], 200)):
        _, client = prepared(*arguments)
        assert client.get("/health", headers={"host": "b.example"}).status_code == status
    assert client.get("/health", headers={"host": "localhost"}).status_code == 403


def test_an_engine_is_closed_if_the_server_cannot_be_made(prepared, monkeypatch):
    closed = []
    monkeypatch.setattr(FakeEngine, "start", lambda *_: 1 / 0)
    monkeypatch.setattr(FakeEngine, "close", lambda _: closed.append(1))
    with pytest.raises(ZeroDivisionError):
        prepared()
    assert closed == [1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_announces_compiles_serves_and_ends(weights, number):
    arguments = (f"--weights={weights}", "--port=0", "--slots=2", "--max_sessions=2")
    process = subprocesses.start("eqjax", "serve", *arguments, "--num_flow_steps=2")
    assert process.stdout is not None
    lines = []
    while not (found := re.search(r"http://localhost:(\d+)/", line := process.stdout.readline())):
        assert line, "".join(lines)
        lines.append(line)
    assert "Compiling the model …" in "".join(lines)
    address = f"http://127.0.0.1:{found[1]}"
    with urllib.request.urlopen(f"{address}/api/model") as answer:
        assert answer.status == 200 and "server" not in answer.headers
    wrong = urllib.request.Request(f"{address}/health", headers={"Host": "attacker.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(wrong)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and output.strip().endswith("The server has ended.") and "Traceback" not in output
