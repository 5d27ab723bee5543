"""The starts of a comparison: each makes an initialized adapter on a base."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda

from ..engine import NEEDS_SOURCE, ONLY_SOURCE, WITHOUT_DATA, start_of
from ..initialize import initialize_lora_weights
from ..running import call, opened

# Gradients of this many batches give the directions of LoRA-GA. Its authors take as many examples as eight batches of eight have.
GRADIENT_BATCHES = 8


@dataclass
class Task:
    """The inputs of a start: a base without an adapter, the configuration of plain LoRA, and data."""

    base: torch.nn.Module
    config: LoraConfig
    loader: Any = None
    source: Any = None
    loss: Callable[[torch.nn.Module, Any], torch.Tensor] | None = None

    def batches(self, start: str) -> Iterable[Any]:
        """Returns the batches of fine-tuning data. Raises ValueError if there are none."""
        if self.loader is None:
            raise ValueError(f"the start {start!r} needs fine-tuning data: give a loader")
        return opened(self.loader)


@dataclass(frozen=True)
class Start:
    """A way to initialize the adapter of a model.

    - `name`: its name in tables and curves.
    - `config`: fields of the LoraConfig that differ from those of plain LoRA, such as `dict(use_rslora=True)`.
    - `options`: arguments of `initialize_lora_weights`, such as `dict(method="cntlora", start="mirrored")`. Without them, PEFT initializes
      the adapter in the way that the field `init_lora_weights` of the configuration names.
    - `ranks`: factor of the rank and of `lora_alpha`, so that the scale stays the same.
    - `ratio`: learning rate of `lora_B` as a multiple of that of `lora_A`.
    - `batches`: how many batches of the loader it uses; all of them by default.
    - `change`: a function `change(model, task)` that changes the initialized model. In files of runs it is known by its name; an object
      that can be called, by its `repr`.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] | None = None
    ranks: int = 1
    ratio: float = 1.0
    batches: int | None = None
    change: Callable[[PeftModel, Task], None] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """All of it but the name, as plain values. The option `start` has its default, so that runs with an earlier default are others."""
        name = getattr(self.change, "__qualname__", None)
        change = f"{self.change.__module__.rpartition('.')[2]}.{name}" if name else self.change and repr(self.change)
        options = self.options
        if options is not None:
            options = {**options, "start": start_of(options.get("method", "cntlora"), options)}
        fields = {name: getattr(self, name) for name in ("config", "ranks", "ratio", "batches")}
        return {**fields, "options": options, "change": change}

    def prepare(self, task: Task) -> PeftModel:
        """Returns the base with an initialized adapter.

        Raises ValueError, `cntlora.Error` or an error of PEFT if the start cannot be used on the task.
        """
        config = copy.deepcopy(task.config)
        config.r, config.lora_alpha = self.ranks * config.r, self.ranks * config.lora_alpha
        for name, value in self.config.items():
            if not hasattr(config, name):
                raise ValueError(f"the start {self.name!r} sets the field {name!r}, which a LoraConfig does not have")
            setattr(config, name, value)
        model = self._by_peft(config, task) if self.options is None else self._by_cntlora(config, task)
        if self.change is not None:
            self.change(model, task)
        return model

    def _data(self, task: Task) -> list[Any]:
        return list(itertools.islice(task.batches(self.name), self.batches))

    def _by_cntlora(self, config: LoraConfig, task: Task) -> PeftModel:
        options = dict(self.options or {})
        method = options.get("method", "cntlora")
        model = get_peft_model(task.base, config)
        loader = None if method in (*WITHOUT_DATA, *ONLY_SOURCE) else self._data(task)
        # The option `source=True` stands for the source of the task.
        uses_source = options.pop("source", False) or method in (*NEEDS_SOURCE, *ONLY_SOURCE)
        if uses_source and task.source is None:
            raise ValueError(f"the start {self.name!r} needs pre-training data: give a source")
        source = opened(task.source) if uses_source else None
        initialize_lora_weights(model, loader, source=source, progress=False, **options)
        return model

    def _by_peft(self, config: LoraConfig, task: Task) -> PeftModel:
        kind = config.init_lora_weights
        if kind == "eva":
            batches = self._data(task)
            config.eva_config = config.eva_config or EvaConfig(use_label_mask=all(map(_labels_tokens, batches)))
            model = get_peft_model(task.base, config)
            initialize_lora_eva_weights(model, batches, show_progress_bar=False)
            return model
        if kind == "corda":
            config.corda_config = config.corda_config or CordaConfig(corda_method="ipm")
            singles = [single for batch in self._data(task) for single in _examples(batch)]
            preprocess_corda(task.base, config, run_model=lambda: _run(task.base, singles))
        elif kind == "lora_ga":
            # Older versions of PEFT do not have it.
            from peft import LoraGAConfig, preprocess_loraga

            config.lora_ga_config = config.lora_ga_config or LoraGAConfig()
            batches = self._data(task)[:GRADIENT_BATCHES]
            loss = task.loss or _loss

            def backward() -> None:
                for batch in batches:
                    loss(task.base, batch).backward()

            preprocess_loraga(task.base, config, train_step=backward)
        return get_peft_model(task.base, config)


def _labels_tokens(batch: Any) -> bool:
    """True if the batch has a label for each token. Otherwise PEFT's EVA cannot leave out the tokens without one."""
    labels, tokens = (batch.get(name) for name in ("labels", "input_ids")) if isinstance(batch, dict) else (None, None)
    return labels is not None and tokens is not None and labels.shape == tokens.shape


def _run(model: torch.nn.Module, batches: Iterable[Any]) -> None:
    # PEFT's CorDA changes tensors of the pass afterwards, which inference mode does not allow.
    with torch.no_grad():
        for batch in batches:
            call(model, batch)


def _loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    found = getattr(model(**batch), "loss", None)
    if found is None:
        raise ValueError("the model gives no loss for a batch of the loader: add labels to the batches, or give a function as loss")
    return found


def _examples(batch: Any) -> list[Any]:
    """Returns the examples of a batch as batches of one. PEFT's CorDA takes one example at a time."""
    if isinstance(batch, torch.Tensor):
        return list(batch.split(1))
    if isinstance(batch, dict):
        count = min(len(value) for value in batch.values())
        return [{name: value[row : row + 1] for name, value in batch.items()} for row in range(count)]
    return [type(batch)(value[row : row + 1] for value in batch) for row in range(len(batch[0]))]


def _peft(name: str, **config: Any) -> Start:
    return Start(name, config=config)


def _ours(name: str, **options: Any) -> Start:
    return Start(name, options=options)


BUILT_IN: dict[str, Start] = {
    start.name: start
    for start in (
        _peft("lora"),
        Start("lora-2r", ranks=2),
        _peft("rslora", use_rslora=True),
        # The ratio that the authors of LoRA+ recommend.
        Start("lora+", ratio=16.0),
        _peft("orthogonal", init_lora_weights="orthogonal"),
        _peft("eva", init_lora_weights="eva"),
        _peft("pissa", init_lora_weights="pissa"),
        _peft("olora", init_lora_weights="olora"),
        _peft("corda", init_lora_weights="corda"),
        _peft("lora-ga", init_lora_weights="lora_ga"),
        _peft("mica", init_lora_weights="mica"),
        _ours("cntlora"),
        _ours("milora", method="milora"),
        _ours("sc-lora", method="sc-lora"),
        _ours("astra", method="astra"),
        _ours("lora-null", method="lora-null"),
    )
}
"""The starts by name: those of PEFT, as PEFT makes them, and those that only cntlora has."""
