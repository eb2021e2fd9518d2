"""Trains a column tokenizer.

Fields of the configuration are set by name: --config.batch_size=32 --config.optimizer.learning_rate=1e-4. The same
command resumes a run that was interrupted.

    eqjax train-tokenizer --config=photos_tokenizer --workdir=runs/tokenizer
"""

from absl import flags

from eqjax.cli.runner import define_config, flag_group


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "What"):
        define_config(values)
    with flag_group(values, "Output"):
        flags.DEFINE_string(
            "workdir",
            None,
            "Folder of the run: checkpoints, logs, images, weights.",
            required=True,
            flag_values=values,
        )


def run(args: flags.FlagValues) -> None:
    """Trains to the end, or until the process is asked to stop."""
    from eqjax.training import tokenizer

    tokenizer.train_and_evaluate(args.config, args.workdir)
