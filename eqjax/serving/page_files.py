"""The files of the page, read once: nothing that a client sends ever names a file."""

import dataclasses
import hashlib
from importlib import resources

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclasses.dataclass(frozen=True)
class PageFile:
    """A file of the page.

    Attributes:
      content: its bytes.
      media_type: its type, as in the header Content-Type.
      tag: a hash of the content, as in the header ETag.
    """

    content: bytes
    media_type: str
    tag: str


def load_page_files() -> dict[str, PageFile]:
    """Returns the files of the page by their names.

    Example:
      >>> load_page_files()["page.js"].media_type
      'text/javascript; charset=utf-8'
    """
    found = {}
    for file in resources.files("eqjax.serving").joinpath("page").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _TYPES:
            content = file.read_bytes()
            found[file.name] = PageFile(content, _TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return dict(sorted(found.items()))
