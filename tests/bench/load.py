"""Mixed jobs that come at random, as they do to a studio: rows in use, waiting, and how soon a cancel is heard.

The worker, with `musicgen-nano` in its child process, gets the same jobs twice: as many at once as it has rows, and one
at a time. The variables: JOBS; LOAD, how much of the engine's full pace the jobs ask for; CANCELS, how many requests
are cancelled.
"""

import asyncio
import os
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import torch
from msgspec import Struct

from domain.events.jobs import Sampling
from domain.jobs import Job
from domain.models import NANO
from tests.local.parts import Parts, open_parts
from workers.engine import EngineRequest, Take
from workers.engine_child import Cancel, Stopped, work
from workers.engine_process import EngineProcess
from workers.engines.checkpoints import resolve
from workers.engines.loading import load
from workers.engines.musicgen.engine import MusicgenEngine
from workers.generation import worker

JOBS: Final = int(os.environ.get("JOBS", "60"))
LOAD: Final = float(os.environ.get("LOAD", "0.7"))
CANCELS: Final = int(os.environ.get("CANCELS", "200"))
PROMPTS: Final = (
    "slow blues with brushed drums",
    "fast techno, 130 bpm",
    "a piano",
    "jazz trio, 100 bpm, bass and drums",
)
DURATIONS: Final = (2.0, 4.0, 4.0, 6.0, 10.0)


class Arrival(Struct, frozen=True):
    """`at` is in seconds from the start."""

    at: float
    fields: dict[str, Any]

    @property
    def audio(self) -> float:
        return float(self.fields["duration"] * len(self.fields["seeds"]))


def arrivals(pace: float) -> list[Arrival]:
    """A Poisson stream that asks for `pace` seconds of audio a second."""
    dice, at, found = Random(0), 0.0, list[Arrival]()
    for number in range(JOBS):
        fields = {
            "prompt": dice.choice(PROMPTS),
            "duration": dice.choice(DURATIONS),
            "seeds": [number] * dice.choice((1, 1, 1, 2, 4)),
            "sampling": Sampling(guidance_scale=dice.choice((1.0, 3.0, 3.0)), temperature=dice.choice((0.9, 1.0))),
            "priority": dice.choice((0, 0, 5)),
            "user_id": dice.choice(("ann", "bob", "cem")),
            "model_id": NANO.id,
        }
        found.append(Arrival(0.0, fields))
    mean = statistics.mean(each.audio for each in found) / pace
    for number, each in enumerate(found):
        found[number] = Arrival(at, each.fields)
        at += dice.expovariate(1 / mean)
    return found


async def full_pace(engine: EngineProcess) -> float:
    """Seconds of audio a second with every row in use."""
    takes = [Take(index, index) for index in range(engine.capacity)]
    async for _ in engine.generate(EngineRequest(id="warm", prompt=PROMPTS[0], duration=1, takes=takes)):
        pass
    began = time.monotonic()
    async for _ in engine.generate(EngineRequest(id="pace", prompt=PROMPTS[0], duration=5, takes=takes)):
        pass
    return 5 * engine.capacity / (time.monotonic() - began)


async def serve(parts: Parts, engine: EngineProcess, stream: Sequence[Arrival], rows: int) -> None:
    working = asyncio.create_task(
        worker(parts.journal, parts.store, parts.objects, engine, NANO.id, capacity=rows, lease=30, model=NANO).run()
    )
    used: list[int] = []
    began = time.monotonic()

    async def look() -> None:
        while True:
            used.append(engine.busy)
            await asyncio.sleep(0.05)

    looking = asyncio.create_task(look())
    names = []
    for number, each in enumerate(stream):
        await asyncio.sleep(max(0.0, began + each.at - time.monotonic()))
        names.append(f"rows-{rows}-{number}")
        await parts.submit(names[-1], **each.fields)
    jobs = [await parts.when(name, "completed", seconds=3600) for name in names]
    took = time.monotonic() - began
    for task in (looking, working):
        task.cancel()
    await asyncio.gather(looking, working, return_exceptions=True)
    waited, lasted = zip(*((seconds(job, job.started_at), seconds(job, job.completed_at)) for job in jobs), strict=True)
    audio, named = sum(each.audio for each in stream), "one job at a time" if rows == 1 else f"{rows} rows"
    print(
        f"{named:>17}: {audio / took:6.2f} audio seconds a second, "
        f"{np.mean(used) / engine.capacity:4.0%} of the rows in use; "
        f"until the start p50 {np.percentile(waited, 50):6.2f} s, p99 {np.percentile(waited, 99):6.2f} s; "
        f"until the end {np.percentile(lasted, 50):6.2f} s, {np.percentile(lasted, 99):6.2f} s",
        flush=True,
    )


def seconds(job: Job, moment: str | None) -> float:
    """From its submission."""
    start, end = (np.datetime64(str(time).rstrip("Z")) for time in (job.created_at, moment))
    return float((end - start) / np.timedelta64(1, "s"))


def cancels() -> list[int]:
    """The decoding steps between a cancel's order and the end of its request, in the child's own loop."""
    engine = load(resolve(NANO.id), "cpu")
    assert isinstance(engine, MusicgenEngine)
    torch.set_num_threads(1)
    dice, done, found = Random(1), [0], list[int]()
    run, orders, stopped = engine._decoder.run, queue.SimpleQueue[Any](), queue.SimpleQueue[int]()

    def counted(steps: int) -> None:
        for _ in range(steps):
            run(1)
            done[0] += 1

    class Pipe:
        is_closed = False

        def send(self, message: object) -> None:
            if self.is_closed:
                raise BrokenPipeError
            if isinstance(message, Stopped):
                stopped.put(done[0])

    def serve_until_closed(pipe: Any) -> None:
        with suppress(BrokenPipeError):
            work(engine, orders, pipe)

    engine._decoder.run = counted  # type: ignore[method-assign]
    pipe = Pipe()
    serving = threading.Thread(target=serve_until_closed, args=(pipe,))
    serving.start()
    for number in range(CANCELS + 8):
        takes = [Take(index, index) for index in range(2)]
        orders.put(EngineRequest(id=f"{number}", prompt=PROMPTS[number % 4], duration=10, takes=takes))
        if number >= 8:
            time.sleep(dice.uniform(0.01, 0.1))
            asked = done[0]
            orders.put(Cancel(f"{number - 8}"))
            found.append(stopped.get() - asked)
    pipe.is_closed = True
    serving.join()
    return found


async def measure() -> None:
    engine = EngineProcess(load, resolve(NANO.id), "cpu")
    await engine.start()
    try:
        pace = await full_pace(engine)
        stream = arrivals(LOAD * pace)
        print(f"{JOBS} jobs at {LOAD:g} of the full pace, which is {pace:.2f} audio seconds a second")
        with tempfile.TemporaryDirectory() as folder:
            async with open_parts(Path(folder)) as parts:
                for rows in (engine.capacity, 1):
                    await serve(parts, engine, stream, rows)
    finally:
        await engine.stop()


def main() -> None:
    asyncio.run(measure())
    found = cancels()
    middle, late = np.percentile(found, [50, 99])
    print(f"{len(found)} cancels: p50 {middle:g} steps, p99 {late:g}, most {max(found)}")
