"""Runs `eqjax gpu-compile` from a clone: python -m launch.gpu_compile --help."""

import sys

from eqjax.cli.main import main

if __name__ == "__main__":
    main(["gpu-compile", *sys.argv[1:]])
