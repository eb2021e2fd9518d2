"""Runs `eqjax evaluate` from a clone: python -m launch.evaluate --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
