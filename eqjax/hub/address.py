"""Addresses on the Hugging Face Hub: hf://owner/name[@revision][/file], and the links of its pages."""

import dataclasses
import os
import re
import urllib.parse

from eqjax.addresses import scheme

WEIGHTS_FILE = "model.safetensors"
EXPECTED = "expected hf://owner/name, hf://owner/name@revision or hf://owner/name@revision/file.safetensors"
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)
_OTHER_KINDS = ("datasets", "spaces", "buckets", "collections", "papers")
# Files that hold weights in other formats, most of them as programs; and other files.
_OTHER_FILES = re.compile(r".*\.(ckpt|pt|pth|bin|pkl|pickle|npz|h5|msgpack|onnx|gguf|json|md|png|txt)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class HubAddress:
    """A weights file on the Hub.

    Attributes:
      repo: the repository, owner/name.
      revision: a branch, tag or commit; None: the main branch.
      file: path of the file in the repository.

    Example:
      >>> str(HubAddress("owner/name", "v1"))
      'hf://owner/name@v1'
    """

    repo: str
    revision: str | None = None
    file: str = WEIGHTS_FILE

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"hf://{self.repo}{revision}{'' if self.file == WEIGHTS_FILE else f'/{self.file}'}"


def parse(source: str | os.PathLike[str]) -> HubAddress | None:
    """Parses an address; returns None for what is none: a path, or an address elsewhere.

    A folder stands for the file `model.safetensors` in it. A slash in the name of a branch is written %2F.

    Args:
      source: hf://owner/name[@revision][/file], or the link of a model's page or of a file of it.

    Returns:
      The address, or None.

    Raises:
      ValueError: it is no address of a model or of a safetensors file.

    Example:
      >>> parse("https://huggingface.co/owner/name/blob/v1/tokenizer.safetensors")
      HubAddress(repo='owner/name', revision='v1', file='tokenizer.safetensors')
      >>> parse("owner/name") is None
      True
    """
    source = os.fspath(source)
    kind = scheme(source)
    if kind == "hf":
        return _parse_short(source)
    if kind in ("http", "https") and urllib.parse.urlsplit(source).netloc.lower() in _hosts():
        return _parse_link(source)
    return None


def check_repo(repo: str, source: str) -> str:
    """Returns the name of a repository.

    Args:
      repo: owner/name.
      source: where it comes from, for messages.

    Raises:
      ValueError: it is not of the form owner/name.
    """
    parts = repo.split("/")
    if len(parts) != 2 or not all(_NAME.fullmatch(part) for part in parts) or parts[0] in _OTHER_KINDS:
        raise ValueError(f"{source} names no model of the Hugging Face Hub; {EXPECTED}.")
    return repo


def _hosts() -> tuple[str, ...]:
    """Returns the hosts of the Hub: its own, and that of HF_ENDPOINT."""
    return (*_HOSTS, urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc.lower())


def _parse_short(source: str) -> HubAddress:
    parts = source[len("hf://") :].rstrip("/").split("/")
    if parts[0] == "models" and len(parts) > 2:
        del parts[0]
    name, at, revision = parts[1].partition("@") if len(parts) > 1 else ("", "", "")
    rest = parts[2:]
    if revision == "refs" and len(rest) > 1:  # Those of pull requests have two slashes: refs/pr/1.
        revision, rest = "/".join([revision, *rest[:2]]), rest[2:]
    if at and not revision:
        raise ValueError(f"{source} has no revision after @; {EXPECTED}.")
    repo = check_repo(f"{parts[0]}/{name}", source)
    return HubAddress(repo, urllib.parse.unquote(revision) or None, _file(rest, source))


def _parse_link(source: str) -> HubAddress:
    parts = [urllib.parse.unquote(part) for part in urllib.parse.urlsplit(source).path.strip("/").split("/")]
    repo, view, rest = check_repo("/".join(parts[:2]), source), parts[2:3], parts[3:]
    if view and (view[0] not in ("tree", "blob", "resolve", "raw") or not rest):
        raise ValueError(f"{source} is a page of the Hub, but not that of a model or a file; {EXPECTED}.")
    revision = rest.pop(0) if rest else None
    if revision == "refs" and len(rest) > 1:
        revision, rest = "/".join([revision, *rest[:2]]), rest[2:]
    return HubAddress(repo, revision, _file(rest, source))


def _file(parts: list[str], source: str) -> str:
    """Returns the path of a weights file: the given one, or that in the given folder."""
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{source} has an empty part, '.' or '..' in its path; {EXPECTED}.")
    if parts and _OTHER_FILES.fullmatch(parts[-1]):
        raise ValueError(
            f"{source}: {parts[-1]} is not read from the Hub, only .safetensors files of eqjax are. Download a PyTorch "
            "file yourself, and convert it with: eqjax convert"
        )
    if parts and parts[-1].endswith(".safetensors"):
        return "/".join(parts)
    return "/".join([*parts, WEIGHTS_FILE])
