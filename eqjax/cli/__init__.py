"""The commands of the `eqjax` console script."""
