"""A simulated listener with a hidden taste: pairs, a training by the method taste, and blind same-seed pairs of base
and adapter on prompts that nobody has rated. Of the same pairs it says how many have the tempo of their prompt's song,
first of the base's clips, then of the adapter's; with JUDGE=1 also how many have its drums, lead and mode, by a judge
that is trained first, for half an hour of one core.

TASTES names some of brightness, bass, onsets, dynamics, drums; PAIRS, ERRORS and SEEDS are lists too, such as
PAIRS="64 128" ERRORS="0 0.2" SEEDS="0 1 2"; JUDGED is the number of blind pairs. Clips of the base and the judge are
kept in CACHE.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import torch

from domain.models import NANO
from tests import dataset
from tests.dataset import Sound
from workers.engine import Adapter, Clip, EngineError, EngineRequest, Failure, Take
from workers.engines.checkpoints import resolve
from workers.engines.musicgen.engine import MusicgenEngine
from workers.engines.musicgen.nano.descriptions import describe
from workers.engines.musicgen.nano.judge import TEMPO_TOLERANCE, Judge, correct_attributes, tempo
from workers.engines.musicgen.nano.songs import compose
from workers.training.config import config
from workers.training.run import Training

TASTES: Final = os.environ.get("TASTES", "brightness bass").split()
PAIRS: Final = [int(each) for each in os.environ.get("PAIRS", "64").split()]
ERRORS: Final = [float(each) for each in os.environ.get("ERRORS", "0").split()]
SEEDS: Final = [int(each) for each in os.environ.get("SEEDS", "0").split()]
JUDGED: Final = int(os.environ.get("JUDGED", "40"))
THREADS: Final = int(os.environ.get("THREADS", "1"))
CACHE: Final = Path(os.environ.get("CACHE", "text2song-taste"))
SECONDS: Final = 5.0
FIRST_SONG: Final = 9_000_000
FIRST_JUDGED: Final = 9_500_000
RATE: Final = NANO.sample_rate
ATTRIBUTES: Final = ("tempo", "drums", "lead", "mode")


def _spectra(sound: Sound, window: int, hop: int) -> Sound:
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::hop]
    spectra: Sound = np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)).astype(np.float32)
    return spectra


def brightness(sound: Sound) -> float:
    """The mean frequency, in Hz."""
    spectra = _spectra(sound, 1024, 512)
    return float((spectra * np.fft.rfftfreq(1024, 1 / RATE)).sum() / (spectra.sum() + 1e-9))


def bass(sound: Sound) -> float:
    """The share of power below 200 Hz."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    return float(power[np.fft.rfftfreq(len(sound), 1 / RATE) < 200].sum() / (power.sum() + 1e-9))


def _flux(sound: Sound, low: int = 0) -> Sound:
    levels = np.log(_spectra(sound, 512, 160)[:, low:] + 1e-2)
    flux: Sound = np.maximum(0, np.diff(levels, axis=0)).sum(1)
    return flux


def onsets(sound: Sound) -> float:
    """Peaks of spectral flux a second."""
    flux = _flux(sound)
    peaks = (flux[1:-1] > flux[:-2]) & (flux[1:-1] > flux[2:]) & (flux[1:-1] > flux.mean() + flux.std())
    return float(peaks.sum() / SECONDS)


