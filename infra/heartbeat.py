"""A file that says when this process last had its turn, for probes of processes that answer no HTTP."""

import asyncio
import logging
from pathlib import Path
from typing import Final

BEAT_SECONDS: Final = 5.0

logger: Final = logging.getLogger(__name__)


async def beat(file: Path) -> None:
    """Until cancelled. A file that cannot be written is told once, and ends no process."""
    told = False
    while True:
        try:
            await asyncio.to_thread(file.touch)
            told = False
        except (OSError, ValueError) as error:
            if not told:
                logger.warning("The heartbeat file %s cannot be written: %s.", file, error)
            told = True
        await asyncio.sleep(BEAT_SECONDS)
