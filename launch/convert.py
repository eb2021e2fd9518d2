"""Runs `eqjax convert` from a clone: python -m launch.convert --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
