"""Classifiers that are trained beside nano for what the loss of the codes barely rewards; no checkpoint has them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch.nn import functional

from workers.engines.musicgen.nano.instruments import PERIOD_FRAMES
from workers.engines.musicgen.nano.songs import (
    BARS_PER_SECTION,
    BEATS_PER_BAR,
    EIGHTH_FRAMES,
    FORM,
    LEADS,
    MODES,
    STYLES,
    Song,
)

ATTRIBUTES: Final[Mapping[str, Sequence[Any]]] = {
    "style": list(STYLES),
    "lead": list(LEADS),
    "mode": list(MODES),
    "drums": [False, True],
    "eighth_frames": list(EIGHTH_FRAMES),
}
# Those of them that each frame is asked for, and the key, which no prompt names.
PROMPTED: Final = ("style", "lead", "mode", "drums")
KEYS: Final = list(PERIOD_FRAMES)
BARS: Final = BARS_PER_SECTION * len(FORM)


class AuxiliaryHeads(torch.nn.Module):
    """Their losses train the network too.

    From the text's hidden states they predict the song's attributes: earlier codes already tell most of these, so the
    text matters only in the first frames, as with "no drums". From the decoder's hidden states they predict, in each
    frame, the position in the form, which changes the code loss only where a note begins, and the attributes, which
    then do not change within a clip.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.text = torch.nn.ModuleDict(
            {name: torch.nn.Linear(hidden_size, len(values)) for name, values in ATTRIBUTES.items()}
        )
        self.frames = torch.nn.ModuleDict(
            {name: torch.nn.Linear(hidden_size, len(ATTRIBUTES[name])) for name in PROMPTED}
        )
        self.key = torch.nn.Linear(hidden_size, len(KEYS))
        self.frame = torch.nn.Linear(hidden_size, 2 * max(EIGHTH_FRAMES))
        self.beat = torch.nn.Linear(hidden_size, BEATS_PER_BAR)
        self.bar = torch.nn.Linear(hidden_size, BARS)

    def attribute_loss(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, songs: Sequence[Song]
    ) -> torch.Tensor:
        """Mean cross-entropy of the attributes, from the text's hidden states `[songs, tokens, hidden_size]`."""
        pooled = (hidden_states * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        losses = [functional.cross_entropy(head(pooled), _labels(name, songs)) for name, head in self.text.items()]
        return torch.stack(losses).mean()

    def position_loss(self, hidden_states: torch.Tensor, songs: Sequence[Song]) -> torch.Tensor:
        """Cross-entropy of each frame's number in its beat, the beat's in its bar and the bar's in the form, summed.

        `hidden_states` are the decoder's, `[songs, frames, hidden_size]`.
        """
        frames = torch.arange(hidden_states.shape[1])[None]
        beat_frames = torch.tensor([2 * song.eighth_frames for song in songs])[:, None]
        beats = frames // beat_frames
        return (
            _each_frame(self.frame(hidden_states), frames % beat_frames)
            + _each_frame(self.beat(hidden_states), beats % BEATS_PER_BAR)
            + _each_frame(self.bar(hidden_states), beats // BEATS_PER_BAR % BARS)
        )

    def plan_loss(self, hidden_states: torch.Tensor, songs: Sequence[Song], *, has_codes: bool) -> torch.Tensor:
        """Mean cross-entropy of the attributes in each frame, and of the key where the decoder has heard codes."""
        frames = hidden_states.shape[1]
        losses = [
            _each_frame(head(hidden_states), _labels(name, songs)[:, None].expand(-1, frames))
            for name, head in self.frames.items()
        ]
        if has_codes:
            keys = torch.tensor([KEYS.index(song.key) for song in songs])
            losses.append(_each_frame(self.key(hidden_states), keys[:, None].expand(-1, frames)))
        return torch.stack(losses).mean()


def _labels(name: str, songs: Sequence[Song]) -> torch.Tensor:
    return torch.tensor([ATTRIBUTES[name].index(getattr(song, name)) for song in songs])


def _each_frame(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
