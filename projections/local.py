"""The projections' host on one machine: a task that follows the log."""

from functools import partial

from domain.errors import ConflictError
from domain.journal import until_done
from domain.ports import after
from projections.folded import Folded
from projections.project import project


class LocalHost(Folded):
    async def run(self) -> None:
        """Until cancelled. Raises ConflictError for views of another log, and at an event of a newer version."""
        goal = await self._look()
        stored = await until_done(self._store.watermarks, "The views' host")
        if ahead := [key for key, end in goal.items() if stored.get(key, 0) > end]:
            raise ConflictError(
                f"The views have folded more of {ahead[0][0]} than the log holds: it was replaced or cut. "
                "Put the right log back, or delete the views (views.db in the data folder) to fold this one."
            )
        await self._frontier.advance({partition: stored.get(partition, 0) for partition in goal})
        async for records in self._log.follow(self._frontier.next):
            await until_done(partial(project, self._log, self._store, records), "The views' host")
            await self._frontier.advance(after(record.position for record in records))
