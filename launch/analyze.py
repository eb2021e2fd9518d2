"""Runs `eqjax analyze` from a clone: python -m launch.analyze --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["analyze", *sys.argv[1:]])
