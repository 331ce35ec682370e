"""The processes that fold the views: Faust's on a cluster, a task's on one machine, and rebuilds."""

import contextlib
import socket
from collections.abc import Callable, Sequence
from functools import partial

from domain.errors import ConflictError
from infra import cluster
from infra.bootstrap import log_and_store, open_log, opened
from infra.garbage import collect_rarely
from infra.settings import Settings, unusable
from projections.hosts import faust as faust_host
from projections.hosts import rebuild as rebuilding
from projections.hosts.faust import FaustHost
from projections.hosts.local import LocalHost
from projections.hosts.rebuild import Comparison, Progress


async def project(settings: Settings) -> None:
    """A host of the views, until cancelled: Faust's for a log on Kafka, which processes share."""
    collect_rarely()
    if settings.log != "sqlite":
        await faust_host.run(projection_host(settings))
        return
    async with log_and_store(settings) as (log, store):
        await LocalHost(log, store).run()


def projection_host(settings: Settings) -> FaustHost:
    """The views' host of a cluster, not yet connected to anything. Raises InvalidError for a log on SQLite."""
    if settings.log == "sqlite":
        raise unusable(
            settings, "log", "Faust folds a log on Kafka. Set kafka://host:port, or fold with `text2song project`."
        )
    access = cluster.kafka(settings)
    return FaustHost(
        access.servers,
        partial(log_and_store, settings),
        instance=settings.instance or socket.gethostname(),
        prefix=settings.kafka_prefix,
        credentials=access.faust_credentials(),
    )


async def rebuild(
    settings: Settings, topics: Sequence[str], progress: Callable[[Progress], object]
) -> list[Comparison]:
    """Folds the views of the topics anew while the old ones serve. Raises ConflictError for a store on SQLite."""
    if settings.store == "sqlite":
        raise ConflictError(
            "Views on SQLite are not replaced while they serve: stop the studio, delete "
            f"{settings.folder / 'views.db'}, and the next start folds them anew."
        )
    async with contextlib.AsyncExitStack() as stack:
        log = await opened(stack, open_log(settings))
        store = await opened(stack, cluster.mongo_store(settings, outdated=True))
        collect_rarely()
        return await rebuilding.rebuild(log, store, topics, progress)
