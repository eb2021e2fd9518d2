"""Runs `eqjax train-tokenizer` from a clone: python -m launch.train_tokenizer --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["train-tokenizer", *sys.argv[1:]])
