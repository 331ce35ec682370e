"""The projections' host on one machine: a task that follows the log."""

from functools import partial
from typing import Final

from domain.journal import until_done
from projections.dead_letters import DeadLetters
from projections.freshness.folded import Folded
from projections.project import SMALL_BATCH, check_views, project

# Whoever waits for the views ends it. Shorter, and batches are so many that the log waits for the disk behind them.
REST_SECONDS: Final = 0.1


class LocalHost(Folded):
    async def run(self) -> None:
        """Until cancelled. Raises ConflictError for views of another log, and at an event of a newer version."""
        goal, stored = await self._look()
        check_views(goal, stored)
        self._advance(stored)
        letters = DeadLetters(self._log)
        async for batch in self._log.follow(self._frontier.next):
            await until_done(
                partial(project, self._log, self._store, batch.records, batch.reached, letters), "The views' host"
            )
            self._advance(batch.reached)
            if len(batch.records) < SMALL_BATCH:
                await self._frontier.rest(REST_SECONDS)
