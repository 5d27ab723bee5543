"""Reads a data loader, and runs a model on its batches."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from .errors import error
from .sites import unwrapped


def opened(loader: Iterable[Any] | Callable[[], Iterable[Any]]) -> Iterable[Any]:
    """Returns the batches of a loader, or of a function that makes one."""
    return loader if isinstance(loader, Iterable) else loader()


def again(loader: Iterable[Any] | Callable[[], Iterable[Any]]) -> Iterable[Any]:
    """Returns the batches of a loader that can be read more than once. Refuses iterators, which end after one reading."""
    batches = opened(loader)
    if isinstance(loader, Iterator):
        raise error(
            "usage",
            "max_memory needs several passes over the data, but the loader can be read only once",
            "give a list, a DataLoader or a function that returns the batches, or more memory",
        )
    return batches


def length(batches: Iterable[Any]) -> int | None:
    """Returns the number of batches if it is known."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switches dropout and adapters off, and afterwards restores the mode of every module."""
    modes = [(module, module.training, getattr(module, "_disable_adapters", None)) for module in model.modules()]
    try:
        model.eval()
        for module, _, is_off in modes:
            if is_off is not None:
                module._disable_adapters = True
        yield
    finally:
        for module, is_training, is_off in modes:
            module.training = is_training
            if is_off is not None:
                module._disable_adapters = is_off


def call(model: torch.nn.Module, batch: Any) -> None:
    """Runs a model on a batch."""
    bare = unwrapped(model)
    parameters = inspect.signature(bare.forward).parameters
    takes_any = any(one.kind == one.VAR_KEYWORD for one in parameters.values())
    place = device(bare)
    if isinstance(batch, Mapping):
        arguments = {name: value for name, value in batch.items() if takes_any or name in parameters}
        if not arguments:
            raise error("data", f"the model takes none of the arguments in the batch: {', '.join(map(str, batch))}")
        # A cache of keys and values would be of no use.
        config = getattr(bare, "config", None)
        if "use_cache" in parameters and getattr(config, "use_cache", False):
            arguments.setdefault("use_cache", False)
        model(**{name: moved(value, place) for name, value in arguments.items()})
    elif isinstance(batch, torch.Tensor):
        model(moved(batch, place))
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        if hasattr(bare, "main_input_name"):
            raise error(
                "data",
                f"expected a dict of arguments for {type(bare).__name__}, found a {type(batch).__name__}",
                'let the loader return batches such as {"input_ids": …, "attention_mask": …}',
            )
        positional = [one for one in parameters.values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        any_number = any(one.kind == one.VAR_POSITIONAL for one in parameters.values())
        # The rest, such as labels, is for the loss.
        model(*(moved(value, place) for value in (batch if any_number else batch[: len(positional)])))
    else:
        raise error("data", f"expected a batch that is a dict, a tensor or a tuple, found a {type(batch).__name__}")


def moved(value: Any, place: torch.device) -> Any:
    return value.to(place) if isinstance(value, torch.Tensor) else value


def device(model: torch.nn.Module) -> torch.device:
    """Returns the device of the first weight that has memory."""
    return next((weight.device for weight in model.parameters() if weight.device.type != "meta"), torch.device("cpu"))


def tokens_of(batch: Any) -> int:
    """Returns the number of tokens in a batch; without a mask and tokens, the number of examples."""
    if not isinstance(batch, Mapping):
        first = batch if isinstance(batch, torch.Tensor) else batch[0]
        return len(first)
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        return int((mask != 0).sum())
    if isinstance(ids, torch.Tensor):
        return ids.numel()
    return next((len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.dim() > 0), 1)
