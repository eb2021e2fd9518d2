"""Trains a windowed causal generator on a trained tokenizer.

Fields of the configuration are set by name: --config.batch_size=32 --config.optimizer.learning_rate=1e-4. The same
command resumes a run that was interrupted. All fields: --print_config.

    eqjax train-generator --config=photos_generator --print_config
    eqjax train-generator --config=photos_generator --workdir=runs/generator --config.tokenizer_weights=runs/tokenizer
"""

from collections.abc import Sequence

from absl import flags

from eqjax.cli.training_flags import answer_print_config, define_training_flags
from eqjax.progress import announced


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    define_training_flags(values)


def answer(args: flags.FlagValues, arguments: Sequence[str]) -> str | None:
    """Returns the configuration if it is to be printed; else None."""
    return answer_print_config("generator", args, arguments)


def run(args: flags.FlagValues) -> None:
    """Trains to the end, or until the process is asked to stop."""
    with announced("Loading the libraries", patience=2.0):
        from eqjax.training import generator

    generator.train_and_evaluate(args.config, args.workdir)
