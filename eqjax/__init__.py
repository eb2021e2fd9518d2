"""eqjax: equivariant image modeling in JAX. A column tokenizer and a windowed causal generator."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError(
        "eqjax runs on Linux and macOS; parts of it, and the package array_record, do not exist for Windows. On "
        "Windows, install it in WSL 2 (Windows Subsystem for Linux), where it also finds NVIDIA GPUs."
    )

if TYPE_CHECKING:
    from eqjax import convert, pixels
    from eqjax.generator import Generator
    from eqjax.hub.upload import push_to_hub
    from eqjax.image_output import save_animation, save_image
    from eqjax.loading import load_pretrained
    from eqjax.model import Model
    from eqjax.sampling.latents import sample_latents
    from eqjax.sampling.outpainting import outpaint
    from eqjax.sampling.panorama import panorama
    from eqjax.sampling.two_sides import two_sides
    from eqjax.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "Model",
    "Tokenizer",
    "convert",
    "load_pretrained",
    "outpaint",
    "panorama",
    "pixels",
    "push_to_hub",
    "sample_latents",
    "save_animation",
    "save_image",
    "two_sides",
]

# Imported at first use: importing JAX takes seconds, and the command line answers --help without it.
_MODULES = {
    "Generator": "eqjax.generator",
    "Model": "eqjax.model",
    "Tokenizer": "eqjax.tokenizer",
    "load_pretrained": "eqjax.loading",
    "outpaint": "eqjax.sampling.outpainting",
    "panorama": "eqjax.sampling.panorama",
    "push_to_hub": "eqjax.hub.upload",
    "sample_latents": "eqjax.sampling.latents",
    "save_animation": "eqjax.image_output",
    "save_image": "eqjax.image_output",
    "two_sides": "eqjax.sampling.two_sides",
}


def __getattr__(name: str) -> Any:
    if name in ("convert", "pixels"):
        return importlib.import_module(f"eqjax.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'eqjax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
