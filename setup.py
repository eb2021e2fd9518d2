"""Packages of eqjax, and what its archive of sources leaves out. All other metadata is in pyproject.toml."""

from setuptools import find_packages, setup
from setuptools.command.sdist import sdist


class SourceArchive(sdist):
    """Leaves the tests out: setuptools would add some of their files, which do not run without the others."""

    def add_defaults(self) -> None:
        super().add_defaults()
        self.filelist.exclude_pattern("tests/*", anchor=True)


setup(
    cmdclass={"sdist": SourceArchive},
    # The wheel holds configs/ as eqjax/configs, where `--config=NAME` finds it; see eqjax/config_files.py.
    packages=[*find_packages(include=["eqjax", "eqjax.*"]), "eqjax.configs", "eqjax.weights"],
    package_dir={"eqjax.configs": "configs"},
    package_data={
        "eqjax": ["py.typed"],
        "eqjax.recorded": ["*.json", "*.npz"],
        "eqjax.serving": ["page/*"],
        "eqjax.weights": ["*"],
    },
)
