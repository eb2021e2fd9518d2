r"""Computes reference statistics of a set of images: what FID and its family compare with.

    python -m eqjax.cli.make_statistics --input=/path/to/images --output=statistics.npz
    python -m eqjax.cli.make_statistics --input=samples.npz --output=statistics.npz
    python -m eqjax.cli.make_statistics --data.source=folder --data.root=/path/to/root \
        --data.height=256 --data.width=256 --data.resize=256 --output=statistics.npz

The file holds mu, sigma, mu_s and sigma_s, as ADM's does, the protocol, and the pooled features of --num_stored_features
images that KID, precision and recall need: a uniform choice, the same in every run.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from eqjax.cli import runner
from eqjax.data import default_config
from eqjax.evaluation import Extractor, fid, image_sets, networks, statistics


def define_flags(values=flags.FLAGS, argv=None):
    """Defines the command's flags; `argv` is where --data.… are looked for, sys.argv without it."""
    flags.DEFINE_string(
        "input", None, "Folder of images of one size, or an npz with arr_0; or give --data.…", flag_values=values
    )
    flags.DEFINE_string("output", None, "The statistics file.", required=True, flag_values=values)
    flags.DEFINE_integer(
        "num_images", None, "With --data: so many, spread evenly; all without it.", 1, flag_values=values
    )
    flags.DEFINE_integer(
        "num_stored_features",
        10_000,
        "Keep the features of so many images, chosen uniformly; 0: none.",
        0,
        flag_values=values,
    )
    flags.DEFINE_integer("batch_per_device", 32, "Images that a device takes at a time.", 1, flag_values=values)
    flags.DEFINE_string(
        "nets_folder", None, "Where Inception's weights lie; as eqjax.nets.load without it.", flag_values=values
    )
    config_flags.DEFINE_config_dict(
        "data", default_config(), "In place of --input: evaluation crops of it.", flag_values=values, sys_argv=argv
    )


def find_images(args):
    """The `ImageSet` of --input or of --data.….

    Raises:
      ValueError: neither, or something of both.
    """
    fields = config_flags.get_override_values(args["data"])
    if args.input:
        given = [f"--data.{name}" for name in fields] + ["--num_images"] * bool(args.num_images)
        if given:
            raise ValueError(
                f"--input={args.input} takes all images as they are; {', '.join(given)} would change nothing. "
                "Leave them out, or give --data.source and --data.root in place of --input."
            )
        return image_sets.from_path(args.input)
    if "source" not in fields:
        raise ValueError(
            "give --input=(a folder of images, or an npz), or a data set: --data.source=folder --data.root=… with "
            "--data.height, --data.width and --data.resize; --data.source=photos takes the built-in photographs."
        )
    return image_sets.from_data(args.data, args.num_images)


def run(args):
    """Runs over the images once and writes the file."""
    found = find_images(args)
    extractor = Extractor(networks.inception(args.nets_folder), per_device_batch_size=args.batch_per_device)
    features = extractor.collect(found.batches(), found.count, num_stored_features=args.num_stored_features)
    statistics.save(args.output, features.statistics)
    fid.warn_if_few(found.count, len(features.statistics.mean), args.output)
    logging.info(
        "Statistics of %d images (%s) in %s, %.1f images per second; %s",
        found.count,
        found.source,
        args.output,
        found.count / features.seconds,
        features.statistics.protocol,
    )


def main(argv):
    """Makes statistics, and says in one message what is wrong."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}.")
    runner.finish(lambda: run(flags.FLAGS))


if __name__ == "__main__":
    define_flags()
    app.run(main)
