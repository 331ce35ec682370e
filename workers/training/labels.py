"""MusicGen's delay pattern: what the decoder reads and what it has to say, for every frame of every codebook."""

from typing import Final

import torch
from torch.nn import functional

IGNORED: Final = -100


def labels(codes: torch.Tensor, channels: int = 1) -> torch.Tensor:
    """`[clips, codebooks, frames + delay]` of codes `[clips, codebooks, frames]`; what no code fills is IGNORED.

    A channel's codebook k is k steps late. With two channels the codebooks of left and right take turns, and both of a
    turn are late by the same.
    """
    clips, books, frames = codes.shape
    longest = books // channels - 1
    found = codes.new_full((clips, books, frames + longest), IGNORED)
    for book in range(books):
        late = book // channels
        found[:, book, late : late + frames] = codes[:, book]
    return found


def inputs(labels: torch.Tensor, pad: int) -> torch.Tensor:
    """`[clips · codebooks, steps]`: the labels one step later, `pad` where there are none."""
    shifted = functional.pad(labels, (1, -1), value=IGNORED)
    return shifted.masked_fill(shifted == IGNORED, pad).flatten(0, 1)


def of_frames(steps: torch.Tensor, frames: int, channels: int = 1) -> torch.Tensor:
    """`[clips, codebooks, frames, …]`: values of steps `[clips, codebooks, steps, …]`, laid back under the frames."""
    books = steps.shape[1]
    late = [book // channels for book in range(books)]
    return torch.stack([steps[:, book, late[book] : late[book] + frames] for book in range(books)], dim=1)
