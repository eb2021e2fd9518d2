"""Runs `eqjax check` from a clone: python -m launch.check --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["check", *sys.argv[1:]])
