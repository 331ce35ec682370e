"""Uploads that are not left half way."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


async def finished(call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """A cancel waits until the upload has finished, or the clean-up would miss it, and a file be closed under it."""
    writing = asyncio.create_task(call())
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.wait({writing})
        writing.exception()
        raise
