"""The container of the page: what it copies exists, what it runs is right, and it does not run as root."""

import fnmatch
import json
import pathlib
import re
import shlex
import subprocess
import sys

from eqjax.cli import command_line
from eqjax.cli.main import COMMANDS
from tests.serving import browser
from tests.serving.fake_engine import FakeEngine

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / ".docker"
TEXT = re.sub(r"\\\n\s*", "", (FOLDER / "Dockerfile").read_text(encoding="utf-8"))
LINES = [line for line in TEXT.splitlines() if line and not line.startswith("#")]


def arguments(keyword):
    """Returns what stands behind a keyword, line by line."""
    return [line.removeprefix(keyword).strip() for line in LINES if line.startswith(f"{keyword} ")]


def copied():
    """Returns the paths of the repository that are copied."""
    return [path for line in arguments("COPY") if "--from" not in line for path in line.split()[:-1]]


def test_what_is_copied_exists_and_is_not_ignored():
    assert copied() and all((ROOT / path).exists() for path in copied())
    kept = [line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(kept) == sorted(copied())


def test_everything_is_copied_of_which_the_wheel_is_made():
    """Whatever setup.py and pyproject.toml name."""
    named = {"pyproject.toml", "setup.py", "eqjax", "configs"}
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "setup.py")]
    named |= set(re.findall(r'"(README\.md|requirements\.txt|LICENSE)"', "".join(texts)))
    assert named <= set(copied())


def test_the_command_is_one_of_ours_and_listens_to_other_machines():
    (command,) = arguments("CMD")[-1:]
    program, name, *flags = json.loads(command)
    args, _ = command_line.parse(COMMANDS[name], flags)
    assert program == "eqjax" and args.host == "0.0.0.0" and [str(args.port)] == arguments("EXPOSE")


def test_it_does_not_run_as_root():
    last = max(i for i, line in enumerate(LINES) if line.startswith(("RUN", "COPY")))
    users = [i for i, line in enumerate(LINES) if line.startswith("USER")]
    assert users and users[-1] > last and arguments("USER")[-1] == "page" and "--uid 1000 page" in TEXT


def test_the_extra_is_installed_and_shell_lines_parse():
    assert "[serve]" in TEXT
    for line in arguments("RUN"):
        subprocess.run(["bash", "-n", "-c", line], check=True)
        assert shlex.split(line)


def test_the_health_check_asks_the_running_page():
    (check,) = [line for line in arguments("HEALTHCHECK")]
    program, option, code = json.loads(check[check.index("[") :])
    assert (program, option) == ("python", "-c")
    with browser.served(FakeEngine()) as address:
        code = code.replace("http://127.0.0.1:7860/", address)
        subprocess.run([sys.executable, option, code], check=True, timeout=60)
        wrong = subprocess.run([sys.executable, option, code.replace("health", "nothing")], check=False, timeout=60)
    assert wrong.returncode == 1


def test_the_page_is_in_the_wheel():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    (pattern,) = re.findall(r'"eqjax\.serving": \["([^"]+)"\]', setup)
    files = [path.relative_to(ROOT / "eqjax" / "serving") for path in (ROOT / "eqjax/serving/page").iterdir()]
    assert files and all(fnmatch.fnmatch(str(path), pattern) for path in files)
