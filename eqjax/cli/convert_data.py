r"""Converts Parquet files with images, such as data sets of the Hugging Face Hub, to archives for training.

    eqjax convert-data --input='imagenet-1k/data/train-*.parquet' --output=data/train
    eqjax train-tokenizer --config=CONFIG --workdir=runs/tokenizer \
        --config.data.source=webdataset --config.data.root=data/train

The images are copied byte for byte into tar files (WebDataset), in which each can be read alone: training reads them
in random order, and resumes. The names of the classes are kept in class_names.json. Needs pyarrow: pip install
'eqjax[parquet]'
"""

import os

from absl import flags, logging
import tqdm

from eqjax.cli.command_line import flag_group


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "Input"):
        flags.DEFINE_string(
            "input", None, "Folder of Parquet files of one split, a file, or a pattern.", flag_values=values
        )
        flags.DEFINE_string(
            "image_column", None, "Column of the images; found if it is the only one.", flag_values=values
        )
        flags.DEFINE_string("label_column", None, "Column of the classes; found by its description or name.",
                            flag_values=values)  # fmt: skip
    with flag_group(values, "Output"):
        flags.DEFINE_string("output", None, "Folder to write, which must not exist.", flag_values=values)
    flags.mark_flags_as_required(["input", "output"], flag_values=values)


def run(args: flags.FlagValues) -> None:
    """Converts.

    Raises:
      FileNotFoundError: there are no such files.
      FileExistsError: the output holds something.
      ModuleNotFoundError: pyarrow is not installed.
      ValueError: a file or a column does not fit; the message lists the columns.
    """
    from eqjax.data import parquet

    with tqdm.tqdm(unit="row", disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        made = parquet.convert(args.input, args.output, args.image_column, args.label_column, show)
    classes = "classes are numbers" if made.class_names is None else f"{len(made.class_names)} classes"
    logging.info(
        "Wrote %d images (column %s, %s of column %s) to %d archives in %s. Train with --config.data.source=webdataset "
        "--config.data.root=%s",
        made.num_images,
        made.image_column,
        classes,
        made.label_column,
        made.num_shards,
        os.path.abspath(args.output),
        args.output,
    )
