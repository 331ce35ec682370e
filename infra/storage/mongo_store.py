"""The read store in MongoDB: collections named with a version, and an alias that says which versions are live."""

# ruff: noqa: SLF001 -- a twin that reads other collections is of the same class

import asyncio
import copy
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, Final, Self, TypeVar

import msgspec
import pymongo
from motor.motor_asyncio import AsyncIOMotorClient
from msgspec.structs import replace
from pymongo import IndexModel, InsertOne, ReturnDocument, errors

from domain.errors import ConflictError, Text2SongError, UnavailableError
from domain.ports import D, Document, Erasure, Query, TopicPartition, View
from infra.storage.mongo import (
    NOT_ERASED,
    Alias,
    Seen,
    address_of,
    definition,
    erased_row,
    guarded,
    positions,
    refusals,
    row,
    unusable,
    versioned,
)

T = TypeVar("T")

SELECTION_SECONDS: Final = 5.0
TIMEOUT_SECONDS: Final = 10.0
# A batch is larger than anything a route asks for, and nobody waits in front of it.
WRITE_SECONDS: Final = 60.0
SCAN: Final = 500
LIVE: Final = "live"
REBUILT: Final = "rebuilt"
# How long a look at the alias is believed; for how long after a switch the old collections can still be read.
LOOK_SECONDS: Final = 1.0
GRACE_LOOKS: Final = 5
HOLD_SECONDS: Final = 5
HELD_POLL_SECONDS: Final = 0.02
UPSERT_TRIES: Final = 10
NEWEST_FIRST: Final = [("created_at", -1), ("_id", -1)]
DUPLICATE_KEY: Final = 11000


