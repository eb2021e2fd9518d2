"""Runs `eqjax serve` from a clone: python -m launch.serve --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["serve", *sys.argv[1:]])
