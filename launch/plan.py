"""Runs `eqjax plan` from a clone: python -m launch.plan --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])
