"""eqjax: equivariant image modeling in JAX. A column tokenizer and a windowed causal generator."""

from eqjax import convert
from eqjax.generator import Generator
from eqjax.model import Model
from eqjax.pretrained import load_pretrained
from eqjax.sampling.outpainting import outpaint
from eqjax.sampling.panorama import panorama
from eqjax.sampling.sampler import sample_latents
from eqjax.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Generator",
    "Model",
    "Tokenizer",
    "outpaint",
    "convert",
    "load_pretrained",
    "panorama",
    "sample_latents",
]
