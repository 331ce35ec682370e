"""A hand-written engine that does what a test tells it to."""

import asyncio
from collections.abc import AsyncGenerator, Iterator

import numpy as np

from workers.engine import Clip, Engine, EngineError, EngineRequest, Failure, Progress, Update

RATE = 8000


class ScriptedEngine:
    """Makes a tone a take. `faults` are raised first, one a request, and `broken` at every one."""

    device = "cpu"
    busy = 0
    real_time_factor: float | None = None

    def __init__(self) -> None:
        self.requests: list[EngineRequest] = []
        self.stopped: list[str] = []
        self.faults: list[Exception] = []
        self.broken: EngineError | None = None
        self.checks = 0
        self.open = asyncio.Event()
        self.open.set()
        self.clips_before_closing: int | None = None

    def close_after(self, clips: int) -> None:
        """Lets that many clips through and holds the next one back until `release`."""
        self.clips_before_closing = clips

    def release(self) -> None:
        self.clips_before_closing = None
        self.open.set()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Progress | Clip, None]:
        self.requests.append(request)
        if self.broken is not None:
            raise self.broken
        if self.faults:
            raise self.faults.pop(0)
        try:
            for number, take in enumerate(request.takes):
                yield Progress(request_id=request.id, fraction=number / len(request.takes), stage="decoding")
                if self.clips_before_closing == 0:
                    self.open.clear()
                    self.clips_before_closing = None
                elif self.clips_before_closing:
                    self.clips_before_closing -= 1
                await self.open.wait()
                if self.broken is not None:
                    raise self.broken
                yield Clip(
                    request_id=request.id, index=take.index, seed=take.seed, sample_rate=RATE, pcm=tone(take.seed)
                )
        finally:
            self.stopped.append(request.id)

    async def check(self) -> None:
        self.checks += 1
        if self.broken is not None:
            raise self.broken


def tone(seed: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    time = np.arange(RATE, dtype=np.float32) / RATE
    return (0.5 * np.sin(2 * np.pi * (100 + seed % 900) * time)).astype(np.float32)[None, :]


def out_of_memory() -> EngineError:
    return EngineError("The GPU is out of memory.", transient=True)


def updates(engine: Engine, request: EngineRequest) -> Iterator[Update]:
    engine.admit(request)
    clips = 0
    while clips < len(request.takes):
        for update in engine.advance():
            yield update
            clips += isinstance(update, Clip)
            if isinstance(update, Failure):
                return
