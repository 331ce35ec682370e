"""Records as events and back: an event's envelope is CloudEvents 1.0 in Kafka's binary mode."""

import re
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, Union

import msgspec
from msgspec import Struct

from domain.aggregates import EVENTS, TOPICS
from domain.correlation import ID_HEADER, TRACE_HEADER, Correlation, of_record
from domain.errors import Fault, InvalidError, UnknownVersionError
from domain.events import MAX_ERROR, MAX_ID, Erased, Event, Recorded, Undecodable, UnknownEvent, cloud_type, timestamp
from domain.ports import Message, Record

SOURCE: Final = "/text2song"
CANONICAL: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z")
MAX_DEPTH: Final = 64
STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
BRACKETS: Final = re.compile(rb"[\[\]{}]")
KEPT: Final = 2_048
KEPT_BYTES: Final = 8_192


def encode(event: Event | Erased, *, event_id: str, time: str, correlation: Correlation | None = None) -> Message:
    """Raises InvalidError for an event out of the bounds that its readers hold it to."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event_id,
        "ce_source": SOURCE,
        "ce_type": cloud_type(type(event)) if isinstance(event, Event) else "",
        "ce_time": time,
        "ce_subject": event.key,
        ID_HEADER: correlation.id if correlation else event.key,
        "content-type": "application/json",
    }
    if correlation and correlation.traceparent:
        headers[TRACE_HEADER] = correlation.traceparent
    if isinstance(event, Event):
        value = _encoder.encode(event)
        try:
            msgspec.json.decode(value, type=type(event))
        except msgspec.ValidationError as error:
            raise InvalidError([Fault("", f"{type(event).__name__} of {event.key!r}: {error}.")]) from error
        return Message(event.topic, event.key, value, headers, event.partition_key)
    del headers["ce_type"], headers["content-type"]
    return Message(event.topic, event.key, None, headers, event.partition_key)


def decode(record: Record) -> Recorded:
    """Never fails on bytes; raises UnknownVersionError where reading on would be wrong.

    The followers of a process read the same records one after the other, so small ones are kept for the next of them.
    """
    place = hash(record.position) % len(_decoded)
    kept = _decoded[place]
    if kept is not None and kept[0] == record:
        return kept[1]
    recorded = _decode(record)
    if _size(record) <= KEPT_BYTES:
        _decoded[place] = record, recorded
    return recorded


def _size(record: Record) -> int:
    return len(record.key) + len(record.value or b"") + sum(map(len, record.headers.values()))


def _decode(record: Record) -> Recorded:
    time = ""

    def recorded(event: Event | Erased | UnknownEvent | Undecodable) -> Recorded:
        if isinstance(event, Undecodable):
            # What it quotes may be a megabyte, and stays on the aggregate.
            event = Undecodable(event.error[:MAX_ERROR])
        event_id = record.headers.get("ce_id", "")
        if not 0 < len(event_id) <= MAX_ID:
            event_id = str(record.position)
        correlation = of_record(record.headers, record.key)
        return Recorded(record.position, record.key, event_id, time, event, correlation)

    if record.value is None:
        topic = TOPICS.get(record.position.topic)
        if topic is None or not topic.compacted:
            return recorded(Undecodable("a tombstone on a topic that erases nothing"))
        # Who erases need not be this project, and erases whatever else the tombstone lacks.
        with suppress(ValueError, OverflowError):
            time = _time(record)
        return recorded(Erased(topic=topic.name, key=record.key))
    if _nests_too_deeply(record.value):
        return recorded(Undecodable(f"nested over {MAX_DEPTH} levels deep"))
    try:
        time = _time(record)
        tag = _tag_decoder.decode(record.value).type
        if (known := EVENTS.get(tag)) is None:
            return recorded(UnknownEvent(tag))
        if (cloud := record.headers.get("ce_type", "")) != cloud_type(known):
            if cloud.startswith(f"text2song.{known.name}.v"):
                raise UnknownVersionError(
                    f"{record.position} holds a {tag} of type {cloud!r}; this reader knows {cloud_type(known)!r}. "
                    "Upgrade it before it reads on."
                )
            return recorded(Undecodable(f"a {tag} whose ce_type header is {cloud!r}"))
        event = _decoder.decode(record.value)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        return recorded(Undecodable(str(error)))
    if event.key != record.key:
        return recorded(Undecodable(f"the event is of {event.key!r}, the record's key is {record.key!r}"))
    if record.position.topic != event.topic:
        return recorded(Undecodable(f"a {tag} belongs on {event.topic!r}, not on {record.position.topic!r}"))
    return recorded(event)


def _time(record: Record) -> str:
    """Raises ValueError or OverflowError for a header that is no time with an offset."""
    written = record.headers.get("ce_time", "")
    moment = datetime.fromisoformat(written)
    return written if CANONICAL.fullmatch(written) else timestamp(moment)


def _nests_too_deeply(value: bytes) -> bool:
    """Checked first: a parser's own limit depends on who calls it, and all readers must agree."""
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for bracket in BRACKETS.findall(STRINGS.sub(b"", value)):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_DEPTH:
            return True
    return False


class _Tagged(Struct):
    type: str


_encoder: Final = msgspec.json.Encoder()
_tag_decoder: Final = msgspec.json.Decoder(_Tagged)
_decoder: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(Union[tuple(EVENTS.values())])  # noqa: UP007
_decoded: Final[list[tuple[Record, Recorded] | None]] = [None] * KEPT
