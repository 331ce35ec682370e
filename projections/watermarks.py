"""What other processes have folded, seen through the read store's watermarks."""

import asyncio
from typing import Final

from domain.journal import until_done
from projections.folded import Folded

LOOK_SECONDS: Final = 0.005


class Watermarks(Folded):
    async def run(self) -> None:
        """Looks at the store until all that was on the log at the start is folded, and then while anyone waits."""
        goal = await self._look()
        while True:
            stored = await until_done(self._store.watermarks, "The views")
            await self._frontier.advance({partition: stored.get(partition, 0) for partition in goal})
            if self.ready:
                await self.wanted.wait()
            await asyncio.sleep(LOOK_SECONDS)
