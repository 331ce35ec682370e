"""The read store in MongoDB: collections named with a version, and an alias that says which versions are live."""

# ruff: noqa: SLF001 -- a twin that reads other collections is of the same class

import asyncio
import copy
import inspect
import re
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from typing import Any, Final, Self, TypeVar

import msgspec
import pymongo
from motor.motor_asyncio import AsyncIOMotorClient
from msgspec import Struct
from pymongo import IndexModel, InsertOne, ReturnDocument, UpdateOne, errors

from domain.errors import ConflictError, Text2SongError, TooLargeError, UnavailableError
from domain.ports import D, Document, Query, TopicPartition, View

T = TypeVar("T")

# To be raised when a view's `fields` or a fold changes: the views must then be rebuilt.
SCHEMA: Final = 1
SELECTION_SECONDS: Final = 5.0
TIMEOUT_SECONDS: Final = 10.0
# A batch is larger than anything a route asks for, and nobody waits in front of it.
WRITE_SECONDS: Final = 60.0
SCAN: Final = 500
LIVE: Final = "live"
REBUILT: Final = "rebuilt"
VERSIONED: Final = re.compile(r"\w+_v[0-9]+")
# How long a look at the alias is believed; for how long after a switch the old collections can still be read.
LOOK_SECONDS: Final = 1.0
GRACE_LOOKS: Final = 5
HOLD_SECONDS: Final = 5
HELD_POLL_SECONDS: Final = 0.02
UPSERT_TRIES: Final = 10
NEWEST_FIRST: Final = [("created_at", -1), ("_id", -1)]
DUPLICATE_KEY: Final = 11000
REFUSED_LOGIN: Final = {13, 18}
TOO_LARGE: Final = {10334, 17419, 17420}


class Alias(Struct, frozen=True, kw_only=True):
    """Which collections are a set of views, and how far they are folded: one document, so that it changes as one.

    `versions` and `definitions` are by view, `watermarks` by `topic/partition`. `generation` changes with every switch,
    `allotted` is the newest given to a rebuild. While it is `held` no save may begin.
    """

    generation: int
    versions: Mapping[str, int]
    definitions: Mapping[str, int]
    watermarks: Mapping[str, int]
    allotted: int
    held: bool = False


class AddressError(ValueError):
    """The URI is none that the driver takes, or names no cluster."""


