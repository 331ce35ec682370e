"""Evaluates a checkpoint: the engine makes clips of 200 prompts outside the training data, and the judge rates them.

`python -m workers.engines.musicgen.nano.evaluation CHECKPOINT FOLDER` prints the figures and plots twenty of the clips.
If it is stopped, the next run keeps the clips that are already made.
"""

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import soundfile
import torch
from matplotlib import pyplot

from domain.models import NANO
from workers.engine import Clip, EngineRequest, Failure, Take
from workers.engines.checkpoints import Checkpoint
from workers.engines.musicgen.engine import MusicgenEngine
from workers.engines.musicgen.nano import codec
from workers.engines.musicgen.nano.descriptions import request
from workers.engines.musicgen.nano.instruments import FRAME_RATE, SAMPLE_RATE, Signal
from workers.engines.musicgen.nano.judge import Judge, correct_attributes, section_likeness
from workers.engines.musicgen.nano.songs import (
    BARS_PER_SECTION,
    BEATS_PER_BAR,
    CLIP_SECONDS,
    WINDOW_SECONDS,
    Song,
    compose,
    play,
)

FIRST_SEED: Final = 8_000_000
NUM_PROMPTS: Final = 200
NUM_PLOTTED: Final = 20
AT_ONCE: Final = 8
# Ways of naming a tempo that are not among those of the training prompts.
WORDINGS: Final = (
    "{} beats every minute", "metronome at {}", "clocked at {} bpm", "running at {}BPM", "BPM={}", "its tempo is {}",
    "{}-bpm groove", "played at {}", "Tempo {}!", "not slower than {} bpm",
)  # fmt: skip
WORDED_FIRST_SEED: Final = 8_500_000
NUM_WORDED: Final = 20
FORM_FIRST_SEED: Final = 8_600_000
NUM_FORMS: Final = 40

ClipSource = Callable[[int, Song], Signal]


def prompts(count: int) -> list[tuple[Song, str]]:
    songs = [compose(seed) for seed in range(FIRST_SEED, FIRST_SEED + count)]
    return [(song, request(song, np.random.default_rng(song.seed))) for song in songs]


def worded(wording: str, count: int = NUM_WORDED) -> list[tuple[Song, str]]:
    """Songs, and prompts that name their tempo in other words than the training prompts do."""
    songs = [compose(seed) for seed in range(WORDED_FIRST_SEED, WORDED_FIRST_SEED + count)]
    found = []
    for song in songs:
        rng = np.random.default_rng(song.seed)
        parts = [part for part in request(song, rng).split(", ") if part != f"{song.tempo} bpm"]
        parts.insert(int(rng.integers(len(parts) + 1)), wording.format(song.tempo))
        found.append((song, ", ".join(parts)))
    return found


def long_prompts(count: int = NUM_FORMS) -> list[tuple[Song, str]]:
    """Songs of which twelve bars fit into a window."""
    bars = 3 * BARS_PER_SECTION
    songs = (compose(seed) for seed in itertools.count(FORM_FIRST_SEED))
    fitting = (song for song in songs if 2 * BEATS_PER_BAR * bars * song.eighth_frames <= WINDOW_SECONDS * FRAME_RATE)
    return [(song, request(song, np.random.default_rng(song.seed))) for song in itertools.islice(fitting, count)]


