"""A rebuild as a process of its own, to be killed: `python -m tests.cluster.rebuilding EVENTS URI DATABASE`."""

import asyncio
import sys

from infra.storage.mongo_store import MongoStore
from infra.storage.sqlite_log import SqliteLog
from projections.hosts.rebuild import rebuild
from projections.project import VIEWS


async def main(events: str, uri: str, database: str) -> None:
    log, store = await SqliteLog.open(events), await MongoStore.open(uri, database, VIEWS)
    await rebuild(log, store, ["jobs"], lambda progress: print(progress.folded, flush=True))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
