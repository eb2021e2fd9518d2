"""FID and its family, measured on samples during a generator's training."""

from eqjax.evaluation import Extractor, GenerationEvaluator, GenerationOptions, networks, statistics
from eqjax.model import Model
from eqjax.typing import Config


def make_evaluator(config: Config, model: Model) -> GenerationEvaluator:
    """Returns the evaluator of samples, after checking its configuration.

    Args:
      config: a resolved `generator_config` with `metrics.every`.
      model: the model; its arrays may be jax.ShapeDtypeStruct.

    Raises:
      ValueError: the configuration has no reference, or values are out of range.
      StatisticsError: the reference has another protocol or feature size.
    """
    metrics = config.metrics
    if config.eval_every is None or metrics.every % config.eval_every:
        raise ValueError(f"metrics.every={metrics.every} must be a multiple of eval_every={config.eval_every}.")
    if not metrics.reference:
        raise ValueError("set metrics.reference: a statistics file, written by `eqjax make-statistics` or ADM's.")
    return GenerationEvaluator(
        model,
        GenerationOptions(num_columns=config.data.width // model.require("tokenizer").column_width, **metrics.sampling),
        metrics.num_images,
        extractor=Extractor(networks.inception(metrics.nets_folder)),
        reference=statistics.load(metrics.reference),
        reference_name=metrics.reference,
    )
