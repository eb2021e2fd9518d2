"""FID and its family, measured on samples during a generator's training."""

from collections.abc import Callable
from typing import Any

from eqjax.evaluation import Extractor, Settings, networks, report, statistics
from eqjax.model import Model
from eqjax.typing import Config


def sample_metrics(config: Config, model: Model, workdir: str) -> Callable[[int, Model], dict[str, Any]]:
    """Returns the function (step, model) → FID and its family, after checking what it needs.

    Args:
      config: a resolved `generator_config` with `metrics.every`.
      model: the model; its arrays may be jax.ShapeDtypeStruct.
      workdir: folder of the run; samples are there while they are measured.

    Raises:
      ValueError: the configuration has no reference, or values out of range.
      StatisticsError: the reference cannot be compared with.
    """
    metrics = config.metrics
    if config.eval_every is None or metrics.every % config.eval_every:
        raise ValueError(f"metrics.every={metrics.every} must be a multiple of eval_every={config.eval_every}.")
    if not metrics.reference:
        raise ValueError("set metrics.reference: a statistics file, written by `eqjax make-statistics` or ADM's.")
    settings = Settings(num_columns=config.data.width // model.require("tokenizer").column_width, **metrics.sampling)
    reference = statistics.load(metrics.reference)
    extractor = Extractor(networks.inception(metrics.nets_folder))
    compared = dict(extractor=extractor, reference=reference)
    report.check_generation(model, settings, metrics.num_images, **compared)
    return report.periodic_evaluation(
        settings, metrics.num_images, workdir, reference_name=metrics.reference, **compared
    )
