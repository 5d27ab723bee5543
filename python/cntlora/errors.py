"""Errors in the form of the tool: a message, the next step for the user, and a category that decides the exit code."""

from __future__ import annotations

from typing import Literal

from ._cntlora import Error

__all__ = ["EXIT_CODES", "Error", "error", "quoted"]

EXIT_CODES = {"data": 1, "usage": 2, "io": 3, "bug": 4, "interrupted": 130}

Category = Literal["data", "usage", "io", "interrupted", "bug"]


def error(category: Category, message: str, help: str | None = None) -> Error:
    """Returns an error of this category. `help` is the next step for the user."""
    made = Error(message if help is None else f"{message}\n  help: {help}")
    made.category = category
    return made


def quoted(names: list[str] | str) -> str:
    """Returns a name in quotes, or names in quotes with commas between them."""
    return ", ".join(f'"{name}"' for name in ([names] if isinstance(names, str) else names))
