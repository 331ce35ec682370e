"""What a training has changed, to be heard: a few prompts' clips by the base model and by the adapter, of one seed."""

import gc
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from msgspec import Struct
from msgspec.structs import replace

from domain.events.jobs import SEEDS
from domain.models import MIN_DURATION
from workers.engine import Adapter, Clip, EngineError, EngineRequest, Failure, Take
from workers.engines.checkpoints import Checkpoint
from workers.engines.musicgen.engine import MusicgenEngine
from workers.mastering import master
from workers.training.config import Config
from workers.training.errors import Stopped
from workers.training.material import Material
from workers.training.network import Network
from workers.training.result import Result, Sample

logger = logging.getLogger(__name__)

FOLDER: Final = "samples"
LONGEST_SECONDS: Final = 5.0
SIDES: Final = ("before", "after")


class Wanted(Struct, frozen=True, kw_only=True):
    prompt: str
    seed: int
    seconds: float
    is_held_out: bool


def choose(config: Config, material: Material, network: Network) -> list[Wanted]:
    """Prompts that are held out, or where none is, some that were learnt from; as long as the dataset's clips are."""
    held = [*(pair.chosen for pair in material.held_pairs), *material.held_pieces]
    own = [*(pair.chosen for pair in material.pairs), *material.pieces]
    by_prompt = {piece.clip.group: piece for piece in reversed(held or own)}
    return [
        Wanted(
            prompt=piece.clip.prompt,
            seed=(config.seed + number) % SEEDS,
            seconds=max(MIN_DURATION, min(LONGEST_SECONDS, piece.codes.shape[1] * network.hop / network.sample_rate)),
            is_held_out=bool(held),
        )
        for number, piece in enumerate([*by_prompt.values()][::-1][: config.samples])
    ]


def add(
    result: Result,
    wanted: Sequence[Wanted],
    model: Checkpoint,
    output: Path,
    *,
    device: str,
    on_clip: Callable[[int, int], None],
) -> Result:
    """The result with samples of the adapter in `output`. A fault costs the samples alone, and a warning says so."""
    # The network that has learnt makes room for the one that plays.
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    adapter = Adapter(sha256=str(result.sha256), folder=str(output))
    try:
        made = render(wanted, model, adapter, output, device=device, on_clip=on_clip)
    except Stopped:
        raise
    except Exception as error:
        logger.warning("Samples of the adapter could not be made.", exc_info=True)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        warning = f"The adapter is made, but no samples of it: {reason}."
        return replace(result, warnings=[*result.warnings, warning])
    return replace(result, samples=made)


def render(
    wanted: Sequence[Wanted],
    model: Checkpoint,
    adapter: Adapter,
    output: Path,
    *,
    device: str,
    on_clip: Callable[[int, int], None],
) -> list[Sample]:
    """Writes the clips below `output`. `on_clip` is told often how many there are, of how many; what it raises ends
    the work. Raises EngineError, and OSError where the disk refuses.
    """
    shutil.rmtree(output / FOLDER, ignore_errors=True)
    (output / FOLDER).mkdir(parents=True)
    engine = MusicgenEngine.load(model, device)
    for number, each in enumerate(wanted):
        for side, own in zip(SIDES, (None, adapter), strict=True):
            takes = [Take(index=0, seed=each.seed)]
            engine.admit(
                EngineRequest(
                    id=_file(number, side), prompt=each.prompt, duration=each.seconds, takes=takes, adapter=own
                )
            )
    made, count = 0, len(SIDES) * len(wanted)
    while made < count:
        on_clip(made, count)
        for update in engine.advance():
            match update:
                case Failure(error=error):
                    raise EngineError(error)
                case Clip(request_id=file, pcm=pcm, sample_rate=rate):
                    (output / file).write_bytes(master(pcm, rate, {"title": wanted[_number(file)].prompt}).flac)
                    made += 1
    return [
        Sample(
            prompt=each.prompt,
            seed=each.seed,
            seconds=each.seconds,
            is_held_out=each.is_held_out,
            **{side: _file(number, side) for side in SIDES},
        )
        for number, each in enumerate(wanted)
    ]


def _file(number: int, side: str) -> str:
    return f"{FOLDER}/{number}-{side}.flac"


def _number(file: str) -> int:
    return int(file.rpartition("/")[2].partition("-")[0])
