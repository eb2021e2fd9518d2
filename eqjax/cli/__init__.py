"""The commands of the console script `eqjax`.

A command is a module with a docstring (purpose and an example: the head of `eqjax NAME --help`) and two functions:

    define_flags(values: flags.FlagValues) -> None    defines the flags, in groups (`command_line.flag_group`)
    run(args: flags.FlagValues) -> None               does the work; raises errors whose message is for the user

A command that takes words besides flags has `run(args, words)`. `eqjax.cli.main.COMMANDS` lists all of them,
`eqjax.cli.command_line` parses their flags, and `eqjax.cli.runner` is their common shell. Modules that take long to
import (JAX and whatever uses it) are imported inside `run`, so that --help and messages about flags appear at once.
"""
