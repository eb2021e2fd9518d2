r"""Computes reference statistics of a set of images: what FID and its family compare with.

    python -m launch.make_statistics --input=/path/to/pictures --output=statistics.npz
    python -m launch.make_statistics --input=samples.npz --output=statistics.npz
    python -m launch.make_statistics --data.source=folder --data.root=/path/to/root \
        --data.height=256 --data.width=256 --data.resize=256 --output=statistics.npz

The file holds mu, sigma, mu_s and sigma_s, as ADM's does, the protocol, and with --keep_features the pooled
features that KID, precision and recall need.
"""

from absl import app, flags, logging
from ml_collections import config_flags

from eqjax.data import default_config
from eqjax.evaluation import Extractor, images, inception, report
from launch import runner

_INPUT = flags.DEFINE_string("input", None, "Folder of pictures of one size, or an npz with arr_0; or give --data.…")
_OUTPUT = flags.DEFINE_string("output", None, "The statistics file.")
_NUM_IMAGES = flags.DEFINE_integer("num_images", None, "With --data: so many, spread evenly; all without it.", 1)
_KEEP = flags.DEFINE_integer("keep_features", 10_000, "Keep the features of so many first images; 0 for none.", 0)
_ROWS = flags.DEFINE_integer("batch_per_device", 32, "Images that a device takes at a time.", 1)
_NETS = flags.DEFINE_string("nets_folder", None, "Where Inception's weights lie; as eqjax.nets.load without it.")
_DATA = config_flags.DEFINE_config_dict("data", default_config(), "Where there is no --input: evaluation crops of it.")


def main(argv):
    """Runs over the images once and writes the file."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}.")
    runner.set_up()
    try:
        found = images.from_path(_INPUT.value) if _INPUT.value else images.from_data(_DATA.value, _NUM_IMAGES.value)
        extractor = Extractor(inception.inception(_NETS.value), rows_per_device=_ROWS.value)
        features = report.write_statistics(_OUTPUT.value, extractor, found, _KEEP.value)
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        raise SystemExit(1) from error
    logging.info(
        "Statistics of %d images (%s) in %s, %.1f images per second; %s",
        found.count,
        found.source,
        _OUTPUT.value,
        found.count / features.seconds,
        features.statistics.protocol,
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["output"])
    app.run(main)
