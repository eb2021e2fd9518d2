"""Runs `eqjax make-statistics` from a clone: python -m launch.make_statistics --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["make-statistics", *sys.argv[1:]])
