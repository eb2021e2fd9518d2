"""Runs `eqjax hub` from a clone: python -m launch.hub --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["hub", *sys.argv[1:]])