class MongoStore:
    """Each save is a row of majority writes, the watermarks last, on condition that the collections are still live.

    It is no transaction: one that a killed process leaves open keeps its documents locked for over a minute, and the
    process that takes over its partitions waits as long. The guard of each document makes saving again harmless.
    """

    def __init__(self, uri: str, database: str, views: Sequence[View[Any]], look_seconds: float) -> None:
        self._address = _address(uri)
        self._views = {view.name: view for view in views}
        self._decode = {view.name: msgspec.json.Decoder(view.document).decode for view in views}
        self._definitions = {view.name: _definition(view) for view in views}
        self._outdated = False
        self._look_seconds = look_seconds
        self._name = LIVE
        self._seen = _Seen()
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
            raise self._unusable(error) from None

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
        """Makes what the database lacks. `outdated` takes views of other definitions too, to rebuild them.

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
        rows = await self._list(view, {"_id": {"$in": wanted}}, batch_size=len(wanted)) if wanted else []
        if self._found is not None:
            self._found.update((view.name, row["_id"]) for row in rows)
        return {row["_id"]: self._document(view, row) for row in rows}

    async def find(self, view: View[D], query: Query) -> list[D]:
        matching, options = self._listing(view, query)
        return [self._document(view, row) for row in await self._list(view, matching, **options)]

    async def count(self, view: View[D], query: Query) -> int:
        matching = self._matching(view, query)
        return int(await self._read(view, lambda collection: collection.count_documents(matching)))

    async def save(
        self, documents: Sequence[tuple[View[Any], Document]], watermarks: Mapping[TopicPartition, int]
    ) -> None:
        """Raises UnavailableError also when the views read have been switched since: fold the batch again."""
        with self._refusals():
            while (alias := await self._find_alias()).held:  # noqa: ASYNC110 -- the rebuild is another process
                await asyncio.sleep(HELD_POLL_SECONDS)
            if alias.generation != (self._pinned or alias).generation:
                raise self._switched()
            for name, group in groupby(documents, lambda pair: pair[0].name):
                view = self._view(name)
                await self._write(view, self._collection(alias, view), [document for _, document in group])
            rising = {f"watermarks.{topic}/{number}": offset for (topic, number), offset in watermarks.items()}
            result = await self._aliases.update_one(
                {"_id": self._name, "generation": alias.generation}, {"$max": rising}
            )
            if not result.matched_count:
                raise self._switched()

    async def watermarks(self) -> dict[TopicPartition, int]:
        """Whoever has seen a position here reads from then on where it was folded: the alias is looked up as well."""
        with self._refusals():
            return _positions((await self._find_alias()).watermarks)

    async def scan(self, view: View[D]) -> AsyncIterator[D]:
        matching: dict[str, Any] = {}
        while rows := await self._list(view, matching, sort=[("_id", 1)], limit=SCAN, batch_size=SCAN):
            for row in rows:
                yield self._document(view, row)
            matching = {"_id": {"$gt": rows[-1]["_id"]}}

    def pinned(self) -> Self:
        twin = copy.copy(self)
        twin._pins, twin._found = True, set()
        return twin

    async def begin_rebuild(self, views: Sequence[View[Any]]) -> Self:
        with self._refusals():
            # From here on no rebuild that began earlier can switch, so what is not live may go.
            live = await self._aliases.find_one_and_update(
                {"_id": LIVE}, {"$inc": {"allotted": 1}}, return_document=ReturnDocument.AFTER
            )
            made = self._new_alias(live["allotted"], views)
            rebuilt = copy.copy(self)
            rebuilt._name, rebuilt._seen, rebuilt._pins, rebuilt._pinned = REBUILT, _Seen(), True, made
            try:
                earlier = {"_id": REBUILT, "generation": {"$lt": made.generation}}
                await self._aliases.replace_one(earlier, msgspec.to_builtins(made), upsert=True)
            except errors.DuplicateKeyError:
                raise rebuilt._switched() from None
            await self.drop_unused()
            await rebuilt._create_collections(made)
        return rebuilt

    async def hold(self) -> None:
        with self._refusals():
            until = {"$add": ["$$NOW", 1000 * HOLD_SECONDS]}
            await self._aliases.update_one({"_id": LIVE}, [{"$set": {"held_until": until}}])

    async def switch(self, rebuilt: Self, watermarks: Mapping[TopicPartition, int]) -> bool:
        with self._refusals():
            live, made = await self._find_alias(), await rebuilt._find_alias()
            if live.generation == made.generation:
                return True
            if live.allotted != made.generation:
                raise rebuilt._switched()
            if _positions(live.watermarks) != watermarks:
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
        with self._refusals():
            # Named first: what a rebuild makes from here on is not among them.
            named = await self._database.list_collection_names()
            used = set[str]()
            async for alias in self._aliases.find():
                used |= {_versioned(*each) for each in alias["versions"].items()}
            if unused := [name for name in named if VERSIONED.fullmatch(name) and name not in used]:
                # Another process may still read where the views were before the last switch.
                await asyncio.sleep((GRACE_LOOKS + 1) * self._look_seconds)
            for name in unused:
                await self._database.drop_collection(name)

    async def close(self) -> None:
        # Motor's client says goodbye to the server before it returns, PyMongo's own asynchronous one when awaited.
        if inspect.isawaitable(closing := await asyncio.to_thread(self._client.close)):
            await closing

    async def _prepare(self) -> None:
        with self._refusals():
            fresh = self._new_alias(1, list(self._views.values()))
            for _ in range(UPSERT_TRIES):
                with suppress(errors.DuplicateKeyError):
                    await self._aliases.update_one(
                        {"_id": LIVE}, {"$setOnInsert": msgspec.to_builtins(fresh)}, upsert=True
                    )
                    break
            alias = await self._find_alias()
            if not self._differing(alias):
                await self._create_collections(alias)

    async def _create_collections(self, alias: Alias) -> None:
        for name in alias.versions.keys() & self._views.keys():
            view = self._views[name]
            # `hidden` leads each index, where partial ones would leave it out: a count then never fetches a document.
            prefixes: list[list[str]] = [["hidden"], *(["hidden", f"filters.{each}"] for each in view.filters)]
            await self._collection(alias, view).create_indexes(
                [IndexModel([*((field, 1) for field in prefix), *NEWEST_FIRST]) for prefix in prefixes]
            )

    async def _write(self, view: View[D], collection: Any, documents: Sequence[D]) -> None:
        newest: dict[str, D] = {}
        for document in documents:
            if document.id not in newest or document.position > newest[document.id].position:
                newest[document.id] = document
        rows = [_row(view, document) for document in newest.values()]
        # A plain insert costs the server a third of a guarded write, and most documents are new.
        found = self._found or set()
        writes = [_guarded(row) if (view.name, row["_id"]) in found else InsertOne(row) for row in rows]
        for _ in range(UPSERT_TRIES):
            try:
                with pymongo.timeout(WRITE_SECONDS):
                    await collection.bulk_write(writes, ordered=False)
            except errors.BulkWriteError as error:
                refused = error.details["writeErrors"]
                if any(each["code"] != DUPLICATE_KEY for each in refused):
                    raise
                # These are there already, or have just lost against another first write.
                rows = [rows[each["index"]] for each in refused]
                writes = [_guarded(row) for row in rows]
                continue
            return

    async def _list(self, view: View[D], matching: Mapping[str, Any], **options: Any) -> list[dict[str, Any]]:
        return await self._read(
            view, lambda collection: collection.find(matching, {"body": 1}, **options).to_list(None)
        )

    async def _read(self, view: View[D], call: Callable[[Any], Awaitable[T]]) -> T:
        self._view(view.name)
        with self._refusals():
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

    def _too_large(self, reason: str) -> TooLargeError:
        return TooLargeError(
            f"MongoDB at {self._address} takes no document over 16 MiB and no number over 64 bits ({reason})."
        )

    def _view(self, name: str) -> View[Any]:
        try:
            return self._views[name]
        except KeyError:
            raise ValueError(f"The read store was opened without a view {name!r}.") from None

    def _collection(self, alias: Alias, view: View[Any]) -> Any:
        # Version 0 was never made: a view that is new in this version is empty until it is rebuilt.
        name = _versioned(view.name, alias.versions.get(view.name, 0))
        if name not in self._collections:
            self._collections[name] = self._database[name]
        return self._collections[name]

    def _document(self, view: View[D], row: Mapping[str, Any]) -> D:
        document: D = self._decode[view.name](row["body"])
        return document

    def _matching(self, view: View[Any], query: Query) -> dict[str, Any]:
        if unknown := query.equal.keys() - set(view.filters):
            raise ValueError(f"{view.name} cannot be filtered by {sorted(unknown)}, only by {sorted(view.filters)}.")
        matching: dict[str, Any] = {"hidden": query.hidden}
        matching |= {f"filters.{name}": {"$eq": value} for name, value in query.equal.items()}
        bounds = {"$gte": query.start, "$lte": query.end}
        if given := {name: bound for name, bound in bounds.items() if bound is not None}:
            matching["created_at"] = given
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

    def _unusable(self, error: Exception) -> AddressError:
        # The driver takes what follows a slash in a password for the database, and quotes it.
        reason = re.sub(' ".*"', "", str(error), flags=re.DOTALL).rstrip(".?")
        return AddressError(f"The MongoDB address {self._address} cannot be used: {reason}.")

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Every refusal in a sentence, without the documents and the password that the driver's own text may hold."""
        try:
            yield
        except (errors.ConfigurationError, errors.InvalidURI) as error:
            raise self._unusable(error) from None
        except (errors.DocumentTooLarge, OverflowError) as error:
            raise self._too_large(type(error).__name__) from None
        except errors.BulkWriteError as error:
            refused = [*error.details["writeErrors"], *error.details["writeConcernErrors"]]
            codes = sorted({each["code"] for each in refused})
            if TOO_LARGE & set(codes):
                raise self._too_large(f"codes {codes}") from None
            raise UnavailableError(
                f"MongoDB at {self._address} refused {len(refused)} writes, codes {codes}. Repeating it is safe."
            ) from None
        except errors.OperationFailure as error:
            name = f"{(error.details or {}).get('codeName', 'an error')}, code {error.code}"
            if error.code in TOO_LARGE:
                raise self._too_large(name) from None
            if error.code in REFUSED_LOGIN:
                raise UnavailableError(
                    f"MongoDB at {self._address} refuses this user and password, or denies them the database ({name}). "
                    "Check both, and the user's rights."
                ) from None
            raise UnavailableError(f"MongoDB at {self._address} refused ({name}). Try again.") from None
        except errors.InvalidOperation:
            raise UnavailableError(f"The read store at {self._address} is closed.") from None
        except errors.PyMongoError as error:
            raise UnavailableError(
                f"MongoDB at {self._address} does not answer ({type(error).__name__}). See that it runs; try again."
            ) from None


