"""What other processes have folded, seen through the read store's watermarks."""

import asyncio
from contextlib import suppress
from typing import Final

from domain.journal import until_done
from projections.folded import Folded

LOOK_SECONDS: Final = 0.005
IDLE_SECONDS: Final = 1.0


class Watermarks(Folded):
    async def run(self) -> None:
        """Looks at the store until all that was on the log at the start is folded, then while anyone waits, and else
        once in a while.
        """
        goal = await self._look()
        while True:
            stored = await until_done(self._store.watermarks, "The views")
            offsets = {partition: stored.get(partition, 0) for partition in goal}
            # Should the views be emptied, they are ready again only with all that they had shown.
            self._goal = {partition: max(end, offsets[partition]) for partition, end in self._goal.items()}
            await self._frontier.advance(offsets)
            if self.ready and not self.wanted.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.wanted.wait(), IDLE_SECONDS)
            else:
                await asyncio.sleep(LOOK_SECONDS)
