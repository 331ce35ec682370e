"""Best of n beside a random pick: how often the judge hears as many of the attributes asked for, or more."""

import multiprocessing
import os
from pathlib import Path
from tempfile import gettempdir
from typing import Final, TypeAlias

import msgspec
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from domain.models import NANO
from workers.engine import Clip, EngineRequest, Failure, Take
from workers.engines.checkpoints import resolve
from workers.engines.musicgen.engine import MusicgenEngine
from workers.engines.musicgen.nano.evaluation import prompts
from workers.engines.musicgen.nano.instruments import SAMPLE_RATE, Signal
from workers.engines.musicgen.nano.judge import Judge, correct_attributes
from workers.engines.musicgen.nano.songs import CLIP_SECONDS

ATTRIBUTES: Final = ("tempo", "drums", "lead", "mode")
AT_ONCE: Final = 4
Numbers: TypeAlias = NDArray[np.float64]


def main() -> None:
    count, best_of = int(os.environ.get("PROMPTS", "100")), int(os.environ.get("BEST_OF", "4"))
    folder = Path(os.environ.get("CACHE", str(Path(gettempdir()) / "text2song-best-of")))
    folder.mkdir(parents=True, exist_ok=True)
    processes = int(os.environ.get("PROCESSES", "2"))
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.starmap(_make, [(folder, range(first, count, processes), count, best_of) for first in range(processes)])
    judge = Judge.load_or_train(folder / "judge.pt")
    rows, right = [], []
    for number, (song, _) in enumerate(prompts(count)):
        heard = [_clip(folder, number, seed) for seed in range(best_of)]
        rows.append([likelihood for _, likelihood in heard])
        found = [correct_attributes(judge.predict(pcm), song) for pcm, _ in heard]
        right.append([[one[name] for name in ATTRIBUTES] for one in found])
    _report(np.array(rows), np.array(right, dtype=float))


def _report(scores: Numbers, right: Numbers) -> None:
    """`scores` are `[prompts, candidates]`, `right` says `[prompts, candidates, attributes]` what the judge hears."""
    count, best_of = scores.shape
    every, picked = np.arange(count), scores.argmax(1)
    points = right.sum(2)
    own = points[every, picked][:, None]
    others = np.ones(points.shape, dtype=bool)
    others[every, picked] = False
    better, worse = (own > points)[others].mean(), (own < points)[others].mean()
    print(f"best of {best_of} by likelihood, {count} prompts of {CLIP_SECONDS:g} s:")
    print(f"better or equal to a random one of the {best_of}: {1 - (own < points).mean():.1%}")
    print(f"to a random one of the other {best_of - 1}: better {better:.1%}, worse {worse:.1%}")
    for place, name in enumerate(ATTRIBUTES):
        part = right[..., place]
        shares = f"picked {part[every, picked].mean():.1%}, random {part.mean():.1%}, possible {part.max(1).mean():.1%}"
        print(f"{name}: {shares}")
    shares = f"picked {own.mean():.3f}, random {points.mean():.3f}, possible {points.max(1).mean():.3f}"
    print(f"attributes of {len(ATTRIBUTES)}: {shares}")


def _make(folder: Path, numbers: range, count: int, best_of: int) -> None:
    """The candidates that are not there yet; a later run goes on."""
    torch.set_num_threads(1)
    engine = MusicgenEngine.load(resolve(NANO.id), "cpu")
    texts = [text for _, text in prompts(count)]
    missing = [number for number in numbers if not _paths(folder, number, best_of - 1)[1].exists()]
    for first in range(0, len(missing), AT_ONCE):
        part = missing[first : first + AT_ONCE]
        for number in part:
            takes = [Take(seed, seed) for seed in range(best_of)]
            engine.admit(
                EngineRequest(id=str(number), prompt=texts[number], duration=CLIP_SECONDS, takes=takes, is_judged=True)
            )
        owed = len(part) * best_of
        clips: list[Clip] = []
        while owed > len(clips):
            for update in engine.advance():
                match update:
                    case Clip():
                        clips.append(update)
                    case Failure(error=error):
                        raise RuntimeError(error)
        for clip in sorted(clips, key=lambda clip: clip.index):
            sound, score = _paths(folder, int(clip.request_id), clip.index)
            soundfile.write(sound, clip.pcm[0], SAMPLE_RATE, subtype="FLOAT")
            score.write_bytes(msgspec.json.encode(clip.likelihood))


def _paths(folder: Path, number: int, seed: int) -> tuple[Path, Path]:
    return folder / f"{number:03}-{seed}.wav", folder / f"{number:03}-{seed}.json"


def _clip(folder: Path, number: int, seed: int) -> tuple[Signal, float]:
    sound, score = _paths(folder, number, seed)
    pcm = np.asarray(soundfile.read(sound, dtype="float32")[0], np.float32)
    return pcm, msgspec.json.decode(score.read_bytes(), type=float)
