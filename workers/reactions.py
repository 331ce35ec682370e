"""What follows from events by itself: reactions, each of which follows the log from where it left off."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from msgspec import Struct

from domain.errors import ConflictError, UnknownVersionError
from domain.events import Recorded
from domain.journal import Journal, until_done
from domain.ports import Position, ReadStore, TopicPartition, View

# The views have a moment to fold a batch unhurried: whoever waits for them makes them fold smaller batches.
MOMENT_SECONDS: Final = 0.05
PATIENCE_SECONDS: Final = 30.0

logger: Final = logging.getLogger(__name__)


class Reaction(Protocol):
    """Its progress is kept under its `name`; `topics` are slices', which have views."""

    @property
    def name(self) -> str: ...

    @property
    def topics(self) -> tuple[str, ...]: ...

    async def react(self, batch: Sequence[Recorded]) -> None:
        """Reacting twice changes nothing: a batch may come again, in other company, and to several processes at once.

        Records of a partition come in its order, and the views show at least all that has come. UnavailableError and
        UncertainError have the batch come again; for any other error, each aggregate comes once more by itself, and
        those that fail again are passed over.
        """


class Progress(Struct, frozen=True, kw_only=True):
    """Up to which offset of a partition a reaction has reacted; `id` is `reaction/topic/partition`."""

    id: str
    position: int
    created_at: str = ""


PROGRESS: Final = View("reactions", Progress, is_folded=False)


class Views(Protocol):
    """How far the views are folded."""

    @property
    def offsets(self) -> Mapping[TopicPartition, int]: ...

    async def wait(self, positions: Iterable[Position], seconds: float) -> bool: ...


class Reactions:
    """Runs each reaction by itself, so that one that waits holds up no other."""

    def __init__(self, journal: Journal, store: ReadStore, views: Views, reactions: Sequence[Reaction]) -> None:
        self._journal = journal
        self._store = store
        self._views = views
        self._reactions = reactions

    async def run(self) -> None:
        """Until cancelled. Raises UnknownVersionError at an event of a newer version, and ConflictError for progress
        of another log.
        """
        async with asyncio.TaskGroup() as tasks:
            for reaction in self._reactions:
                tasks.create_task(self._follow(reaction))

    async def _follow(self, reaction: Reaction) -> None:
        who = f"The reaction {reaction.name!r}"
        at = await until_done(partial(self._start, reaction), who)
        async for batch in self._journal.follow(dict(at)):
            at |= batch.reached
            await self._shown(at, who)
            if batch.records:
                await _react(reaction, batch.records, who)
            progress = [
                (PROGRESS, Progress(id=_id(reaction, partition), position=offset))
                for partition, offset in batch.reached.items()
            ]
            await until_done(partial(self._store.save, progress, {}), who)

    async def _start(self, reaction: Reaction) -> dict[TopicPartition, int]:
        topics = self._journal.log.topics
        partitions = {
            _id(reaction, (topic, number)): (topic, number)
            for topic in reaction.topics
            for number in range(topics[topic].partitions)
        }
        stored = await self._store.get(PROGRESS, list(partitions))
        start = {at: stored[id_].position if id_ in stored else 0 for id_, at in partitions.items()}
        # Asked last: another process may be reacting, and what it has done must not seem to be ahead of the log.
        ends = {
            (topic, at): end for topic in reaction.topics for at, end in (await self._journal.log.ends(topic)).items()
        }
        for (topic, number), offset in start.items():
            if offset > ends[topic, number]:
                raise ConflictError(
                    f"The reaction {reaction.name!r} has read more of {topic} than the log holds: it was replaced or "
                    "cut. Put the right log back, or delete the views (views.db in the data folder, or the database "
                    "in MongoDB), among which its progress is kept."
                )
        return start

    async def _shown(self, at: Mapping[TopicPartition, int], who: str) -> None:
        """Until the views have folded all that has come: not the last batch alone, as they may be folded anew."""
        if self._are_shown(at):
            return
        await asyncio.sleep(MOMENT_SECONDS)
        while not await self._views.wait((Position(*each, end - 1) for each, end in at.items()), PATIENCE_SECONDS):
            logger.warning("%s waits for the views, which have not folded yet what it is to react to.", who)

    def _are_shown(self, at: Mapping[TopicPartition, int]) -> bool:
        offsets = self._views.offsets
        return all(offsets.get(partition, 0) >= end for partition, end in at.items())


async def _react(reaction: Reaction, batch: Sequence[Recorded], who: str) -> None:
    try:
        await until_done(partial(reaction.react, batch), who)
    except UnknownVersionError:
        raise
    except Exception:
        logger.warning("%s failed on a batch and tries each aggregate by itself.", who, exc_info=True)
    else:
        return
    for (topic, key), records in _by_aggregate(batch).items():
        try:
            await until_done(partial(reaction.react, records), who)
        except UnknownVersionError:
            raise
        except Exception:
            logger.exception("%s failed on %s of %s and goes on without it.", who, key, topic)


def _by_aggregate(batch: Sequence[Recorded]) -> dict[tuple[str, str], list[Recorded]]:
    found: dict[tuple[str, str], list[Recorded]] = {}
    for recorded in batch:
        found.setdefault((recorded.position.topic, recorded.key), []).append(recorded)
    return found


def _id(reaction: Reaction, partition: TopicPartition) -> str:
    topic, number = partition
    return f"{reaction.name}/{topic}/{number}"