class _Seen:
    """The alias as last looked up, and when, by the monotonic clock."""

    alias: Alias | None = None
    at: float = 0.0


def _row(view: View[D], document: D) -> dict[str, Any]:
    """A body is JSON text, as on the log: BSON would refuse some of its numbers and names."""
    fields = view.fields(document)
    return {
        "_id": document.id,
        "position": document.position,
        "created_at": document.created_at,
        "hidden": bool(fields.get("hidden", False)),
        "filters": {name: fields[name] for name in view.filters},
        "body": msgspec.json.encode(document).decode(),
    }


def _guarded(row: dict[str, Any]) -> UpdateOne:
    # A document that is not there yet has no position, and nothing is less than any number.
    newer = {"$lt": ["$position", row["position"]]}
    return UpdateOne(
        {"_id": row["_id"]}, [{"$replaceWith": {"$cond": [newer, {"$literal": row}, "$$ROOT"]}}], upsert=True
    )


def _definition(view: View[Any]) -> int:
    return zlib.crc32(msgspec.json.encode((SCHEMA, view.name, view.filters, msgspec.json.schema(view.document))))


def _versioned(view: str, version: int) -> str:
    return f"{view}_v{version}"


def _positions(watermarks: Mapping[str, int]) -> dict[TopicPartition, int]:
    split = ((key.split("/"), offset) for key, offset in watermarks.items())
    return {(topic, int(number)): offset for (topic, number), offset in split}


def _address(uri: str) -> str:
    """The hosts alone, which may be shown to anyone."""
    found = re.match(r"mongodb(?:\+srv)?://(?:.*@)?([^/?]+)", uri, re.DOTALL)
    return found[1] if found else "that URI"
