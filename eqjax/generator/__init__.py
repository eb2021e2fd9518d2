"""The windowed causal generator: column latents, one after another."""

from eqjax.generator.axes import LOGICAL_AXES
from eqjax.generator.flow_head import FlowHead, Modulations
from eqjax.generator.generator import Condition, Generator, column_weights, mean_loss
from eqjax.generator.layers import Ring

__all__ = ["LOGICAL_AXES", "Condition", "FlowHead", "Generator", "Modulations", "Ring", "column_weights", "mean_loss"]
