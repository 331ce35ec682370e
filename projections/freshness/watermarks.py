"""What other processes have folded, seen through the read store's watermarks."""

import asyncio
from typing import Final

from projections.freshness.folded import Folded

LOOK_SECONDS: Final = 0.005
BEHIND_SECONDS: Final = 0.1
IDLE_SECONDS: Final = 1.0


class Watermarks(Folded):
    async def run(self) -> None:
        """Looks at the store often while anyone waits, and else once in a while."""
        _, offsets = await self._look()
        while True:
            # Should the views be emptied, they are ready again only with all that they had shown.
            self._goal = {partition: max(end, offsets[partition]) for partition, end in self._goal.items()}
            self._advance(offsets)
            if self._frontier.wanted.is_set():
                await asyncio.sleep(LOOK_SECONDS)
            else:
                await self._frontier.rest(IDLE_SECONDS if self.ready else BEHIND_SECONDS)
            offsets = await self._stored()
