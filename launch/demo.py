"""Runs `eqjax demo` from a clone: python -m launch.demo --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
