"""A row of the decoder's batch, and what a step knows of all rows together."""

import torch
from msgspec import Struct

from domain.events.jobs import Sampling
from workers.engines.musicgen.sampling import Choice


class Row(Struct, kw_only=True, eq=False):
    """A stretch of codes to make: `frames` of them, of which the first are given by `prompt` `[codebooks, frames]`.

    `text` is `[tokens, hidden]`. A model without cross-attention reads it in `lead` `[2, steps, hidden]`, which comes
    before the codes, with text and without it. `offset` counts the steps of the same take before this stretch, so that
    its noise goes on. `columns` are those of its adapter in the slots. Where it `is_judged`, the decoder
    gathers its evidence.
    """

    text: torch.Tensor
    frames: int
    sampling: Sampling
    seed: int
    offset: int = 0
    prompt: torch.Tensor | None = None
    columns: range | None = None
    scale: float = 1.0
    lead: torch.Tensor | None = None
    position: int = 0
    is_judged: bool = False

    @property
    def given(self) -> int:
        return 0 if self.prompt is None else self.prompt.shape[1]

    @property
    def shift(self) -> int:
        """The steps before the first frame."""
        return 0 if self.lead is None else self.lead.shape[1]


class Shape(Struct, frozen=True):
    """All that a step's shapes and branches depend on. With guidance or a judged
    row, each row has a second half without text."""

    first: int
    rows: int
    halves: int
    length: int
    text: int
    columns: int
    choice: Choice
    is_judged: bool = False


class Batch(Struct, frozen=True, kw_only=True):
    """What all layers need of a step: where the cache takes it in, what a row must not look at, and its adapters.

    The masks are added to the scores. Rows with text and those without are told apart by `halves`.
    """

    rows: int
    halves: int
    steps: int
    index: torch.Tensor
    unseen: torch.Tensor
    unread: torch.Tensor
    columns: slice
    weight: torch.Tensor | None
    told_weight: torch.Tensor | None
