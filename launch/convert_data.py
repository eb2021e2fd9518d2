"""Runs `eqjax convert-data` from a clone: python -m launch.convert_data --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["convert-data", *sys.argv[1:]])
