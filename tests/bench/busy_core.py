"""Audio made beside a busy core, against audio made alone: the same clips by the built-in model, in turn."""

import asyncio
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from domain.models import NANO
from workers.engine import EngineRequest, Take
from workers.engine_process import EngineProcess
from workers.engines.checkpoints import resolve
from workers.engines.loading import load

ROUNDS: Final = int(os.environ.get("ROUNDS", "5"))
DURATION: Final = 10.0
PROMPT: Final = "warm lo-fi track with a piano melody, soft guitar chords and drums, 80 bpm"


def spin() -> None:
    while True:
        pass


@contextmanager
def busy(cores: int) -> Iterator[None]:
    processes = [multiprocessing.get_context("spawn").Process(target=spin, daemon=True) for _ in range(cores)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


async def seconds(engine: EngineProcess, name: str) -> float:
    """How long one clip takes."""
    began = time.monotonic()
    request = EngineRequest(id=name, prompt=PROMPT, duration=DURATION, takes=[Take(0, 7)])
    async for _ in engine.generate(request):
        pass
    return time.monotonic() - began


async def measure() -> None:
    engine = EngineProcess(load, resolve(NANO.id), "cpu")
    await engine.start()
    await seconds(engine, "warm")
    taken: dict[int, list[float]] = {0: [], 1: []}
    for number in range(ROUNDS):
        for cores, found in taken.items():
            with busy(cores):
                found.append(await seconds(engine, f"{number}-{cores}"))
    await engine.stop()
    alone, beside = (DURATION / statistics.median(found) for found in taken.values())
    ratios = sorted(slow / fast for fast, slow in zip(taken[0], taken[1], strict=True))
    print("audio seconds a second: alone   beside a busy core   slower")
    print(f"{alone:29.2f} {beside:20.2f} {statistics.median(ratios):7.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def main() -> None:
    asyncio.run(measure())
