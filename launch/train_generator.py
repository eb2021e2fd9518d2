"""Runs `eqjax train-generator` from a clone: python -m launch.train_generator --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["train-generator", *sys.argv[1:]])
