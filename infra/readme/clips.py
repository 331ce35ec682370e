"""Makes the clips that the README plays, and their picture: `python -m infra.readme.clips`."""

import asyncio
import tempfile
import textwrap
from pathlib import Path
from typing import Final
from uuid import uuid4

import matplotlib as mpl
import numpy as np
import soundfile
from matplotlib import pyplot
from numpy.typing import NDArray
from PIL import Image

from infra.roles import studio
from infra.settings import Settings
from text2song.client import AsyncStudio

HERE: Final = Path(__file__).parent
SECONDS: Final = 10.0
# Of the seeds 1 to 4: a clip with the tempo, the lead and the mood that were asked for, and without a click.
CLIPS: Final = {
    "lo-fi": ("warm lo-fi track with a piano melody, soft guitar chords and drums, 80 bpm", 2),
    "house": ("dark house track with a synth lead, pads and drums, 124 bpm", 3),
    "classical": ("sad classical piece, solo violin over strings, no drums, 72 bpm", 2),
    "jazz": ("happy swing jazz, trumpet solo, organ chords, with drums, 136 bpm", 3),
}
WINDOW: Final = 2048
HOP: Final = 100
LOWEST, HIGHEST, ROWS = 60.0, 7600.0, 132
SHOWN: Final = (-56, -4)
PAGE, INK, FAINT, ACCENT = "#12141c", "#f2f2f5", "#a3a7b5", "#ffb454"
COLOURS: Final = 96


async def make(folder: Path) -> None:
    """An MP3 beside this file and a WAV in the folder for each clip."""
    async with studio(Settings(data=str(folder / "data"), port=0)) as url, AsyncStudio(url) as client:
        for name, (prompt, seed) in CLIPS.items():
            request = {"prompt": prompt, "seed": seed, "duration": SECONDS}
            job_id = (await client.submit(request, str(uuid4()))).job_id
            async for _ in client.follow(job_id):
                pass
            sample_id = (await client.get(f"/jobs/{job_id}"))["sample_ids"][0]
            for target in (HERE / f"{name}.mp3", folder / f"{name}.wav"):
                await client.download(sample_id, target)


def spectrogram(audio: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """Decibels `[ROWS, frames]`, each row a quarter tone or so above the one before."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, WINDOW // 2), WINDOW)[::HOP] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames)) ** 2
    rows = np.geomspace(LOWEST, HIGHEST, ROWS)
    known = np.fft.rfftfreq(WINDOW, 1 / rate)
    heard = np.stack([np.interp(rows, known, frame) for frame in power], axis=1)
    return np.asarray(10 * np.log10(heard / heard.max() + 1e-9))


def draw(folder: Path, path: Path) -> None:
    """The prompt of each clip, and beside it the waveform over the spectrogram."""
    mpl.use("Agg")
    figure = pyplot.figure(figsize=(14, 8), facecolor=PAGE)
    rows = figure.add_gridspec(len(CLIPS), 2, left=0.02, right=0.985, top=0.98, bottom=0.06, width_ratios=(1, 3.1))
    rows.update(wspace=0.03, hspace=0.14)
    for row, (name, (prompt, seed)) in enumerate(CLIPS.items()):
        audio, rate = soundfile.read(folder / f"{name}.wav", dtype="float32")
        words = figure.add_subplot(rows[row, 0])
        words.set_axis_off()
        words.text(0, 0.98, name, color=ACCENT, fontsize=17, weight="bold", va="top")
        words.text(0, 0.76, _wrapped(f"“{prompt}”"), color=INK, fontsize=14, va="top", linespacing=1.35)
        words.text(0, 0.02, f"seed {seed}", color=FAINT, fontsize=12)
        parts = rows[row, 1].subgridspec(2, 1, height_ratios=(1, 2.4), hspace=0.05)
        wave, picture = (figure.add_subplot(parts[part]) for part in (0, 1))
        peaks = np.abs(audio[: len(audio) // HOP * HOP]).reshape(-1, HOP).max(1)
        wave.fill_between(np.linspace(0, SECONDS, len(peaks)), -peaks, peaks, color=ACCENT, linewidth=0)
        wave.set(xlim=(0, SECONDS), ylim=(-0.9, 0.9), xticks=(), yticks=(), facecolor=PAGE)
        heard, (low, high) = spectrogram(audio, rate), SHOWN
        picture.imshow(
            heard, aspect="auto", origin="lower", cmap="magma", vmin=low, vmax=high, extent=(0, SECONDS, 0, 1)
        )
        picture.set(xticks=range(0, 11, 2) if row == len(CLIPS) - 1 else (), yticks=())
        picture.tick_params(colors=FAINT, length=3, labelsize=12)
        for axes in (wave, picture):
            axes.spines[:].set_visible(False)
    figure.text(0.985, 0.008, "seconds", color=FAINT, fontsize=12, ha="right")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)


def _wrapped(prompt: str) -> str:
    return textwrap.fill(prompt.replace(" bpm", "\N{NO-BREAK SPACE}bpm"), 30)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        asyncio.run(make(Path(made)))
        draw(Path(made), HERE / "clips.png")