def make_clips(checkpoint: Path, folder: Path, asked: Sequence[str], seconds: float = CLIP_SECONDS) -> list[Signal]:
    """A clip of each prompt. Those that are not yet in the folder are made on all cores."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [(number, prompt) for number, prompt in enumerate(asked) if not _path(folder, number).exists()]
    workers = multiprocessing.cpu_count()
    parts = [(checkpoint, folder, missing[worker::workers], seconds) for worker in range(workers)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(_make_clips, parts, chunksize=1)
    return [soundfile.read(_path(folder, number), dtype="float32")[0] for number in range(len(asked))]


def _make_clips(checkpoint: Path, folder: Path, numbered: list[tuple[int, str]], seconds: float) -> None:
    torch.set_num_threads(1)
    engine = MusicgenEngine.load(Checkpoint(model=NANO, folder=checkpoint), "cpu")
    for first in range(0, len(numbered), AT_ONCE):
        some = numbered[first : first + AT_ONCE]
        clips = generate(engine, [(prompt, number) for number, prompt in some], seconds)
        for (number, _), clip in zip(some, clips, strict=True):
            soundfile.write(_path(folder, number), clip, SAMPLE_RATE)


def generate(engine: MusicgenEngine, seeded: Sequence[tuple[str, int]], seconds: float = CLIP_SECONDS) -> list[Signal]:
    """A clip of each prompt with its seed, made side by side."""
    for number, (prompt, seed) in enumerate(seeded):
        engine.admit(EngineRequest(id=str(number), prompt=prompt, duration=seconds, takes=[Take(0, seed)]))
    clips: dict[str, Signal] = {}
    while len(clips) < len(seeded):
        for update in engine.advance():
            match update:
                case Clip(request_id=id_, pcm=pcm):
                    clips[id_] = np.asarray(pcm[0], np.float32)
                case Failure(error=error):
                    raise RuntimeError(error)
    return [clips[str(number)] for number in range(len(seeded))]


def accuracies(judge: Judge, examples: list[tuple[Song, str]], clip_of: ClipSource) -> dict[str, float]:
    """For each attribute, the share of clips in which the judge finds it as the song has it."""
    rows = [correct_attributes(judge.predict(clip_of(number, song)), song) for number, (song, _) in enumerate(examples)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def form(pairs: Iterable[tuple[Signal, Song]]) -> dict[str, float]:
    """The share of clips of which the first section returns in the second and not in the third, and both likenesses."""
    found = np.array([section_likeness(audio, song) for audio, song in pairs])
    return {
        "returns": float((found[:, 0] > found[:, 1]).mean()),
        "likeness of the second": float(found[:, 0].mean()),
        "likeness of the third": float(found[:, 1].mean()),
    }


def evaluate(checkpoint: Path, folder: Path, count: int = NUM_PROMPTS) -> Iterator[tuple[str, dict[str, float]]]:
    judge = Judge.load_or_train(folder / "judge.pt")
    examples = prompts(count)
    engine = MusicgenEngine.load(Checkpoint(model=NANO, folder=checkpoint), "cpu")
    began = time.monotonic()
    first, again = (generate(engine, [(examples[0][1], 0)])[0] for _ in range(2))
    yield (
        "seconds for 10 s of audio",
        {"seconds": (time.monotonic() - began) / 2, "same": float((first == again).all())},
    )
    network = engine.network.audio_encoder
    quantiser = codec.quantiser_of(network)
    yield "codec", codec.measure(network, quantiser, codec.render_songs(codec.VALIDATION_FIRST_SEED, 60))
    clips = make_clips(checkpoint, folder / "prompts", [prompt for _, prompt in examples])
    plot(examples, clips, folder / "clips.png")
    yield "made from prompts", accuracies(judge, examples, lambda number, _: clips[number])
    for number, wording in enumerate(WORDINGS):
        otherwise = worded(wording)
        heard = make_clips(checkpoint, folder / f"wording-{number}", [prompt for _, prompt in otherwise])
        right = accuracies(judge, otherwise, lambda number, _: heard[number])  # noqa: B023
        yield f"worded {wording!r}", {"tempo": right["tempo"]}
    long = long_prompts()
    heard = make_clips(checkpoint, folder / "long", [prompt for _, prompt in long], WINDOW_SECONDS)
    yield "AAB in 30 s", form(zip(heard, (song for song, _ in long), strict=True))
    yield "ceiling of AAB", form((play(song, WINDOW_SECONDS), song) for song, _ in long)
    yield "floor: another prompt's clip", accuracies(judge, examples, lambda number, _: clips[(number + 1) % count])
    yield "ceiling: the song itself", accuracies(judge, examples, lambda _, song: play(song))

    @torch.inference_mode()
    def through_codec(_: int, song: Song) -> Signal:
        audio = torch.from_numpy(play(song))[None]
        _, latents = quantiser(codec.encode(network, audio))
        decoded = codec.decode(network, latents, 1)
        return np.asarray(decoded[0, : audio.shape[1]].numpy(), np.float32)

    yield "ceiling: the song through the codec", accuracies(judge, examples, through_codec)


def plot(examples: list[tuple[Song, str]], clips: list[Signal], path: Path) -> None:
    """Plots waveform and spectrogram of the first clips, each under its prompt."""
    mpl.use("Agg")
    figure, axes = pyplot.subplots(NUM_PLOTTED // 2, 4, figsize=(20, 2.1 * NUM_PLOTTED / 2), width_ratios=(1, 2, 1, 2))
    for (_, prompt), audio, (wave, picture) in zip(examples, clips, axes.reshape(-1, 2), strict=False):
        wave.plot(np.arange(len(audio)) / SAMPLE_RATE, audio, linewidth=0.2)
        wave.set(ylim=(-1, 1), xticks=(), yticks=())
        picture.specgram(audio + 1e-6, NFFT=1024, Fs=SAMPLE_RATE, noverlap=512, vmin=-130, vmax=-40)
        picture.set_title(prompt, fontsize=8)
        picture.set(xticks=(), yticks=())
    figure.tight_layout()
    figure.savefig(path, dpi=60)
    pyplot.close(figure)


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:03}.wav"


def main(checkpoint: Path, folder: Path, count: int) -> None:
    for title, figures in evaluate(checkpoint, folder, count):
        shown: dict[str, Any] = {name: round(value, 3) for name, value in figures.items()}
        print(f"{title}: {shown}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=NUM_PROMPTS)
    main(**vars(parser.parse_args()))
