"""Runs `eqjax cache-latents` from a clone: python -m launch.cache_latents --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["cache-latents", *sys.argv[1:]])
