"""Clips of `musicgen-nano` far beyond its window: memory against a short clip's, and the seams against the whole clip.

At a seam, the spectrum must not change more than it does anyway: the highest flux within 50 ms is given beside the
clip's 99th percentile of the same. The variable SECONDS lists the lengths.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from domain.models import KEPT_SHARE, NANO
from workers.engine import Clip, EngineRequest, Take
from workers.engines.checkpoints import resolve
from workers.engines.loading import load

LENGTHS: Final = [float(length) for length in os.environ.get("SECONDS", "60,300").split(",")]
PROMPT: Final = "warm lo-fi track with a piano melody, soft guitar chords and drums, 80 bpm"
HOP: Final = 0.01
NEAR: Final = 0.05


def resident() -> float:
    """Megabytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def make(engine: Any, seconds: float) -> tuple[NDArray[np.float32], float, float]:
    """The audio, the seconds it took, and the most memory on the way."""
    began, most = time.monotonic(), 0.0
    engine.admit(EngineRequest(id="clip", prompt=PROMPT, duration=seconds, takes=[Take(0, 7)]))
    while True:
        for update in engine.advance():
            if isinstance(update, Clip):
                return update.pcm[0], time.monotonic() - began, most
        most = max(most, resident())


def flux(sound: NDArray[np.float32], rate: int) -> NDArray[np.float64]:
    """How far the log spectrum moves from each frame of 40 ms to the next."""
    hop, width = round(HOP * rate), round(4 * HOP * rate)
    frames = np.lib.stride_tricks.sliding_window_view(sound, width)[::hop] * np.hanning(width)
    spectra = np.log(np.abs(np.fft.rfft(frames, axis=1)) + 1e-3)
    return np.asarray(np.abs(np.diff(spectra, axis=0)).mean(1), np.float64)


def main() -> None:
    engine, window = load(resolve(NANO.id), "cpu"), NANO.max_duration
    _, _, short = make(engine, window)
    print(f"a clip of {window:g} s needs {short:.0f} MB\n")
    with tempfile.TemporaryDirectory() as folder:
        # Looking at the spectra needs much memory, which the process would keep.
        for number, seconds in enumerate(LENGTHS):
            sound, spent, most = make(engine, seconds)
            megabytes = f"{most - short:+.0f} MB, of which {sound.nbytes / 1e6:.0f} are audio"
            print(f"{seconds:g} s in {spent:.1f} s: {megabytes}", flush=True)
            np.save(Path(folder, f"{number}.npy"), sound)
            del sound
        print()
        for number, seconds in enumerate(LENGTHS):
            look(np.load(Path(folder, f"{number}.npy")), seconds, window)


def look(sound: NDArray[np.float32], seconds: float, window: float) -> None:
    width = round(2 * NEAR / HOP) + 1
    peaks = np.lib.stride_tricks.sliding_window_view(flux(sound, NANO.sample_rate), width).max(1)
    seams = np.arange(window, seconds, window * (1 - KEPT_SHARE))
    found, usual = peaks[((seams - NEAR) / HOP).astype(int)], np.percentile(peaks, 99)
    print(
        f"{seconds:g} s: flux at {len(seams)} seams: median {np.median(found):.3f}, most {found.max():.3f}, "
        f"{np.mean(found > usual):.0%} above the clip's 99th percentile of {usual:.3f}"
    )
