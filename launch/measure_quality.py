"""Runs `eqjax measure-quality` from a clone: python -m launch.measure_quality --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["measure-quality", *sys.argv[1:]])
