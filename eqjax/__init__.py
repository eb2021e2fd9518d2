"""eqjax: equivariant image modeling in JAX. A column tokenizer and a windowed causal generator."""

from eqjax import convert
from eqjax.generator import Generator
from eqjax.pretrained import load_pretrained
from eqjax.sampling import Model, continue_photograph, panorama, sample_latents
from eqjax.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "Model",
    "Tokenizer",
    "continue_photograph",
    "convert",
    "load_pretrained",
    "panorama",
    "sample_latents",
]
