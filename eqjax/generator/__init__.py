"""The windowed causal generator: it predicts column latents one after another."""

from eqjax.generator.flow_head import FlowHead, Modulations
from eqjax.generator.generator import Condition, Generator, column_weights, mean_loss
from eqjax.generator.layers import KVCache
from eqjax.generator.sharding_rules import LOGICAL_AXES

__all__ = [
    "LOGICAL_AXES",
    "Condition",
    "FlowHead",
    "Generator",
    "KVCache",
    "Modulations",
    "column_weights",
    "mean_loss",
]
