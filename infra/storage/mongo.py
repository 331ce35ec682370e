"""How MongoDB is spoken to: its address, its refusals in sentences, the alias of the live views, and their rows."""

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from msgspec import Struct
from pymongo import UpdateOne, errors

from domain.errors import RefusedError, TooLargeError, UnavailableError
from domain.ports import D, Erasure, TopicPartition, View
from infra.storage import tls

# To be raised when a view's `fields` or a fold changes: the views must then be rebuilt.
SCHEMA: Final = 2
REFUSED_LOGIN: Final = {13, 18}
TOO_LARGE: Final = {10334, 17419, 17420}
# Of a document whose `hidden` is neither true nor false nothing is left but where it was erased.
NOT_ERASED: Final[Mapping[str, Any]] = {"hidden": {"$ne": None}}


class Alias(Struct, frozen=True, kw_only=True):
    """Which collections are a set of views, and how far they are folded: one document, so that it changes as one.

    `versions` and `definitions` are by view, `watermarks` by `topic/partition`. `generation` changes with every switch,
    `allotted` is the newest given to a rebuild. While it is `held` no save may begin. `made` are the collections that
    were made for views and not dropped yet, on the live alias alone; all others in the database are strangers'.
    """

    generation: int
    versions: Mapping[str, int]
    definitions: Mapping[str, int]
    watermarks: Mapping[str, int]
    allotted: int
    held: bool = False
    made: Sequence[str] = ()

    @property
    def collections(self) -> list[str]:
        """The names of those that are used."""
        return [versioned(*each) for each in self.versions.items()]


class Seen:
    """The alias as last looked up, and when, by the monotonic clock."""

    alias: Alias | None = None
    at: float = 0.0


class AddressError(ValueError):
    """The URI is none that the driver takes, or names no cluster."""


def unusable(address: str, error: Exception) -> AddressError:
    # The driver takes what follows a slash in a password for the database, and quotes it.
    reason = re.sub(' ".*"', "", str(error), flags=re.DOTALL).rstrip(".?")
    return AddressError(f"The MongoDB address {address} cannot be used: {reason}.")


@contextmanager
def refusals(address: str) -> Iterator[None]:
    """Every refusal in a sentence, without the documents and the password that the driver's own text may hold."""
    try:
        yield
    except (errors.ConfigurationError, errors.InvalidURI) as error:
        raise unusable(address, error) from None
    except (errors.DocumentTooLarge, OverflowError) as error:
        raise _too_large(address, type(error).__name__) from None
    except errors.BulkWriteError as error:
        refused = [*error.details["writeErrors"], *error.details["writeConcernErrors"]]
        codes = sorted({each["code"] for each in refused})
        if TOO_LARGE & set(codes):
            raise _too_large(address, f"codes {codes}") from None
        raise UnavailableError(
            f"MongoDB at {address} refused {len(refused)} writes, codes {codes}. Repeating it is safe."
        ) from None
    except errors.OperationFailure as error:
        name = f"{(error.details or {}).get('codeName', 'an error')}, code {error.code}"
        if error.code in TOO_LARGE:
            raise _too_large(address, name) from None
        if error.code in REFUSED_LOGIN:
            raise RefusedError(
                f"MongoDB at {address} refuses this user and password, or denies them the database ({name}). "
                "Check both in TEXT2SONG_STORE, and the user's rights."
            ) from None
        raise UnavailableError(f"MongoDB at {address} refused ({name}). Try again.") from None
    except errors.InvalidOperation:
        raise UnavailableError(f"The read store at {address} is closed.") from None
    except errors.PyMongoError as error:
        if found := tls.distrusted(error, "TEXT2SONG_STORE_CA"):
            raise RefusedError(f"MongoDB at {address}: {found}.") from None
        raise UnavailableError(
            f"MongoDB at {address} does not answer ({type(error).__name__}). See that it runs; try again."
        ) from None


def _too_large(address: str, reason: str) -> TooLargeError:
    return TooLargeError(f"MongoDB at {address} takes no document over 16 MiB and no number over 64 bits ({reason}).")


def row(view: View[D], document: D) -> dict[str, Any]:
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


def erased_row(erasure: Erasure) -> dict[str, Any]:
    return {"_id": erasure.id, "position": erasure.position, "created_at": "", "hidden": None, "filters": {}}


def guarded(row: dict[str, Any]) -> UpdateOne:
    # A document that is not there yet has no position, and MongoDB sorts a missing field below any number.
    newer = {"$lt": ["$position", row["position"]]}
    return UpdateOne(
        {"_id": row["_id"]}, [{"$replaceWith": {"$cond": [newer, {"$literal": row}, "$$ROOT"]}}], upsert=True
    )


def definition(view: View[Any]) -> int:
    return zlib.crc32(msgspec.json.encode((SCHEMA, view.name, view.filters, msgspec.json.schema(view.document))))


def versioned(view: str, version: int) -> str:
    return f"{view}_v{version}"


def positions(watermarks: Mapping[str, int]) -> dict[TopicPartition, int]:
    split = ((key.split("/"), offset) for key, offset in watermarks.items())
    return {(topic, int(number)): offset for (topic, number), offset in split}


def address_of(uri: str) -> str:
    """The hosts alone, which may be shown to anyone."""
    found = re.match(r"mongodb(?:\+srv)?://(?:.*@)?([^/?]+)", uri, re.DOTALL)
    return found[1] if found else "that URI"
