"""The reference of the documentation site holds every public name, command and configuration field."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import zlib

import pytest

from eqjax.cli import command_line, main

ROOT = pathlib.Path(__file__).parent.parent.parent
DOCS = ROOT / ".docs"


@pytest.fixture(name="pages", scope="module")
def _pages():
    """The module that writes the pages."""
    spec = importlib.util.spec_from_file_location("pages", DOCS / "pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_has_a_page_with_its_public_names(pages):
    made = pages.api()
    files = {path for path in (ROOT / "eqjax").rglob("*.py") if not re.search(r"/(_\w+|configs)\b", str(path)[:-11])}
    assert len(files) > 100 and len(pages.modules()) >= len([f for f in files if not f.name.startswith("__main__")])
    for module in pages.modules():
        page = made[f"api/{module}.rst"]
        for name in pages.public_names(module):
            assert re.search(rf"^\.\. (autofunction|autoclass|py:data):: {name}$", page, re.MULTILINE), (module, name)
        for name, home in pages.exported_names(module).items():
            assert f":py:obj:`{name} <{home}>`" in page


def test_every_module_is_in_one_part(pages):
    made = pages.api()
    listed = [name for page, text in made.items() if "/part_" in page for name in re.findall(r"\]\((\S+)\.rst\)", text)]
    assert sorted(listed) == pages.modules()


def test_every_command_has_a_page_with_its_flags(pages):
    made = pages.commands()
    for name, command in main.COMMANDS.items():
        flags = re.findall(r"^  (--.+?)(?:  |$)", command_line.help_text(command), re.MULTILINE)
        assert flags
        for flag in flags:
            assert f"| `{flag}`" in made[f"commands/{name}.md"]


def test_links_of_pages_that_hosts_show_lead_to_files():
    texts = [ROOT / "README.md", *ROOT.glob(".github/*.md"), *DOCS.rglob("*.md")]
    texts += [path for folder in ("eqjax", "launch", "colabs") for path in (ROOT / folder).rglob("*.md")]
    for page in texts:
        if "generated" in page.parts or "notebooks" in page.parts:
            continue
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            made = "generated/" in link or "notebooks/" in link
            assert made or re.match(r"https?:", link) or (page.parent / link).exists(), f"{page}: {link}"


@pytest.mark.slow
def test_the_site_is_built_without_warnings_and_has_every_public_name(pages):
    # Where `make docs` writes it, which then has little left to do.
    site = ROOT / ".cache" / "docs"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", site / "doctrees"]
    done = subprocess.run(
        [*command, ROOT / ".docs", site / "html"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    # Four lines, then compressed ones: name, kind, priority, address, title.
    *_, packed = (site / "html" / "objects.inv").read_bytes().split(b"\n", 4)
    entries = [line.split(" ") for line in zlib.decompress(packed).decode().splitlines()]
    known = {name for name, kind, *_ in entries if kind.startswith("py:")}
    missing = {f"{module}.{name}" for module in pages.modules() for name in pages.public_names(module)} - known
    assert not missing
