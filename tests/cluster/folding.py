"""A projection as a process of its own, to be killed: `python -m tests.cluster.folding EVENTS URI DATABASE`."""

import asyncio
import sys

from infra.storage.mongo_store import MongoStore
from infra.storage.sqlite_log import SqliteLog
from projections.hosts.local import LocalHost
from projections.project import VIEWS


async def main(events: str, uri: str, database: str) -> None:
    await LocalHost(await SqliteLog.open(events), await MongoStore.open(uri, database, VIEWS)).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
