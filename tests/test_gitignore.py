"""Git ignores what the commands in the documentation write, and nothing that belongs to the project."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FOLDERS = (".docs", ".github", "configs", "eqjax", "launch")
TEXTS = [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.*"))]
WRITTEN = re.compile(r"""(?:--(?:output|workdir|state)[= ]|save\(["'])([\w/-]*[./][\w./-]*\w)""")


@pytest.fixture(name="ignored")
def _ignored(tmp_path):
    """A function from relative paths to those among them that git ignores."""
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())

    def ignored(paths):
        command = ["git", "-C", str(tmp_path), "check-ignore", "--stdin"]
        done = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        return set(done.stdout.splitlines())

    return ignored


def test_documented_commands_write_only_what_git_ignores(ignored):
    texts = [path.read_text(encoding="utf-8") for path in TEXTS if path.suffix in (".md", ".py")]
    names = {name for text in texts for name in WRITTEN.findall(text)}
    # In folders, the files: a pattern of a folder matches only what is known to be one.
    paths = {name if pathlib.Path(name).suffix else f"{name}/file" for name in names if not name.startswith("/")}
    assert {
        "runs/generator/file",
        "caches/train/file",
        "flower.png",
        "statistics.npz",
        "tokenizer.safetensors",
    } <= paths
    assert paths - ignored(paths) <= {"eqjax/weights/photos.safetensors"}  # How the shipped weights were made.


def test_files_of_the_project_are_not_ignored(ignored):
    folders = ("colabs", "configs", "eqjax", "launch", "tests")
    files = [str(path.relative_to(ROOT)) for name in folders for path in (ROOT / name).rglob("*") if path.is_file()]
    made = re.compile(r"__pycache__|\.ipynb_checkpoints|^colabs/(programs/|[^/]*\.(npz|png)$)")
    assert "eqjax/weights/photos.safetensors" in files and "eqjax/recorded/generator_tiny.npz" in files
    assert not ignored([file for file in files if not made.search(file)])
