"""Packages of eqjax. All other metadata is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    # The wheel holds configs/ as eqjax/configs, where `--config=NAME` finds it; see eqjax/config_files.py.
    packages=[*find_packages(include=["eqjax", "eqjax.*"]), "eqjax.configs", "eqjax.weights"],
    package_dir={"eqjax.configs": "configs"},
    package_data={"eqjax": ["py.typed"], "eqjax.serving": ["page/*"], "eqjax.weights": ["*"]},
)
