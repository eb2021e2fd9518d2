"""Installation of eqjax; the requirements are those of requirements.txt."""

import pathlib
import re

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist

_ROOT = pathlib.Path(__file__).parent


class _SourceArchive(sdist):
    """Puts requirements.txt, which this file reads, into the source archive too."""

    def make_distribution(self):
        self.filelist.append("requirements.txt")
        super().make_distribution()


def _read(name):
    return (_ROOT / name).read_text(encoding="utf-8")


def _requirements():
    lines = (line.split("#")[0].strip() for line in _read("requirements.txt").splitlines())
    return [line for line in lines if line]


setup(
    name="eqjax",
    version=re.search(r'^__version__ = "(.+)"$', _read("eqjax/__init__.py"), re.MULTILINE)[1],
    description="Equivariant image modeling in JAX: a column tokenizer and a windowed causal generator",
    long_description=_read("README.md") if (_ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    author="The eqjax authors",
    license="MIT",
    python_requires=">=3.11",
    # configs/ and launch/ are run from a clone and stay out of the wheel.
    packages=find_packages(include=["eqjax", "eqjax.*"]),
    package_data={"eqjax": ["py.typed", "weights/*"]},
    install_requires=_requirements(),
    extras_require={
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "wandb": ["wandb>=0.19"],
        "analysis": ["matplotlib>=3.10,<4"],
        "dev": [
            "beartype>=0.22,<1",
            "ipykernel>=6.29,<8",
            "jupytext>=1.17,<2",
            "matplotlib>=3.10,<4",
            "nbclient>=0.10,<1",
            "nbformat>=5.10,<6",
            "pyright>=1.1.400,<2",
            "pytest>=8.4,<10",
            "pytest-xdist>=3.8,<4",
            "ruff>=0.14,<0.18",
        ],
    },
    cmdclass={"sdist": _SourceArchive},
)
