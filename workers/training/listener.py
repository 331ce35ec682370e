"""The preference model of a taste: fitted to pairs, measured on pairs that it has not learnt, told in words."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import torch
from msgspec import Struct
from safetensors.torch import save_file

from domain.lora import PREFERENCE
from workers.training.features import Ear
from workers.training.preference import Hearing, Pairs, choose_ridge, left_out
from workers.training.preference import slopes as slopes_of

DESCRIPTION, WEIGHTS = PREFERENCE
TIMBRE: Final = "timbre"
TOLD: Final = 3
CLEAR: Final = 0.4  # of standard deviations between chosen and rejected
# Words for what a positive and a negative difference sound like, by the group and what its numbers' names contain.
OPINIONS: Final = (
    ("brighter", "darker", "power", (" Hz",), (0.6, 1.0)),
    ("more bass", "less bass", "power", (" Hz",), (0.0, 0.2)),
    ("more onsets", "fewer onsets", "rhythm", ("onsets in all", "share of onsets in all"), None),
    ("more drums and cymbals", "fewer drums and cymbals", "rhythm", ("onsets in treble",), None),
    ("more change in loudness", "steadier loudness", "dynamics", ("spread", "against"), None),
    ("louder", "quieter", "dynamics", ("loudness",), None),
    ("a clearer beat", "a looser beat", "rhythm", ("repeats",), None),
)


class Opinion(Struct, frozen=True):
    """How the chosen differ from the rejected, in words, and by how many standard deviations of such a difference."""

    words: str
    strength: float


class Listener(Struct, frozen=True, kw_only=True):
    """`slopes` say by group how much a number adds to a clip's log-odds; adding up is all there is to it."""

    ear: Ear
    slopes: Mapping[str, torch.Tensor]
    hearing: Hearing
    ridge: float
    opinions: Sequence[Opinion]

    def score(self, heard: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The log-odds `[clips]`, of which only differences mean something."""
        return torch.stack([heard[group] @ slopes.to(heard[group]) for group, slopes in self.slopes.items()]).sum(0)

    def save(self, folder: Path) -> None:
        slopes = {group: slope.float().contiguous() for group, slope in self.slopes.items()}
        save_file(slopes, folder / WEIGHTS)
        told = {
            "format": "text2song-preference/1",
            "sample_rate": self.ear.sample_rate,
            "names": {**self.ear.names, TIMBRE: len(self.slopes[TIMBRE])},
            "ridge": self.ridge,
            "held_out": {"share": self.hearing.share, **msgspec.structs.asdict(self.hearing)},
            "hears": [msgspec.structs.asdict(opinion) for opinion in self.opinions],
        }
        (folder / DESCRIPTION).write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n")


def listen(
    ear: Ear,
    chosen: Mapping[str, torch.Tensor],
    rejected: Mapping[str, torch.Tensor],
    *,
    weights: torch.Tensor,
    groups: Sequence[str],
    held: Sequence[bool],
    seed: int,
    on_fit: Callable[[], None] = lambda: None,
) -> Listener:
    """Fits a model to what was heard in the two sides of pairs, `[pairs, numbers]` by group. `on_fit` is as in
    choose_ridge.

    Pairs that are `held` are judged by the model of the others; these are judged by models of other prompts alone.
    """
    apart = {name: (chosen[name] - rejected[name]).double() for name in chosen}
    spreads = {name: values.square().mean(0).sqrt() + 1e-6 for name, values in apart.items()}
    # Each group weighs the same, however many numbers it has.
    scales = {name: spread * len(spread) ** 0.5 for name, spread in spreads.items()}
    differences = torch.cat([apart[name] / scales[name] for name in apart], dim=1)
    own = [place for place, is_held in enumerate(held) if not is_held]
    others = [place for place, is_held in enumerate(held) if is_held]
    learnt = differences[own]
    gram = learnt @ learnt.T
    pairs = Pairs(learnt, weights[own].double(), [groups[place] for place in own])
    ridge, _ = choose_ridge(gram, pairs, range(len(own)), seed, on_fit)
    slopes = slopes_of(gram, pairs, ridge)
    judged = torch.cat([left_out(gram, pairs, seed, on_fit), differences[others] @ slopes])
    found: dict[str, torch.Tensor] = {}
    start = 0
    for name, scale in scales.items():
        found[name] = slopes[start : start + len(scale)] / scale
        start += len(scale)
    return Listener(
        ear=ear,
        slopes=found,
        hearing=Hearing.of(judged),
        ridge=ridge,
        opinions=_opinions(ear, {name: values[own] / spreads[name] for name, values in apart.items()}),
    )


def _opinions(ear: Ear, apart: Mapping[str, torch.Tensor]) -> list[Opinion]:
    found = []
    for more, less, group, parts, share in OPINIONS:
        names = ear.names[group]
        places = [place for place, name in enumerate(names) if any(part in name for part in parts)]
        if share is not None:
            places = places[int(share[0] * len(places)) : int(share[1] * len(places))]
        strength = float(apart[group][:, places].mean(1).mean())
        if abs(strength) >= CLEAR:
            found.append(Opinion(more if strength > 0 else less, round(strength, 2)))
    return sorted(found, key=lambda opinion: -abs(opinion.strength))[:TOLD]
