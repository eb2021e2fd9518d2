"""Outputs of the original code on tiny models, recorded so that any machine can compare its own with them."""

from eqjax.recorded.cases import Comparison, compare

__all__ = ["Comparison", "compare"]
