"""A training in a process of its own, which tells of itself line by line; the worker's event loop goes on meanwhile.

`python -m workers.training.process ORDER` carries out the order in the file ORDER.
"""

import asyncio
import os
import signal
import sys
from asyncio import StreamReader
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import msgspec
from msgspec import Struct

from workers import cores
from workers.garbage import uncollected

LONGEST_LINE: Final = 16_000_000
NICENESS: Final = 10
STOP_SECONDS: Final = 60.0
WORDS: Final = 2_000
# Memory that each step takes anew is kept, as the kernel's clearing of it is a sixth of a step; it all goes when the
# process ends.
ENVIRONMENT: Final = cores.BRIEF | {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
}


class Order(Struct, frozen=True, kw_only=True):
    """`data` is the dataset's folder, `output` where checkpoint and adapter are put."""

    method: str
    config: Mapping[str, Any]
    data: str
    output: str
    cache: str
    device: str | None = None
    checkpoint_seconds: float = 120.0
    base_model: str | None = None


class Progressed(Struct, frozen=True, kw_only=True, tag=True):
    stage: str
    step: int
    steps: int
    values: Mapping[str, float] = {}


class Kept(Struct, frozen=True, kw_only=True, tag=True):
    """The output's checkpoint is a new one."""

    step: int


class Ended(Struct, frozen=True, kw_only=True, tag=True):
    """training.json in the output says how, unless it was stopped."""

    status: str


class Refused(Struct, frozen=True, kw_only=True, tag=True):
    error: str
    transient: bool


Said: TypeAlias = Progressed | Kept | Ended | Refused


class Died(Exception):  # noqa: N818
    """The process ended without saying how; the message has its last words."""


async def train(order: Order, at: Path) -> AsyncGenerator[Said, None]:
    """What the process says, to its end. Raises Died. Closed early, it returns once the process has kept a checkpoint
    and ended, or was killed.
    """
    await asyncio.to_thread(at.write_bytes, msgspec.json.encode(order))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "workers.training.process",
        str(at),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LONGEST_LINE,
        cwd=Path(__file__).parents[2],
        env=ENVIRONMENT | os.environ,
        start_new_session=True,
    )
    out, err = cast("StreamReader", process.stdout), cast("StreamReader", process.stderr)
    words = asyncio.create_task(err.read())
    try:
        ended = False
        while line := await out.readline():
            said: Said = msgspec.json.decode(line, type=Said)
            ended = isinstance(said, Ended | Refused)
            yield said
        await process.wait()
        if not ended:
            told = (await words).decode(errors="replace").strip()[-WORDS:]
            raise Died(told or f"it ended with the code {process.returncode}")
    finally:
        await _end(process)
        words.cancel()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            # A pipe that nobody reads would hold it up.
            while process.stdout is not None and await process.stdout.read(65_536):
                pass
            await process.wait()
    except TimeoutError:
        # Raised, it would take the place of the cancellation that this is a part of.
        await _kill(process)
    except BaseException:
        await _kill(process)
        raise


async def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def main() -> None:
    """In the child. Gives way to generation, and stops with its parent."""
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped.append(number))
    parent = os.getppid()
    order = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Order)
    with suppress(OSError):
        os.nice(NICENESS)
    try:
        _say(_carried_out(order, lambda: bool(stopped) or os.getppid() != parent))
    except BrokenPipeError:
        sys.exit(1)


def _carried_out(order: Order, is_stopped: Any) -> Said:
    with uncollected():
        from workers.engine import EngineError  # noqa: PLC0415
        from workers.engines.checkpoints import resolve  # noqa: PLC0415
        from workers.training.config import config  # noqa: PLC0415
        from workers.training.errors import Stopped, TrainingError  # noqa: PLC0415
        from workers.training.examples import base_model, read  # noqa: PLC0415
        from workers.training.run import Point, Training  # noqa: PLC0415

    last = [0]

    def on_point(point: Point) -> None:
        last[0] = point.step
        _say(Progressed(stage=point.stage, step=point.step, steps=point.steps, values=point.figures or {}))

    try:
        chosen = config(order.method, order.config)
        data = Path(order.data)
        try:
            model = resolve(order.base_model or base_model(read(data)))
        except EngineError as error:
            if error.transient:
                raise TrainingError(str(error), transient=True) from error
            raise TrainingError(f"{error} Get the model here, then ask for the training again.") from error
        result = Training(
            chosen,
            model,
            data,
            Path(order.output),
            cache=Path(order.cache),
            device=order.device,
            checkpoint_seconds=order.checkpoint_seconds,
            # The dataset may have lost a record since, and the studio may be a newer one.
            begins_anew=True,
            on_point=on_point,
            on_checkpoint=lambda _: _say(Kept(step=last[0])),
            is_stopped=is_stopped,
        ).run()
    except Stopped:
        return Ended(status="stopped")
    except TrainingError as error:
        return Refused(error=str(error), transient=error.transient)
    return Ended(status=result.status)


def _say(said: Said) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
