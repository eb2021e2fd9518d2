"""The windowed causal generator: column latents, one after another."""

from eqjax.generator.flow_head import FlowHead, Modulations
from eqjax.generator.generator import Condition, Generator
from eqjax.generator.layers import Ring

__all__ = ["Condition", "FlowHead", "Generator", "Modulations", "Ring"]
