"""A dataset as a method needs it: each clip as codes, and for a taste also what is heard in it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

import torch
from msgspec import Struct

from workers.training.codes import Codes
from workers.training.config import LEAST, Config
from workers.training.errors import TrainingError
from workers.training.examples import NAMED, Clip, Examples, Pair, sound
from workers.training.features import Ear
from workers.training.listener import TIMBRE
from workers.training.network import Network
from workers.training.preference import folds

SHORTEST_SECONDS: Final = 0.5
SHARE_KEPT: Final = 0.5
T = TypeVar("T", Pair, Clip)


class Piece(Struct, frozen=True):
    """A clip of the dataset: its codes `[books, frames]`, and what is heard in it, by group."""

    clip: Clip
    codes: torch.Tensor
    heard: Mapping[str, torch.Tensor]


class Two(Struct, frozen=True):
    chosen: Piece
    rejected: Piece
    weight: float

    @property
    def group(self) -> str:
        return self.chosen.clip.group


class Material(Struct, frozen=True, kw_only=True):
    """`left_out` says why rows or clips are not used."""

    pairs: Sequence[Two]
    held_pairs: Sequence[Two]
    pieces: Sequence[Piece]
    held_pieces: Sequence[Piece]
    left_out: Sequence[str]


def gather(
    config: Config, examples: Examples, network: Network, kept: Codes, on_clip: Callable[[int, int], None]
) -> Material:
    """`on_clip` is told how many clips are encoded, of how many. Raises TrainingError where too little can be used."""
    _check_model(examples, network)
    left_out = list(examples.left_out)
    has_pairs = config.method != "sft"
    pairs, held_pairs = (list(each) if has_pairs else [] for each in (examples.pairs, examples.held_pairs))
    clips, held_clips = ([] if has_pairs else list(each) for each in (examples.clips, examples.held_clips))
    _check_count(config, examples, len(pairs) or len(clips), left_out)
    if not held_pairs and not held_clips:
        held = _held_out(config, pairs, clips)
        pairs, held_pairs = _split(pairs, held)
        clips, held_clips = _split(clips, held)
    wanted = dict.fromkeys(
        [*(side for pair in (*pairs, *held_pairs) for side in (pair.chosen, pair.rejected)), *clips, *held_clips]
    )
    pieces: dict[Clip, Piece] = {}
    lost = 0
    for number, clip in enumerate(wanted, 1):
        try:
            pieces[clip] = _piece(config, examples, clip, network, kept)
        except ValueError as error:
            lost += 1
            left_out.append(f"{clip.file} {error}")
        on_clip(number, len(wanted))
    kept.trim()
    if lost > (1 - SHARE_KEPT) * len(wanted):
        raise TrainingError(
            f"Of {len(wanted)} clips {lost} cannot be used: {_some(left_out)}. Export the dataset again."
        )
    found = Material(
        pairs=_both(pairs, pieces),
        held_pairs=_both(held_pairs, pieces),
        pieces=[pieces[clip] for clip in clips if clip in pieces],
        held_pieces=[pieces[clip] for clip in held_clips if clip in pieces],
        left_out=left_out,
    )
    # As many of the needed may be held out as was asked for.
    count = sum(map(len, (found.pairs, found.held_pairs, found.pieces, found.held_pieces)))
    _check_count(config, examples, count, left_out)
    return found


def _check_model(examples: Examples, network: Network) -> None:
    if others := [model for model in examples.models if model != network.model.id]:
        raise TrainingError(
            f"The dataset has clips of {', '.join(others[:NAMED])}, but the base model is {network.model.id}. "
            f"Train with --base-model {others[0]}, or build the dataset with a filter for model {network.model.id}."
        )


def _check_count(config: Config, examples: Examples, count: int, left_out: Sequence[str]) -> None:
    least = LEAST[config.method]
    if count >= least:
        return
    what, wanted = (
        ("clips that were rated 4 or more, labelled good or preferred", "Rate more clips")
        if config.method == "sft"
        else ("pairs of clips of one prompt of which one was preferred", "Compare more clips")
    )
    why = f" Left out: {_some(left_out)}." if left_out else ""
    raise TrainingError(
        f"The method {config.method} needs at least {least} {what}; the dataset has {count}, in {examples.rows} "
        f"row(s).{why} {wanted}, or widen the dataset's filter."
    )


def _held_out(config: Config, pairs: Sequence[Pair], clips: Sequence[Clip]) -> set[str]:
    """A share of the prompts, by chance."""
    groups = [pair.group for pair in pairs] or [clip.group for clip in clips]
    if not config.held_out or len(set(groups)) < 2:
        return set()
    parts = folds(groups, max(2, round(1 / config.held_out)), config.seed)
    return {groups[place] for place in parts[0]}


def _split(items: Sequence[T], held: set[str]) -> tuple[list[T], list[T]]:
    return [item for item in items if item.group not in held], [item for item in items if item.group in held]


def _piece(config: Config, examples: Examples, clip: Clip, network: Network, kept: Codes) -> Piece:
    pcm = sound(examples.folder, clip, network.sample_rate, network.channels)
    if pcm.shape[1] < SHORTEST_SECONDS * network.sample_rate:
        raise ValueError(f"is shorter than {SHORTEST_SECONDS:g} s")
    pcm = pcm[:, : round(config.seconds * network.sample_rate)]
    codes = kept.get(pcm, network.encode)[:, : network.longest_frames]
    heard: dict[str, torch.Tensor] = {}
    if config.method == "taste":
        with torch.no_grad():
            heard = {
                name: values[0]
                for name, values in Ear(network.sample_rate).hear(torch.from_numpy(pcm.mean(0))[None]).items()
            }
            heard[TIMBRE] = network.latents(codes[None].to(network.device)).mean((1, 3))[0].cpu()
    return Piece(clip=clip, codes=codes, heard=heard)


def _both(pairs: Sequence[Pair], pieces: Mapping[Clip, Piece]) -> list[Two]:
    return [
        Two(pieces[pair.chosen], pieces[pair.rejected], pair.weight)
        for pair in pairs
        if pair.chosen in pieces and pair.rejected in pieces
    ]


def _some(left_out: Sequence[str]) -> str:
    more = f"; and {len(left_out) - NAMED} more" if len(left_out) > NAMED else ""
    return "; ".join(left_out[:NAMED]) + more
