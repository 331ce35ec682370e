"""The projections' host on one machine: a task that follows the log."""

from functools import partial

from domain.journal import until_done
from domain.ports import after
from projections.folded import Folded
from projections.project import check_views, project


class LocalHost(Folded):
    async def run(self) -> None:
        """Until cancelled. Raises ConflictError for views of another log, and at an event of a newer version."""
        goal = await self._look()
        stored = await until_done(self._store.watermarks, "The views' host")
        check_views(goal, stored)
        await self._frontier.advance({partition: stored.get(partition, 0) for partition in goal})
        async for records in self._log.follow(self._frontier.next):
            await until_done(partial(project, self._log, self._store, records), "The views' host")
            await self._frontier.advance(after(record.position for record in records))
