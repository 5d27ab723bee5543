"""Decides which positions of an input count, from the masks in the arguments of the model and of its parts.

The masks of a module are those of the innermost part of the model that received one: the text model of CLIP has a mask, its vision
model has none; a decoder has a mask of its own, and another one for the output of the encoder that it reads.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from .errors import error

# Arguments with which a stack of layers begins. Another kind of data has no mask, unless it comes with it.
TOKENS = ("input_ids", "inputs_embeds")
OTHER_DATA = ("pixel_values", "pixel_values_videos", "input_features", "input_values", "sample")
# Arguments that hold the output of an encoder.
STATES = ("encoder_hidden_states", "key_value_states")
ENCODER_MASKS = ("encoder_attention_mask", "encoder_hidden_states_mask")
NO_LABEL = -100


@dataclass(frozen=True)
class Frame:
    """The masks inside a part of the model. Masks are booleans of the shape [batch, positions], on the CPU; None counts all positions."""

    own: torch.Tensor | None = None
    encoder: torch.Tensor | None = None
    # The memory of the encoder's output.
    states: frozenset[int] = frozenset()
    is_decoder: bool = False
    labels: torch.Tensor | None = None
    # The positions with a label, if only they count.
    labelled: torch.Tensor | None = None


def argument_names(module: torch.nn.Module) -> list[str] | None:
    """Returns the names of the arguments of a module. None if it takes none that matter here."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    names = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    matter = {"attention_mask", *TOKENS, *OTHER_DATA, *STATES, *ENCODER_MASKS}
    return names if matter.intersection(names) or any(one.kind == one.VAR_KEYWORD for one in parameters) else None


def is_mask(tensor: Any) -> bool:
    """True for a mask of tokens: not for a mask that is added to the scores of the attention."""
    if not isinstance(tensor, torch.Tensor) or tensor.dim() != 2:
        return False
    return not tensor.is_floating_point() or not bool((tensor < 0).any())


def attended(mask: torch.Tensor) -> torch.Tensor:
    """Returns the positions that a mask of the attention [batch, …, queries, keys] lets any query read."""
    if mask.is_floating_point():
        mask = mask >= 0 if bool((mask < 0).any()) or not bool((mask != 0).any()) else mask != 0
    return mask.bool().flatten(1, -2).any(1)