def dynamics(sound: Sound) -> float:
    """The spread of the level, over tenths of a second."""
    blocks = sound[: len(sound) // 1600 * 1600].reshape(-1, 1600)
    return float(np.log(np.sqrt((blocks**2).mean(1)) + 1e-4).std())


def drums(sound: Sound) -> float:
    """How strong the attacks above 4 kHz are, as of a hi-hat."""
    flux = _flux(sound, low=128)
    return float(np.sort(flux)[-len(flux) // 10 :].mean())


LISTENERS: Final[Mapping[str, Callable[[Sound], float]]] = {
    each.__name__: each for each in (brightness, bass, onsets, dynamics, drums)
}


def main() -> None:
    torch.set_num_threads(THREADS)
    prompts = [prompt(FIRST_SONG + number) for number in range(max(PAIRS))]
    heard = [prompt(FIRST_JUDGED + number) for number in range(JUDGED)]
    rated = kept("rated", lambda: list(made(prompts, [[2 * n, 2 * n + 1] for n in range(len(prompts))])))
    base = kept("base", lambda: list(made(heard, [[n] for n in range(JUDGED)])))
    judge = Judge.load_or_train(CACHE / "judge.pt") if os.environ.get("JUDGE") else None
    for taste in TASTES:
        for pairs in PAIRS:
            for errors in ERRORS:
                for seed in SEEDS:
                    one_turn(
                        LISTENERS[taste], prompts[:pairs], rated, heard, base, judge=judge, errors=errors, seed=seed
                    )


def one_turn(
    listener: Callable[[Sound], float],
    prompts: Sequence[str],
    rated: Sequence[Sequence[Sound]],
    heard: Sequence[str],
    base: Sequence[Sequence[Sound]],
    *,
    judge: Judge | None,
    errors: float,
    seed: int,
) -> None:
    dice = np.random.default_rng(seed)
    sides = []
    for first, second in rated[: len(prompts)]:
        prefers = (listener(first) > listener(second)) ^ (dice.random() < errors)
        sides.append((first, second) if prefers else (second, first))
    what = f"{listener.__name__}, {len(prompts)} pairs, {errors:.0%} errors, seed {seed}"
    with TemporaryDirectory() as name:
        folder = dataset.pairs(Path(name) / "data", prompts, sides, model=NANO.id, sample_rate=RATE)
        began = time.monotonic()
        options = {"seed": seed, **_options()}
        result = Training(
            config("taste", options), resolve(NANO.id), folder, Path(name) / "adapter", cache=CACHE / "codes"
        ).run()
        minutes = (time.monotonic() - began) / 60
        share = f"held-out pairs {result.metrics['pair_accuracy']:.2f}"
        if result.sha256 is None:
            print(f"{what}: nothing learnt ({share}), {minutes:.1f} minutes", flush=True)
            return
        adapter = Adapter(sha256=result.sha256, folder=str(Path(name) / "adapter"))
        ours = list(made(heard, [[number] for number in range(len(heard))], adapter))
    scores = [(listener(new[0]), listener(old[0])) for new, old in zip(ours, base, strict=True)]
    wins = np.mean([(new > old) + 0.5 * (new == old) for new, old in scores])
    figures = f"{share}, gain {result.metrics['held_out_gain']:.2f}, KL {result.metrics['held_out_kl']:.4f}"
    hears = ", ".join(each["words"] for each in result.hears) or "nothing in words"
    print(f"{what}: wins {wins:.2f} of {len(scores)}, {minutes:.1f} minutes; {figures}; hears: {hears}", flush=True)
    before, after = (followed(judge, [clips[0] for clips in each]) for each in (base, ours))
    said = ", ".join(f"{name} {before[name]:.1%} to {after[name]:.1%}" for name in before)
    print(f"{what}: prompts followed: {said}", flush=True)


def followed(judge: Judge | None, clips: Sequence[Sound]) -> dict[str, float]:
    """Of each attribute the share of clips that have it as the prompt's song has it."""
    songs = [compose(FIRST_JUDGED + number) for number in range(len(clips))]
    if judge is None:
        right = [abs(tempo(clip) / song.tempo - 1) < TEMPO_TOLERANCE for clip, song in zip(clips, songs, strict=True)]
        return {"tempo": float(np.mean(right))}
    found = [correct_attributes(judge.predict(clip), song) for clip, song in zip(clips, songs, strict=True)]
    return {name: float(np.mean([one[name] for one in found])) for name in ATTRIBUTES}


def prompt(number: int) -> str:
    return describe(compose(number), np.random.default_rng(number))


def made(
    prompts: Sequence[str], seeds: Sequence[Sequence[int]], adapter: Adapter | None = None
) -> Iterator[list[Sound]]:
    """A clip `[samples]` for each seed of each prompt."""
    engine = MusicgenEngine.load(resolve(NANO.id), "cpu")
    for number, (text, own) in enumerate(zip(prompts, seeds, strict=True)):
        takes = [Take(index=place, seed=seed) for place, seed in enumerate(own)]
        engine.admit(EngineRequest(id=str(number), prompt=text, duration=SECONDS, takes=takes, adapter=adapter))
    found: dict[tuple[int, int], Sound] = {}
    while len(found) < sum(map(len, seeds)):
        for update in engine.advance():
            if isinstance(update, Failure):
                raise EngineError(update.error)
            if isinstance(update, Clip):
                found[int(update.request_id), update.index] = update.pcm[0]
    for number, own in enumerate(seeds):
        yield [found[number, place] for place in range(len(own))]


def kept(name: str, make: Callable[[], list[list[Sound]]]) -> list[list[Sound]]:
    """Made once: so many clips take minutes."""
    path = CACHE / f"{name}-{max(PAIRS)}-{JUDGED}.npy"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        np.save(path, np.array(make(), np.float32))
    return [list(sounds) for sounds in np.load(path)]


def _options() -> dict[str, float]:
    """Other options of the training, as in OPTIONS="steps=80 kl_target=0.02"."""
    given = (each.split("=") for each in os.environ.get("OPTIONS", "").split())
    return {name: float(value) if "." in value else int(value) for name, value in given}