class MongoStore:
    """Each save is a row of majority writes, the watermarks last, on condition that the collections are still live.

    It is no transaction: one that a killed process leaves open keeps its documents locked for over a minute, and the
    process that takes over its partitions waits as long. The guard of each document makes saving again harmless.
    """

    def __init__(self, uri: str, database: str, views: Sequence[View[Any]], look_seconds: float) -> None:
        self._address = address_of(uri)
        self._views = {view.name: view for view in views}
        self._decode = {view.name: msgspec.json.Decoder(view.document).decode for view in views}
        self._definitions = {view.name: definition(view) for view in views if view.is_folded}
        self._outdated = False
        self._look_seconds = look_seconds
        self._name = LIVE
        self._seen = Seen()
        self._pins = False
        self._pinned: Alias | None = None
        self._found: set[tuple[str, str]] | None = None
        self._collections: dict[str, Any] = {}
        try:
            self._client: Any = AsyncIOMotorClient(
                uri,
                serverSelectionTimeoutMS=int(1000 * SELECTION_SECONDS),
                connectTimeoutMS=int(1000 * SELECTION_SECONDS),
                timeoutMS=int(1000 * TIMEOUT_SECONDS),
                readConcernLevel="majority",
                readPreference="primary",
                w="majority",
            )
            self._database = self._client[database]
            self._aliases = self._database["aliases"]
        # Nothing is connected yet: whatever is wrong, a file that is not there too, stands in the URI.
        except (errors.PyMongoError, ValueError, OSError) as error:
            raise unusable(self._address, error) from None

    @classmethod
    async def open(
        cls,
        uri: str,
        database: str,
        views: Sequence[View[Any]],
        *,
        outdated: bool = False,
        look_seconds: float = LOOK_SECONDS,
    ) -> Self:
        """Creates missing collections and indexes. `outdated` takes views of other definitions too, to rebuild them.

        Raises AddressError for a URI that is none, and UnavailableError when the server cannot be reached, refuses the
        user, or holds views of other definitions.
        """
        self = cls(uri, database, views, look_seconds)
        self._outdated = outdated
        try:
            await self._prepare()
        except BaseException:
            await self.close()
            raise
        return self

    async def get(self, view: View[D], ids: Sequence[str]) -> dict[str, D]:
        wanted = list(dict.fromkeys(ids))
        rows = await self._list(view, {"_id": {"$in": wanted}, **NOT_ERASED}, batch_size=len(wanted)) if wanted else []
        if self._found is not None:
            self._found.update((view.name, each["_id"]) for each in rows)
        return {each["_id"]: self._document(view, each) for each in rows}

    async def find(self, view: View[D], query: Query) -> list[D]:
        matching, options = self._listing(view, query)
        return [self._document(view, each) for each in await self._list(view, matching, **options)]

    async def count(self, view: View[D], query: Query) -> int:
        matching = self._matching(view, query)
        return int(await self._read(view, lambda collection: collection.count_documents(matching)))

    async def save(
        self,
        documents: Sequence[tuple[View[Any], Document]],
        watermarks: Mapping[TopicPartition, int],
        erased: Sequence[Erasure] = (),
    ) -> None:
        """Raises UnavailableError also when the views read have been switched since: fold the batch again."""
        with refusals(self._address):
            while (alias := await self._find_alias()).held:  # noqa: ASYNC110 -- the rebuild is another process
                await asyncio.sleep(HELD_POLL_SECONDS)
            if alias.generation != (self._pinned or alias).generation:
                raise self._switched()
            rows = [(view.name, row(self._view(view.name), document)) for view, document in documents]
            rows += [(erasure.view.name, erased_row(erasure)) for erasure in erased]
            for name, group in groupby(rows, lambda pair: pair[0]):
                view = self._view(name)
                await self._write(view, self._collection(alias, view), [each for _, each in group])
            rising = {f"watermarks.{topic}/{number}": offset for (topic, number), offset in watermarks.items()}
            result = await self._aliases.update_one(
                {"_id": self._name, "generation": alias.generation}, {"$max": rising}
            )
            if not result.matched_count:
                raise self._switched()

    async def watermarks(self) -> dict[TopicPartition, int]:
        """Looks up the alias too, so that a caller who sees a position here reads where it was folded."""
        with refusals(self._address):
            return positions((await self._find_alias()).watermarks)

    async def scan(self, view: View[D]) -> AsyncIterator[D]:
        matching: dict[str, Any] = {**NOT_ERASED}
        while rows := await self._list(view, matching, sort=[("_id", 1)], limit=SCAN, batch_size=SCAN):
            for each in rows:
                yield self._document(view, each)
            matching = {"_id": {"$gt": rows[-1]["_id"]}, **NOT_ERASED}

    def pinned(self) -> Self:
        twin = copy.copy(self)
        twin._pins, twin._found = True, set()
        return twin

    async def begin_rebuild(self, views: Sequence[View[Any]]) -> Self:
        with refusals(self._address):
            live = await self._find_alias()
            while await self._taken(made := await self._allot(views)):
                pass
            rebuilt = copy.copy(self)
            rebuilt._name, rebuilt._seen, rebuilt._pins, rebuilt._pinned = REBUILT, Seen(), True, made
            try:
                earlier = {"_id": REBUILT, "generation": {"$lt": made.generation}}
                await self._aliases.replace_one(earlier, msgspec.to_builtins(made), upsert=True)
            except errors.DuplicateKeyError:
                raise rebuilt._switched() from None
            # Noted once the alias uses them, or else an earlier rebuild would drop them, and before they are made.
            noted = {"made": {"$each": [*live.collections, *made.collections]}}
            await self._aliases.update_one({"_id": LIVE}, {"$addToSet": noted})
            await self.drop_unused()
            await rebuilt._create_collections(made)
        return rebuilt

    async def hold(self) -> None:
        with refusals(self._address):
            until = {"$add": ["$$NOW", 1000 * HOLD_SECONDS]}
            await self._aliases.update_one({"_id": LIVE}, [{"$set": {"held_until": until}}])

    async def switch(self, rebuilt: Self, watermarks: Mapping[TopicPartition, int]) -> bool:
        with refusals(self._address):
            live, made = await self._find_alias(), await rebuilt._find_alias()
            if live.generation == made.generation:
                return True
            if live.allotted != made.generation:
                raise rebuilt._switched()
            if positions(live.watermarks) != watermarks:
                return False
            changes: dict[str, Any] = {"generation": made.generation}
            for name in ("versions", "definitions", "watermarks"):
                changes |= {f"{name}.{key}": value for key, value in getattr(made, name).items()}
            unchanged = {"generation": live.generation, "allotted": live.allotted, "watermarks": live.watermarks}
            result = await self._aliases.update_one(
                {"_id": LIVE, **unchanged}, {"$set": changes, "$unset": {"held_until": ""}}
            )
            return bool(result.matched_count)

    async def drop_unused(self) -> None:
        with refusals(self._address):
            # Looked up first: what a rebuild makes from here on is not among them.
            live = await self._aliases.find_one({"_id": LIVE}, {"made": 1})
            used = set[str]()
            async for alias in self._aliases.find():
                used |= {versioned(*each) for each in alias["versions"].items()}
            if unused := [name for name in (live or {}).get("made", ()) if name not in used]:
                # Another process may still read where the views were before the last switch.
                await asyncio.sleep((GRACE_LOOKS + 1) * self._look_seconds)
            for name in unused:
                await self._database.drop_collection(name)
                await self._aliases.update_one({"_id": LIVE}, {"$pull": {"made": name}})

    async def close(self) -> None:
        # Motor's client says goodbye to the server before it returns, PyMongo's own asynchronous one when awaited.
        if inspect.isawaitable(closing := await asyncio.to_thread(self._client.close)):
            await closing

    async def _prepare(self) -> None:
        with refusals(self._address):
            if await self._aliases.find_one({"_id": LIVE}) is None:
                await self._make_alias()
            alias = await self._find_alias()
            if not self._differing(alias):
                await self._create_collections(alias)

    async def _make_alias(self) -> None:
        generation, views = 1, [self._views[name] for name in self._definitions]
        while await self._taken(fresh := self._new_alias(generation, views)):
            generation += 1
        with suppress(errors.DuplicateKeyError):
            await self._aliases.insert_one({"_id": LIVE, **msgspec.to_builtins(replace(fresh, made=fresh.collections))})

    async def _allot(self, views: Sequence[View[Any]]) -> Alias:
        # From here on no rebuild that began earlier can switch, so what is not live may go.
        live = await self._aliases.find_one_and_update(
            {"_id": LIVE}, {"$inc": {"allotted": 1}}, return_document=ReturnDocument.AFTER
        )
        return self._new_alias(live["allotted"], views)

    async def _taken(self, alias: Alias) -> bool:
        """Whether collections that it would make are there already; then they are not this project's."""
        named = await self._database.list_collection_names()
        return not set(named).isdisjoint(alias.collections)

    async def _create_collections(self, alias: Alias) -> None:
        for name in alias.versions.keys() & self._views.keys():
            view = self._views[name]
            # `hidden` leads each index, where partial ones would leave it out: a count then never fetches a document.
            prefixes: list[list[str]] = [["hidden"], *(["hidden", f"filters.{each}"] for each in view.filters)]
            await self._collection(alias, view).create_indexes(
                [IndexModel([*((field, 1) for field in prefix), *NEWEST_FIRST]) for prefix in prefixes]
            )

    async def _write(self, view: View[Any], collection: Any, rows: Sequence[dict[str, Any]]) -> None:
        newest: dict[str, dict[str, Any]] = {}
        for each in rows:
            if each["_id"] not in newest or each["position"] > newest[each["_id"]]["position"]:
                newest[each["_id"]] = each
        rows = list(newest.values())
        # A plain insert costs the server a third of a guarded write, and most documents are new.
        found = self._found or set()
        writes = [guarded(each) if (view.name, each["_id"]) in found else InsertOne(each) for each in rows]
        for _ in range(UPSERT_TRIES):
            try:
                with pymongo.timeout(WRITE_SECONDS):
                    await collection.bulk_write(writes, ordered=False)
            except errors.BulkWriteError as error:
                refused = error.details["writeErrors"]
                # What was written without the majority may be lost again.
                if error.details["writeConcernErrors"] or any(each["code"] != DUPLICATE_KEY for each in refused):
                    raise
                # These are there already, or have just lost against another first write.
                rows = [rows[each["index"]] for each in refused]
                writes = [guarded(each) for each in rows]
                continue
            return
        raise UnavailableError(
            f"MongoDB at {self._address} refused {len(rows)} documents of {view.name} {UPSERT_TRIES} times, as others "
            "with a key of theirs are there. Repeating it is safe."
        )

    async def _list(self, view: View[D], matching: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
        return await self._read(
            view, lambda collection: collection.find(matching, {"body": 1}, **options).to_list(None)
        )

    async def _read(self, view: View[D], call: Callable[[Any], Awaitable[T]]) -> T:
        self._view(view.name)
        with refusals(self._address):
            while True:
                began = time.monotonic()
                alias = await self._current_alias()
                found = await call(self._collection(alias, view))
                if self._pins or time.monotonic() - began < (GRACE_LOOKS - 1) * self._look_seconds:
                    return found
                # So long after the look, the collection may have been dropped under the read.
                if (await self._find_alias()).generation == alias.generation:
                    return found

    async def _current_alias(self) -> Alias:
        if self._pinned is not None:
            return self._pinned
        alias = self._seen.alias
        if alias is None or time.monotonic() - self._seen.at > self._look_seconds:
            alias = await self._find_alias()
        if self._pins:
            alias = self._pinned = self._pinned or alias
        return alias

    async def _find_alias(self) -> Alias:
        at = time.monotonic()
        fields = dict.fromkeys(Alias.__struct_fields__, 1)
        found = await self._aliases.find_one({"_id": self._name}, {**fields, "held": {"$gt": ["$held_until", "$$NOW"]}})
        if found is None:
            raise UnavailableError(f"The database at {self._address} was emptied while in use. Start again.")
        alias = msgspec.convert(found, Alias)
        if self._name == REBUILT and self._pinned and alias.generation != self._pinned.generation:
            raise self._switched()
        if self._name == LIVE and not self._outdated and (differing := self._differing(alias)):
            raise UnavailableError(
                f"The views at {self._address} have other definitions than this version's ({', '.join(differing)}). "
                "Run `text2song rebuild`, or the version that folded them."
            )
        # An answer may be overtaken by a later one, and must not bring the old collections back.
        if self._seen.alias is None or alias.generation >= self._seen.alias.generation:
            self._seen.alias, self._seen.at = alias, at
        return alias

    def _new_alias(self, generation: int, views: Sequence[View[Any]]) -> Alias:
        return Alias(
            generation=generation,
            allotted=generation,
            versions={view.name: generation for view in views},
            definitions={view.name: self._definitions[view.name] for view in views},
            watermarks={},
        )

    def _differing(self, alias: Alias) -> list[str]:
        return [name for name, value in self._definitions.items() if alias.definitions.get(name) != value]

    def _switched(self) -> Text2SongError:
        if self._name == REBUILT:
            return ConflictError("Another rebuild has begun since, and this one gave way to it.")
        return UnavailableError(f"The views at {self._address} were switched to rebuilt ones meanwhile.")

    def _view(self, name: str) -> View[Any]:
        try:
            return self._views[name]
        except KeyError:
            raise ValueError(f"The read store was opened without a view {name!r}.") from None

    def _collection(self, alias: Alias, view: View[Any]) -> Any:
        # Version 0 is of views that are not folded. Of others it was never made: one that is new in this version is
        # empty until it is rebuilt.
        name = versioned(view.name, alias.versions.get(view.name, 0))
        if name not in self._collections:
            self._collections[name] = self._database[name]
        return self._collections[name]

    def _document(self, view: View[D], found: Mapping[str, Any]) -> D:
        document: D = self._decode[view.name](found["body"])
        return document

    def _matching(self, view: View[Any], query: Query) -> dict[str, Any]:
        if unknown := (query.equal.keys() | query.among.keys()) - set(view.filters):
            raise ValueError(f"{view.name} cannot be filtered by {sorted(unknown)}, only by {sorted(view.filters)}.")
        matching: dict[str, Any] = {"hidden": query.hidden}
        matching |= {f"filters.{name}": {"$in": list(values)} for name, values in query.among.items()}
        matching |= {f"filters.{name}": {"$eq": value} for name, value in query.equal.items()}
        ids = {"$in": query.ids, "$nin": query.without or None}
        for name, terms in (("_id", ids), ("created_at", {"$gte": query.start, "$lte": query.end})):
            if given := {operator: term for operator, term in terms.items() if term is not None}:
                matching[name] = given
        return matching

    def _listing(self, view: View[Any], query: Query) -> tuple[dict[str, Any], dict[str, Any]]:
        matching = self._matching(view, query)
        if query.after is not None:
            created_at, id_ = query.after
            matching["$or"] = [{"created_at": {"$lt": created_at}}, {"created_at": created_at, "_id": {"$lt": id_}}]
            # The bound follows from the other terms, and lets the index start there.
            bounds = matching.setdefault("created_at", {})
            bounds["$lte"] = min(created_at, bounds.get("$lte", created_at))
        options = {"sort": NEWEST_FIRST, "skip": query.offset, "limit": query.limit, "batch_size": query.limit}
        return matching, options
