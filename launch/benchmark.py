"""Runs `eqjax benchmark` from a clone: python -m launch.benchmark --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