class Masks:
    """The masks of the forward pass that runs."""

    def __init__(self, model: torch.nn.Module, label_mask: bool) -> None:
        self.has_encoder = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
        self.label_mask = label_mask
        # Modules with inputs whose positions fit no mask, and the shapes of both.
        self.unfit: dict[str, str] = {}
        self.begin()

    def begin(self) -> None:
        """Forgets the masks of the last forward pass."""
        self.frames = [Frame()]
        self.has_decoder = False
        self.converted: dict[tuple[int, int | None], tuple[torch.Tensor, torch.Tensor]] = {}
        self.joined: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
        self.selections: dict[tuple[int, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor | None | str]] = {}

    @property
    def depth(self) -> int:
        """The number of parts that run."""
        return len(self.frames) - 1

    def enter(self, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begins a part of the model that is called with these arguments."""
        given = {name: value for name, value in (dict(zip(names, args)) | kwargs).items() if value is not None}
        outer, is_outermost = self.frames[-1], self.depth == 0
        # A part that fails here has been entered: it is left like any other.
        self.frames.append(outer)
        sequences = (given[name] for name in TOKENS if isinstance(given.get(name), torch.Tensor))
        length = next((sequence.shape[1] for sequence in sequences if sequence.dim() > 1), None)
        own = self.positions(given.get("attention_mask"), length, is_outermost)
        if own is not None and outer.labelled is not None and own.shape == outer.labelled.shape:
            own = self.both(own, outer.labelled)
        encoder = next((given[name] for name in ENCODER_MASKS if is_mask(given.get(name))), None)
        frame = outer
        states = {address(given[name]) for name in STATES if isinstance(given.get(name), torch.Tensor)}
        begins = is_outermost or any(name in given for name in (*TOKENS, *OTHER_DATA))
        if is_outermost and is_labels(given.get("labels")):
            frame = replace(frame, labels=given["labels"])
        if states and begins:
            frame = self.of_decoder(frame, own, encoder, length)
        elif own is not None and not states:
            # The mask of an attention between decoder and encoder would be that of the encoder.
            frame = replace(frame, own=own)
        elif any(name in given for name in OTHER_DATA) and not any(name in given for name in TOKENS):
            frame = replace(frame, own=None)
        if states:
            frame = replace(frame, states=frame.states | states)
        if is_outermost and self.label_mask:
            frame = self.with_labels(frame, given, length)
        self.frames[-1] = frame

    def leave(self) -> None:
        """Ends the innermost part."""
        self.frames.pop()

    def end(self) -> None:
        """Ends a forward pass without an error. Refuses labels that no part of the model used."""
        if self.label_mask and self.has_encoder and not self.has_decoder:
            raise error(
                "usage",
                "label_mask: the model has an encoder and a decoder, but no part of it was called like a decoder",
                "record without label_mask",
            )

    def of_decoder(self, outer: Frame, own: torch.Tensor | None, encoder: Any, length: int | None) -> Frame:
        """Returns the masks of a decoder, or of the part of it that begins with tokens."""
        if encoder is None:
            encoder = outer.encoder if outer.is_decoder else outer.own
        else:
            encoder = self.positions(encoder, None, False)
        if outer.is_decoder:
            own = outer.own if own is None else own
        elif own is None or self.label_mask:
            # Without a mask of its own, the labels tell tokens from padding.
            self.has_decoder = True
            labels = outer.labels
            if labels is not None and (length is None or labels.shape[1] == length):
                of_labels = self.convert(labels, None, lambda labels: labels != NO_LABEL)
                own = of_labels if own is None else self.both(own, of_labels)
            elif self.label_mask:
                found = "none" if labels is None else str(list(labels.shape))
                raise error("data", f"label_mask: expected labels of {length} tokens for each example of the decoder, found {found}")
        return replace(outer, own=own, encoder=encoder, is_decoder=True)

    def with_labels(self, frame: Frame, given: dict[str, Any], length: int | None) -> Frame:
        """Adds the labels to the masks of the outermost part."""
        if frame.labels is None:
            raise error(
                "usage",
                "label_mask needs the labels of all tokens in every forward pass: expected `labels` of the shape [batch, tokens]",
                "call the model with the labels, or record without label_mask",
            )
        if self.has_encoder:
            return frame
        labels = frame.labels
        expected = tuple(frame.own.shape) if frame.own is not None else (labels.shape[0], labels.shape[1] if length is None else length)
        if tuple(labels.shape) != expected:
            raise error("data", f"label_mask: expected labels of the shape {list(expected)}, found {list(labels.shape)}")
        of_labels = self.convert(labels, None, lambda labels: labels != NO_LABEL)
        return replace(frame, own=of_labels if frame.own is None else self.both(frame.own, of_labels), labelled=of_labels)

    def both(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Returns the positions that count in both masks."""
        if one.shape != other.shape:
            raise error("data", f"expected labels of the shape {list(one.shape)} of the attention mask, found {list(other.shape)}")
        key = (id(one), id(other))
        if key not in self.joined:
            self.joined[key] = (one, other, one & other)
        return self.joined[key][2]

    def positions(self, mask: Any, length: int | None, is_outermost: bool) -> torch.Tensor | None:
        """Returns the positions that count, by the attention mask of a part. None if it is not a mask of tokens."""
        if is_mask(mask):
            # With a cache, the mask also has the tokens of earlier calls.
            return self.convert(mask, length, lambda mask: mask != 0)
        if not is_outermost or mask is None:
            return None
        masks = list(mask.values()) if isinstance(mask, Mapping) else [mask]
        if not all(isinstance(one, torch.Tensor) and one.dim() in (3, 4) for one in masks):
            raise error(
                "usage",
                f"expected an attention mask of the shape [batch, tokens], found {described(mask)}",
                "give a mask of two axes, or record the positions of all tokens without a mask",
            )
        return torch.stack([self.convert(one, length, attended) for one in masks]).any(0) if masks else None

    def convert(self, tensor: torch.Tensor, length: int | None, rule: Any) -> torch.Tensor:
        """Applies a rule to a tensor once in a forward pass. Keeps the last `length` positions."""
        key = (id(tensor), length)
        if key not in self.converted:
            mask = rule(tensor.detach()).cpu()
            if length is not None and mask.shape[1] > length:
                mask = mask[:, -length:]
            self.converted[key] = (tensor, mask.contiguous())
        return self.converted[key][1]

    def selection(self, name: str, tensor: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor | None:
        """Returns the numbers of the rows that count, among all places of an input in C order. None if all count."""
        frame = self.frames[-1]
        if address(tensor) in frame.states:
            masks = [frame.encoder]
        else:
            masks = [frame.own, frame.encoder if frame.own is not None else None]
        masks = [mask for mask in masks if mask is not None]
        for mask in masks:
            key = (id(mask), places)
            if key not in self.selections:
                self.selections[key] = (mask, fit(mask, places))
            found = self.selections[key][1]
            if not isinstance(found, str):
                return found
        if masks and not all(bool(mask.all()) for mask in masks):
            self.unfit.setdefault(name, f"{list(places)}, with a mask of the shape {list(masks[0].shape)}")
        return None


def fit(mask: torch.Tensor, places: tuple[int, ...]) -> torch.Tensor | None | str:
    """Returns the rows that count, None if all of them do, or a text if the places are not those of the mask."""
    batch, length = mask.shape
    kept = int(mask.sum())
    flat = tuple(size for size in places if size != 1)
    if places[:2] == (batch, length):
        # Also several rows for each token, such as one for each head.
        mask = mask.reshape(-1, 1).expand(-1, math.prod(places[2:]))
    elif flat == (batch * length,):
        pass
    elif places[:2] == (length, batch):
        mask = mask.T.reshape(-1, 1).expand(-1, math.prod(places[2:]))
    elif flat in ((kept,), (batch,), ()) or places == (1, batch):
        # Tokens without padding, one after another; or one row for each example, such as the input of a classifier.
        return None
    else:
        return "other places"
    return None if bool(mask.all()) else mask.reshape(-1).nonzero().squeeze(-1)


def address(tensor: torch.Tensor) -> int:
    """Returns the address of the memory of a tensor."""
    return tensor.untyped_storage().data_ptr()


def is_labels(labels: Any) -> bool:
    return isinstance(labels, torch.Tensor) and labels.dim() == 2 and not labels.is_floating_point()


def described(value: Any) -> str:
    return f"a tensor of the shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
