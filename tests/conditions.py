"""Waiting for something to become true, with an end to the patience."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(condition: Callable[[], Awaitable[T]], seconds: float = 60.0) -> T:
    """The condition's first true value; what takes long is looked at less and less often."""
    end, pause = time.monotonic() + seconds, 0.01
    while not (value := await condition()):
        assert time.monotonic() < end, f"still {value!r} after {seconds:g} s"
        await asyncio.sleep(pause)
        pause = min(pause * 1.1, 0.3)
    return value


def eventually_sync(condition: Callable[[], T], seconds: float = 180.0) -> T:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"still {value!r} after {seconds:g} s"
        time.sleep(0.05)
    return value
