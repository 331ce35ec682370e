"""Says how good a checkpoint is: 200 prompts nobody trained on, made by the engine and heard by the judge.

`python -m workers.engines.musicgen.nano.evaluation CHECKPOINT FOLDER` goes on where it was stopped, prints the figures
and draws twenty of the clips.
"""

import argparse
import multiprocessing
import time
from collections.abc import Callable, Iterator
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
from workers.engines.musicgen.nano.instruments import RATE, Signal
from workers.engines.musicgen.nano.judge import Judge, right
from workers.engines.musicgen.nano.songs import SECONDS, Song, compose, play

FIRST: Final = 8_000_000
PROMPTS: Final = 200
DRAWN: Final = 20

Sound = Callable[[int, Song], Signal]


def prompts(count: int) -> list[tuple[Song, str]]:
    songs = [compose(seed) for seed in range(FIRST, FIRST + count)]
    return [(song, request(song, np.random.default_rng(song.seed))) for song in songs]


def make(checkpoint: Path, folder: Path, count: int) -> None:
    """One clip a prompt, as `folder/<number>.wav`, on all cores."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = [(number, prompt) for number, (_, prompt) in enumerate(prompts(count))]
    missing = [(number, prompt) for number, prompt in asked if not _path(folder, number).exists()]
    workers = multiprocessing.cpu_count()
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.starmap(_make, [(checkpoint, folder, missing[worker::workers]) for worker in range(workers)], chunksize=1)


def _make(checkpoint: Path, folder: Path, asked: list[tuple[int, str]]) -> None:
    torch.set_num_threads(1)
    engine = MusicgenEngine.load(Checkpoint(model=NANO, folder=checkpoint), "cpu")
    for number, prompt in asked:
        clip = sing(engine, prompt, number)
        soundfile.write(_path(folder, number), clip, RATE)


def sing(engine: MusicgenEngine, prompt: str, seed: int, seconds: float = SECONDS) -> Signal:
    engine.admit(EngineRequest(id="clip", prompt=prompt, duration=seconds, takes=[Take(0, seed)]))
    while True:
        for update in engine.advance():
            match update:
                case Clip(pcm=pcm):
                    return np.asarray(pcm[0], np.float32)
                case Failure(error=error):
                    raise RuntimeError(error)


def judged(judge: Judge, asked: list[tuple[Song, str]], sound: Sound) -> dict[str, float]:
    """The shares of clips in which what was asked for is heard."""
    rows = [right(judge.listen(sound(number, song)), song) for number, (song, _) in enumerate(asked)]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def evaluate(checkpoint: Path, folder: Path, count: int = PROMPTS) -> Iterator[tuple[str, dict[str, float]]]:
    judge = Judge.trained(folder / "judge.pt")
    asked = prompts(count)
    engine = MusicgenEngine.load(Checkpoint(model=NANO, folder=checkpoint), "cpu")
    began = time.monotonic()
    first, again = (sing(engine, asked[0][1], 0) for _ in range(2))
    yield (
        "seconds for 10 s of audio",
        {"seconds": (time.monotonic() - began) / 2, "same": float((first == again).all())},
    )
    network = engine.network.audio_encoder
    quantiser = codec.quantiser_of(network)
    yield "codec", codec.measure(network, quantiser, codec.songs(codec.HELD_OUT, 60))
    make(checkpoint, folder, count)
    made = [soundfile.read(_path(folder, number), dtype="float32")[0] for number in range(count)]
    draw(asked, made, folder / "clips.png")
    yield "made from prompts", judged(judge, asked, lambda number, _: made[number])
    yield "floor: another prompt's clip", judged(judge, asked, lambda number, _: made[(number + 1) % count])
    yield "ceiling: the song itself", judged(judge, asked, lambda _, song: play(song))

    @torch.inference_mode()
    def through_codec(_: int, song: Song) -> Signal:
        audio = torch.from_numpy(play(song))[None]
        _, latents = quantiser(codec.encode(network, audio))
        sound = codec.decode(network, latents, 1)
        return np.asarray(sound[0, : audio.shape[1]].numpy(), np.float32)

    yield "ceiling: the song through the codec", judged(judge, asked, through_codec)


def draw(asked: list[tuple[Song, str]], made: list[Signal], path: Path) -> None:
    """Waveform and spectrogram of the first clips, under what was asked for."""
    mpl.use("Agg")
    figure, axes = pyplot.subplots(DRAWN // 2, 4, figsize=(20, 2.1 * DRAWN / 2), width_ratios=(1, 2, 1, 2))
    for (_, prompt), audio, (wave, picture) in zip(asked, made, axes.reshape(-1, 2), strict=False):
        wave.plot(np.arange(len(audio)) / RATE, audio, linewidth=0.2)
        wave.set(ylim=(-1, 1), xticks=(), yticks=())
        picture.specgram(audio + 1e-6, NFFT=1024, Fs=RATE, noverlap=512, vmin=-130, vmax=-40)
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
    parser.add_argument("--count", type=int, default=PROMPTS)
    main(**vars(parser.parse_args()))
