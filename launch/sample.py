"""Runs `eqjax sample` from a clone: python -m launch.sample --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
