"""Optional packages: the extra that installs each of them, and the message where one is missing."""

import importlib.util
import sys

# The extra of pyproject.toml, by a package's import name.
EXTRAS = {
    "av": "video",
    "matplotlib": "analysis",
    "pyarrow": "parquet",
    "skimage": "photos",
    "sklearn": "photos",
    "starlette": "serve",
    "tensorflow_datasets": "tfds",
    "uvicorn": "serve",
    "wandb": "wandb",
}
_PIP_NAMES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


def require(package: str, what: str) -> None:
    """Checks that an optional package is installed, without importing it.

    Args:
      package: its import name, a key of EXTRAS.
      what: what needs it, as the beginning of the message.

    Raises:
      ModuleNotFoundError: the package is missing; the message gives the command that installs it.

    Example:
      >>> require("matplotlib", "plots")
    """
    loaded = sys.modules[package] is not None if package in sys.modules else importlib.util.find_spec(package)
    if not loaded:
        name = _PIP_NAMES.get(package, package)
        raise ModuleNotFoundError(
            f"{what}: the package {name} is missing; install it with: pip install 'eqjax[{EXTRAS[package]}]'"
        )
