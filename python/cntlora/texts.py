"""Reads texts, conversations and tensors from files, and makes batches of them for a model."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import torch

from .errors import error

# A text, and True if the tokenizer adds its special tokens.
Example = tuple[str, bool]


def read(path: str) -> str:
    """Reads a text file in UTF-8."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8")
    except OSError as problem:
        raise error("io", f"{path}: {problem.strerror or problem}") from None
    except UnicodeDecodeError as problem:
        raise error("data", f"{path}: expected text in UTF-8, found another byte at {problem.start}") from None


def lines(path: str) -> list[Example]:
    """Returns the lines of a text file that are not empty. Each of them is an example."""
    found = [(line.strip(), True) for line in read(path).splitlines() if line.strip()]
    if not found:
        raise error("data", f"{path}: the file has no text", "give a file with one example per line")
    return found


def examples(path: str, tokenizer: Any, template: str | None) -> list[Example]:
    """Returns the examples of a file of JSON lines.

    A line has `text`, `messages`, or `prompt` and `completion`. Conversations become text by the chat template of the tokenizer or by
    `template`. Prompt and completion may be texts or conversations.
    """
    found = []
    for number, line in enumerate(read(path).splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}: line {number}"
        try:
            content = json.loads(line)
        except json.JSONDecodeError as problem:
            raise error("data", f"{place}: expected JSON, found {problem.msg.lower()} at column {problem.colno}") from None
        if not isinstance(content, dict):
            raise error("data", f"{place}: expected an object, found {line.strip()[:80]}")
        found.append(text_of(content, place, tokenizer, template))
    if not found:
        raise error("data", f"{path}: the file has no examples", 'give a file with lines such as {"text": "…"}')
    return found


def text_of(content: dict[str, Any], place: str, tokenizer: Any, template: str | None) -> Example:
    """Returns one example."""
    match content:
        case {"text": str(text)}:
            return text, True
        case {"messages": list(messages)}:
            return conversation(messages, place, tokenizer, template)
        case {"prompt": str(prompt), "completion": str(completion)}:
            return prompt + completion, True
        case {"prompt": list(prompt), "completion": list(completion)}:
            return conversation([*prompt, *completion], place, tokenizer, template)
    raise error(
        "data",
        f"{place}: expected the fields text, messages, or prompt and completion, found {', '.join(content) or 'none'}",
        "text is a string, messages is a list of objects with role and content, and prompt and completion are both of one of these kinds",
    )


def conversation(messages: list[Any], place: str, tokenizer: Any, template: str | None) -> Example:
    """Returns a conversation as text. The template has written the special tokens."""
    if template is None and not getattr(tokenizer, "chat_template", None):
        help = "give a file with a template with --chat-template"
        raise error("usage", f"{place}: the tokenizer has no chat template for messages", help)
    if not all(isinstance(one, dict) and "role" in one for one in messages):
        raise error("data", f"{place}: expected messages with role and content, found {json.dumps(messages)[:80]}")
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False), False
    except Exception as problem:  # Templates raise errors of their own.
        raise error("data", f"{place}: the chat template refuses the messages: {problem}") from None


class Texts:
    """Batches of texts: token ids and masks. Long texts are cut to `length` tokens."""

    def __init__(self, texts: list[Example], tokenizer: Any, size: int, length: int) -> None:
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                what = "the tokenizer has neither a token for padding nor one for the end of a text"
                raise error("usage", what, "set one of them in the tokenizer")
            # The mask leaves padding out, whatever the token is.
            tokenizer.pad_token = tokenizer.eos_token
        self.texts, self.tokenizer, self.size, self.length = texts, tokenizer, size, length

    def __len__(self) -> int:
        return -(-len(self.texts) // self.size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for first in range(0, len(self.texts), self.size):
            parts = [
                self.tokenizer(text, truncation=True, max_length=self.length, add_special_tokens=special)
                for text, special in self.texts[first : first + self.size]
            ]
            yield dict(self.tokenizer.pad(parts, return_tensors="pt"))


class Tensors:
    """Batches of the tensors of a safetensors file. They are the arguments of the model, such as input_ids or pixel_values."""

    def __init__(self, path: str, size: int) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            self.tensors = load_file(path)
        except OSError as problem:
            raise error("io", f"{path}: {problem.strerror or problem}") from None
        except SafetensorError as problem:
            raise error("data", f"{path}: expected a safetensors file, found {problem}") from None
        self.size = size
        counts = {name: len(tensor) for name, tensor in self.tensors.items() if tensor.dim() > 0}
        if not counts:
            raise error("data", f"{path}: the file has no tensors with a first axis of examples")
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{count} in {name}" for name, count in counts.items())
            raise error("data", f"{path}: expected the same number of examples in all tensors, found {shown}")
        self.count = next(iter(counts.values()))
        if self.count == 0:
            raise error("data", f"{path}: the tensors have no examples")

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for first in range(0, self.count, self.size):
            yield {name: tensor[first : first + self.size] if tensor.dim() > 0 else tensor for name, tensor in self.tensors.items()}
