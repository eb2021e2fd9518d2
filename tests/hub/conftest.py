"""Fixtures of the Hub's tests: a server, versions of huggingface_hub, and programs that use them."""

import contextlib
import pathlib
import re
import subprocess
import sys

import pytest

from tests import hub_server
from tests.hub_program import Program

ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(name="hub")
def _hub():
    """A server of its own."""
    with hub_server.serve() as hub:
        yield hub


def install(requirement, folder):
    """Installs a version of huggingface_hub, with what it needs, into a folder."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(folder), requirement]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture(
    name="library",
    scope="session",
    params=["installed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("oldest", "newest"))],
)
def _library(request, tmp_path_factory):
    """The folder of a huggingface_hub at either end of the supported range, or None for the installed one."""
    if request.param == "installed":
        return None
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    found = re.search(r"^huggingface_hub>=([\d.]+)$", text, re.MULTILINE)
    assert found
    bounds = {"oldest": f"=={found[1]}", "newest": ""}
    return install(f"huggingface_hub{bounds[request.param]}", tmp_path_factory.mktemp(request.param))


@pytest.fixture(name="start")
def _start(hub, library, tmp_path):
    """A function that starts programs; they share a cache unless another `home` is given."""
    with contextlib.ExitStack() as stack:

        def start(home=tmp_path / "home", **variables):
            environment = {"HF_TOKEN": "", "HF_HUB_OFFLINE": "", **hub.environment(home), **variables}
            return stack.enter_context(Program(environment, library))

        yield start
