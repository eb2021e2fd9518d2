"""From a model to a row of a table: images, metrics, and the protocol that gives the numbers their meaning."""

import dataclasses
import json
import os
import shutil

from absl import logging
import jax

from eqjax import atomic
from eqjax.evaluation import features, fid, statistics
from eqjax.evaluation.generation import fingerprint, generate

_COLUMNS = ("fid", "sfid", "inception_score", "kid", "precision", "recall")
_COLUMNS += ("rfid", "rsfid", "psnr", "ssim", "lpips")


def evaluate_generation(
    model,
    settings,
    num_images,
    folder,
    *,
    extractor=None,
    reference=None,
    reference_name="",
    mesh=None,
    rows_per_device=16,
    png=False,
    npz=False,
    keep=0,
):
    """Draws images, or goes on drawing them, and compares them with a reference.

    Args:
      model: an `eqjax.Model`.
      settings, num_images, folder, mesh, rows_per_device: as `generation.generate`.
      extractor: a `features.Extractor`; None: images alone.
      reference: `statistics.Statistics`; None: no distances, the Inception Score alone.
      reference_name: for the protocol.
      png, npz: also write the images so.
      keep: pooled features of so many images are kept for KID, precision and recall; they are computed where
        the reference kept some too.

    Returns:
      {"metrics": {name: number}, "protocol": {name: JSON value}}.

    Raises:
      ValueError, FloatingPointError: as `generate`; StatisticsError, before anything is drawn, where the
        reference is of another protocol.
    """
    size = model.tokenizer.resolution, settings.num_columns * model.tokenizer.column_width
    protocol = {
        "weights": fingerprint(model),
        "count": num_images,
        **{name: value for name, value in dataclasses.asdict(settings).items() if name != "more"},
        "solver": "euler",
        **settings.more,
        "image_size": list(size),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    if extractor is not None:
        protocol |= extractor.network.protocol_for(size)
        if reference is not None:
            statistics.check_comparable(reference, protocol, extractor.network.sizes(size))
            protocol |= {"reference": reference_name, "reference_count": reference.count}
    samples = generate(model, settings, num_images, folder, mesh=mesh, rows_per_device=rows_per_device)
    if png:
        samples.write_png()
    if npz:
        logging.info("Wrote %s", samples.write_npz())
    metrics = {}
    if extractor is not None:
        keep = keep if reference is not None and reference.features is not None else 0
        found = extractor.collect(samples.batches(), num_images, keep=keep, folder=folder)
        metrics = found.scores if reference is None else features.compare(reference, found)
    return {"metrics": metrics, "protocol": protocol}


def save(folder, results):
    """Writes results.json and table.md; gives the table.

    Args:
      folder: made if it is not there.
      results: list of {"metrics", "protocol"}.
    """
    text = table(results)
    if jax.process_index() == 0:
        for name, content in (("results.json", json.dumps(results, indent=2) + "\n"), ("table.md", text)):
            with atomic.replacing(os.path.join(folder, name)) as temporary:
                with open(temporary, "w", encoding="utf-8") as file:
                    file.write(content)
    return text


def table(results):
    """Metrics as a Markdown table, a row per result, with what differs in the protocols; below it, what is common."""
    protocols = [result["protocol"] for result in results]
    names = list(dict.fromkeys(name for protocol in protocols for name in protocol))
    differs = [name for name in names if len({json.dumps(p.get(name)) for p in protocols}) > 1]
    columns = [name for name in _COLUMNS if any(name in result["metrics"] for result in results)]
    lines = ["| " + " | ".join([*differs, *columns]) + " |", "| --- " * len([*differs, *columns]) + "|"]
    for result in results if differs + columns else ():
        cells = [str(result["protocol"].get(name, "")) for name in differs]
        cells += [f"{result['metrics'][name]:.4f}" if name in result["metrics"] else "" for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    lines = lines if differs + columns else ["No metrics were asked for."]
    common = [f"{name}: {protocols[0][name]}" for name in names if name not in differs]
    return "\n".join([*lines, "", "Protocol: " + ", ".join(common) + "."]) + "\n"


def write_statistics(path, extractor, images, keep=0):
    """Statistics of an `ImageSet` into a file; gives the `features.Features`.

    Warns where there are too few images for a covariance of full rank.
    """
    found = extractor.collect(images.batches(), images.count, keep=keep)
    statistics.save(path, found.statistics)
    fid.warn_if_few(images.count, len(found.statistics.mean), path)
    return found


def periodic_evaluation(settings, num_images, workdir, **options):
    """A function for a training loop: (step, model) → metrics; the images are removed afterwards.

    Args:
      settings, num_images: as `generation.generate`.
      workdir: images lie under `workdir`/evaluation meanwhile.
      **options: as `evaluate_generation`.
    """

    def evaluate(step, model):
        # A run that was killed here comes back to this step, with the same weights (and goes on) or with
        # others, where a device does not repeat itself bit for bit.
        folder = os.path.join(workdir, "evaluation", f"{int(step):08d}_{fingerprint(model)[:8]}")
        metrics = evaluate_generation(model, settings, num_images, folder, **options)["metrics"]
        if jax.process_index() == 0:
            shutil.rmtree(os.path.dirname(folder))
        return metrics

    return evaluate
