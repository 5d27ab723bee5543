"""Initializes LoRA adapters from data, in the training program.

    model = get_peft_model(base, LoraConfig(r=16, target_modules=[...], task_type="SEQ_CLS"))
    report = cntlora.initialize_lora_weights(model, loader)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._cntlora import Error, Statistics

if TYPE_CHECKING:
    from .comparison import Comparison, Start, compare
    from .initialize import initialize_lora_weights
    from .load import load_adapter
    from .recorder import Recorder, record
    from .report import Report

__all__ = [
    "Comparison", "Error", "Recorder", "Report", "Start", "Statistics", "compare", "initialize_lora_weights", "load_adapter", "record",
]

# These modules import torch and PEFT, which take seconds. The command `cntlora` needs neither.
_PLACES = {
    "compare": "comparison",
    "Comparison": "comparison",
    "Start": "comparison",
    "initialize_lora_weights": "initialize",
    "load_adapter": "load",
    "Recorder": "recorder",
    "record": "recorder",
    "Report": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'cntlora' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
