"""From a model to a row of a table: images, metrics, and the protocol that gives the numbers their meaning."""

import dataclasses
import json
import math
import os
import shutil

from absl import logging
import jax

from eqjax.evaluation import features, fid, generation, statistics
from eqjax.evaluation.generation import fingerprint, generate
from eqjax.io import atomic_write

_COLUMNS = ("fid", "sfid", "inception_score", "kid", "precision", "recall")
_COLUMNS += ("rfid", "rsfid", "psnr", "ssim", "lpips")
# Of a protocol: where it was measured, and not what.
_PLACE = ("jax", "device")


def check_generation(model, settings, num_images, *, extractor=None, reference=None):
    """Refuses what `evaluate_generation` could not draw or compare, before anything is written or compiled.

    Args:
      model: an `eqjax.Model`; its arrays may be jax.ShapeDtypeStruct.
      settings, num_images, extractor, reference: as `evaluate_generation`.

    Raises:
      ValueError: as `generation.check`; fewer than two images to compare.
      StatisticsError: a reference of another protocol.
    """
    generation.check(model, settings, num_images)
    if extractor is None:
        return
    if num_images < 2:
        raise ValueError(f"num_images={num_images}: a covariance, and so FID, needs at least 2.")
    if reference is not None:
        size, network = _image_size(model, settings), extractor.network
        statistics.check_comparable(reference, network.protocol_for(size), network.sizes(size))


def _image_size(model, settings):
    return model.tokenizer.resolution, settings.num_columns * model.tokenizer.column_width


def place():
    """Where it is measured, for protocols: {"jax": version, "device": kind}."""
    return dict(zip(_PLACE, (jax.__version__, jax.devices()[0].device_kind), strict=True))


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
      keep: pooled features of so many images are kept for KID, precision and recall (see
        `features.stored_images`); they are computed where the reference kept some too.

    Returns:
      {"metrics": {name: number}, "protocol": {name: JSON value}}.

    Raises:
      ValueError, StatisticsError: as `check_generation`, before anything is drawn.
      ValueError, FloatingPointError: as `generate`.
    """
    check_generation(model, settings, num_images, extractor=extractor, reference=reference)
    size = _image_size(model, settings)
    protocol = {
        "weights": fingerprint(model),
        "count": num_images,
        **dataclasses.asdict(settings),
        "image_size": list(size),
        **place(),
    }
    if extractor is not None:
        protocol |= extractor.network.protocol_for(size)
        if reference is not None:
            protocol |= {"reference": reference_name, "reference_count": reference.count}
            if keep and reference.features is None:
                logging.info(
                    "No KID, precision and recall: %s holds no features, as ADM's files do not. eqjax.cli.make_statistics "
                    "writes them, from the images.",
                    reference_name or "the reference",
                )
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
    """Adds results to results.json and table.md; gives the table.

    Rows that are there already stay, except those of the same protocol (wherever measured), which are replaced, and
    those without metrics.

    Args:
      folder: made if it is not there.
      results: list of {"metrics", "protocol"}.

    Raises:
      ValueError: as `earlier`.
    """
    results = json_values(results)
    new = [_identity(result) for result in results]
    kept = [result for result in earlier(folder) if result["metrics"] and _identity(result) not in new]
    results = kept + results
    text = table(results)
    if jax.process_index() == 0:
        write_json(os.path.join(folder, "results.json"), results, indent=2)
        with atomic_write(os.path.join(folder, "table.md")) as temporary:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
    return text


def earlier(folder):
    """The results that `save` wrote to a folder; none where it wrote nothing.

    Raises:
      ValueError: its results.json is of another kind, or cannot be read.
    """
    path = os.path.join(folder, "results.json")
    if not os.path.isfile(path):
        return []
    try:
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
        if all(isinstance(result["metrics"], dict) and isinstance(result["protocol"], dict) for result in results):
            return results
        error = "no list of metrics with protocols"
    except (ValueError, TypeError, KeyError) as found:
        error = repr(found)
    raise ValueError(f"{path} was not written by eqjax.cli.evaluate, or was changed ({error}): give another --output.")


def _identity(result):
    """What makes two rows one: the protocol without the place."""
    return {name: value for name, value in result["protocol"].items() if name not in _PLACE}


def json_values(values):
    """JSON values with null in the place of NaN and infinities, which JSON does not have."""
    if isinstance(values, dict):
        return {str(name): json_values(value) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [json_values(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def write_json(path, values, indent=None):
    """Writes `json_values`, whole or not at all."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(json_values(values), file, indent=indent, allow_nan=False)
        file.write("\n")


def table(results):
    """Metrics as a Markdown table, a row per result, with what differs in the protocols; below it, what is common."""
    protocols = [result["protocol"] for result in results]
    names = list(dict.fromkeys(name for protocol in protocols for name in protocol))
    differs = [name for name in names if len({json.dumps(p.get(name)) for p in protocols}) > 1]
    columns = [name for name in _COLUMNS if any(name in result["metrics"] for result in results)]
    lines = ["| " + " | ".join([*differs, *columns]) + " |", "| --- " * len([*differs, *columns]) + "|"]
    for result in results if differs + columns else ():
        values = [result["protocol"].get(name) for name in differs]
        cells = ["" if value is None else str(value) for value in values]
        cells += [_cell(result["metrics"][name]) if name in result["metrics"] else "" for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    lines = lines if differs + columns else ["No metrics were asked for."]
    common = {name: protocols[0].get(name) for name in names if name not in differs}
    common = [f"{name}: {value}" for name, value in common.items() if value is not None]
    return "\n".join([*lines, "", "Protocol: " + ", ".join(common) + "."]) + "\n"


def _cell(value):
    return "–" if value is None else f"{value:.4f}"


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
