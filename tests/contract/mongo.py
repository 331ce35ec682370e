"""MongoDB as the read store's contract meets it: a database of its own for each test, over connections to be cut."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pymongo

from domain.ports import ReadStore, View
from infra.storage.mongo_store import MongoStore
from tests.proxy import Proxy
from tests.servers import servers


class MongoStoreHarness:
    def __init__(self, _folder: Path) -> None:
        self.uri = servers().addresses.mongo
        self.database = f"test-{uuid4().hex}"
        self.proxy: Proxy | None = None
        self._opened: list[MongoStore] = []

    async def open(self, views: Sequence[View[Any]], **options: Any) -> MongoStore:
        self.proxy = self.proxy or await Proxy.to(address(self.uri))
        uri = f"mongodb://{self.proxy.address}/?directConnection=true"
        store = await MongoStore.open(uri, self.database, views, **options)
        self._opened.append(store)
        return store

    async def break_connection(self, store: ReadStore) -> None:
        assert isinstance(store, MongoStore)
        assert self.proxy is not None
        self.proxy.cut()

    async def close(self) -> None:
        for store in self._opened:
            await store.close()
        if self.proxy is not None:
            await self.proxy.close()
        with pymongo.MongoClient[dict[str, Any]](self.uri) as client:
            client.drop_database(self.database)


def address(uri: str) -> str:
    found = re.match("mongodb://([^/]+)", uri)
    assert found
    return found[1]
