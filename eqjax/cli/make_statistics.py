r"""Computes reference statistics of a set of images, which FID and related metrics compare with.

    eqjax make-statistics --input=/path/to/images --output=statistics.npz
    eqjax make-statistics --input=samples.npz --output=statistics.npz
    eqjax make-statistics --data.source=folder --data.root=/path/to/root \
        --data.height=256 --data.width=256 --data.resize=256 --output=statistics.npz

The file holds mu, sigma, mu_s and sigma_s, as ADM's does, the protocol, and the pooled features of
--num_stored_features images, which KID, precision and recall need: a uniform choice, the same in every run.
"""

import os
import re
from typing import TYPE_CHECKING

from absl import flags, logging
from ml_collections import config_flags

from eqjax.cli.command_line import flag_group
from eqjax.data import default_config
from eqjax.io import remove_leftovers
from eqjax.progress import announced

if TYPE_CHECKING:
    from eqjax.evaluation import ImageSet


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    with flag_group(values, "Images"):
        flags.DEFINE_string("input", None, "Folder of images of one size, or npz with arr_0; or give --data.….",
                            flag_values=values)  # fmt: skip
        config_flags.DEFINE_config_dict("data", default_config(), "Instead of --input: a data set's evaluation crops.",
                                        flag_values=values)  # fmt: skip
        flags.DEFINE_integer("num_images", None, "With --data.…: number of images, spread evenly; by default all.", 1,
                             flag_values=values)  # fmt: skip
    with flag_group(values, "Features"):
        flags.DEFINE_integer("num_stored_features", 10_000, "Images whose features are stored; 0 for none.", 0,
                             flag_values=values)  # fmt: skip
        flags.DEFINE_integer("batch_size", None, "Images at a time on each device; as its memory allows.", 1,
                             flag_values=values)  # fmt: skip
        flags.DEFINE_string("nets_folder", None, "Folder of frozen weights; by default that of `eqjax fetch-weights`.",
                            flag_values=values)  # fmt: skip
    with flag_group(values, "Output"):
        flags.DEFINE_string("output", None, "Statistics file (.npz).", required=True, flag_values=values)


def find_images(args: flags.FlagValues) -> "ImageSet":
    """Returns the images of --input or of --data.….

    Raises:
      ValueError: neither is given, or flags of both.
    """
    from eqjax.evaluation import image_sets

    fields = config_flags.get_override_values(args["data"])
    if args.input:
        given = [f"--data.{name}" for name in fields] + ["--num_images"] * bool(args.num_images)
        if given:
            raise ValueError(
                f"--input={args.input} takes all images as they are; {', '.join(given)} would have no effect. "
                "Leave them out, or give --data.source and --data.root instead of --input."
            )
        return image_sets.from_path(args.input)
    if "source" not in fields:
        raise ValueError(
            "give --input=(a folder of images, or an npz), or a data set: --data.source=folder --data.root=… with "
            "--data.height, --data.width and --data.resize; --data.source=photos takes the built-in photographs."
        )
    return image_sets.from_data(args.data, args.num_images)


def run(args: flags.FlagValues) -> None:
    """Computes the statistics in one pass over the images and writes the file."""
    with announced("Loading the libraries", patience=2.0):
        from eqjax.evaluation import Extractor, fid, networks, statistics

    folder, name = os.path.split(args.output)
    remove_leftovers(folder or ".", re.escape(name))
    with announced("Reading the list of images", patience=2.0):
        images = find_images(args)
    with announced("Loading Inception's weights", patience=2.0):
        extractor = Extractor(networks.inception(args.nets_folder), per_device_batch_size=args.batch_size)
    features = extractor.collect(images.batches(), images.count, num_stored_features=args.num_stored_features)
    with announced(f"Writing {args.output}", patience=2.0):
        statistics.save(args.output, features.statistics)
    fid.warn_if_few(images.count, len(features.statistics.mean), args.output)
    logging.info(
        "Statistics of %d images (%s) in %s, %.1f images per second; %s",
        images.count,
        images.source,
        args.output,
        images.count / features.seconds,
        features.statistics.protocol,
    )
