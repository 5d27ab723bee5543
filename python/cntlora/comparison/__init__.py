"""Compares starts on the user's own model and training."""

from .compare import compare
from .results import Comparison
from .starts import BUILT_IN, Start

__all__ = ["BUILT_IN", "Comparison", "Start", "compare"]
