"""Makes `python -m eqjax` the same as the console script `eqjax`."""

from eqjax.cli.main import main

if __name__ == "__main__":
    main()
