"""Unfolds the inputs of convolutions into rows of patches, in the order in which the tool unfolds them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
# Numbers of a block of patches.
BLOCK = 1 << 22


def reason_against(convolution: torch.nn.Module) -> str | None:
    """Returns the reason why a convolution cannot be adapted, or None."""
    if any(number != 1 for number in convolution.dilation):
        return "PEFT ignores the dilation of a convolution"
    if isinstance(convolution.padding, str) or convolution.padding_mode != "zeros":
        return "only a number of zeros is understood as the padding of a convolution"
    return None


def width(convolution: torch.nn.Module) -> int:
    """Returns the numbers of a patch. Patches of a convolution in groups have the channels of all groups."""
    return convolution.in_channels * math.prod(convolution.kernel_size)


def kind(convolution: torch.nn.Module) -> tuple[tuple[int, ...], ...]:
    """Returns kernel, stride and padding: convolutions that differ in them unfold the same input into different patches."""
    return tuple(convolution.kernel_size), tuple(convolution.stride), tuple(convolution.padding)


def images(convolution: torch.nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """Returns the input as [images, channels, space…]. A single image may come without the first axis."""
    return tensor if tensor.dim() == len(convolution.kernel_size) + 2 else tensor.unsqueeze(0)


def patches(convolution: torch.nn.Module, tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yields blocks of rows. A row is a patch [channels, kernel…] in C order; rows are in the order of images and places."""
    tensor = images(convolution, tensor)
    axes = len(convolution.kernel_size)
    # torch.nn.functional.pad begins with the last axis.
    padding = [size for size in reversed(convolution.padding) for _ in range(2)]
    tensor = torch.nn.functional.pad(tensor, padding)
    for axis in range(axes):
        tensor = tensor.unfold(axis + 2, convolution.kernel_size[axis], convolution.stride[axis])
    # [images, channels, places…, kernel…] becomes [images, places…, channels, kernel…].
    tensor = tensor.movedim(1, axes + 1)
    numbers = width(convolution)
    places = math.prod(tensor.shape[2 : axes + 1])
    lines = max(1, BLOCK // max(1, numbers * places))
    if lines >= tensor.shape[1]:
        count = max(1, lines // max(1, tensor.shape[1]))
        parts = tensor.split(count)
    else:
        parts = (part for image in tensor.split(1) for part in image.split(lines, dim=1))
    for part in parts:
        yield part.reshape(-1, numbers)
