"""Runs `eqjax fetch-weights` from a clone: python -m launch.fetch_weights --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["fetch-weights", *sys.argv[1:]])
