"""An AsyncAPI 3.0 document, JSON Schemas, transition tables and conformance vectors, as files.

Everything is generated from the events, the topics and the folds; the prose says what code in another language needs.
"""

import re
from functools import cache
from typing import Any, Final

import msgspec
from msgspec.structs import fields

from domain.aggregates import AGGREGATES, EVENTS, TOPICS
from domain.contract import Json
from domain.contract.transitions import table
from domain.contract.vectors import vectors
from domain.correlation import MAX_ID
from domain.envelope import CANONICAL, MAX_DEPTH, SOURCE
from domain.events import Event, cloud_type
from domain.ports import Topic

VERSION: Final = "1.0.0"
PREFIX: Final = "text2song."
DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
BINDING: Final = "0.5.0"

READING: Final = f"""\
Every fact of the studio is an event on these topics. What a job is follows from its events alone: fold them in the
order of their offsets, and you have what everybody else has. Events are proposals; a rule takes the first valid one,
and what no rule accepts is refused, by every reader alike.

## Decode

In this order, for each record. Keys, header names and header values are UTF-8; escape other bytes as `\\xNN`. Of
headers with one name the last counts.

1. A null value is a tombstone where the channel is compacted: it leaves nothing of its key's state, unless the state's
   offset is as high as its own, and ends here. On any other topic it is undecodable.
2. So is a value whose brackets and braces, outside of texts, nest more than {MAX_DEPTH} deep,
3. or whose `ce_time` is not an ISO 8601 time with an offset. Normalise it to UTC with six digits of a second and a `Z`.
4. The value must be JSON in UTF-8, an object with a text `type`. `NaN`, infinities and lone surrogates are not JSON.
5. A `type` that this document does not have is unknown: it changes nothing but the position.
6. The `ce_type` header must be the message's. If it differs in the version alone, **stop**: reading on would be wrong.
   If it differs otherwise, the record is undecodable.
7. The value must be valid under the message's payload schema. Fields unknown to it are ignored, missing ones have the
   default given there. An integer is written without fraction and exponent: `1.0` is none.
8. The record's key must be the field that the message names as `x-key`, and the topic the message's own.

An undecodable record is skipped: never stop there. Of the topics that are kept forever, the studio copies it to
`{PREFIX}deadletter`.

## Fold

`x-transitions` of a channel is the table of its aggregate; one aggregate is all records of one key.

1. Without a state yet, an event that no rule accepts leaves nothing behind.
2. With one, a record at or below the state's offset was read before and changes nothing; a higher one becomes it.
3. An unknown event ends here. So does one whose id is among the state's last `outcomes` verdicts: it was sent twice.
   The id is `ce_id`, or where that is missing `topic/partition/offset`, with the topic's name without `{PREFIX}`.
4. Work out the conditions that the table describes. A rule accepts when each of its `when` has that value; where
   several do, they agree. Then each field of `set` becomes `{{"value": v}}` that value, `{{"event": f}}` the event's
   field, `{{"header": "ce_time"}}` the normalised time, `{{"add": n}}` the old value and n, and `{{"put": f, "at": g}}`
   gets the entry f under the key g, both fields of the event; `{{"merge": f}}` gets the entries of the event's list f
   that it lacks, and is sorted. Other fields stay; at first they are null.
5. Remember the verdict, accepted or not, if the table keeps any. An undecodable record is a refused one that also marks
   the state as suspect.

## Append

Only the studio has to, but any producer may propose. Partition as Kafka's Java client does, by murmur2 of the key:
librdkafka does so only with `partitioner=murmur2_random`. Give a retry the same `ce_id`."""

HEADERS: Final[Json] = {
    "ce_specversion": {"const": "1.0"},
    "ce_id": {"type": "string", "description": "The same for an event that was sent twice."},
    "ce_source": {"const": SOURCE},
    "ce_type": {"type": "string", "description": "Ends in the event's version."},
    "ce_time": {"type": "string", "format": "date-time", "pattern": f"^{CANONICAL.pattern}$"},
    "ce_subject": {"type": "string", "description": "The record's key."},
    "ce_correlationid": {
        "type": "string",
        "minLength": 1,
        "maxLength": MAX_ID,
        "description": "The same in all that one request sets off: its X-Request-ID, or its trace's id; else the key.",
    },
    "content-type": {"const": "application/json"},
}
OPTIONAL_HEADERS: Final[Json] = {
    "ce_traceparent": {
        "type": "string",
        "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        "description": "The event's place in its request's trace, as in W3C Trace Context.",
    },
}

DEAD_LETTER: Final[Json] = {
    "name": "DeadLetter",
    "title": "A record that no reader can decode",
    "contentType": "application/octet-stream",
    "headers": {
        "type": "object",
        "description": "The original record's own headers, and these.",
        "required": ["deadletter_key", "deadletter_error"],
        "properties": {
            "deadletter_key": {"type": "string", "description": "The original record's key."},
            "deadletter_error": {"type": "string", "description": "Why it cannot be decoded, for people."},
        },
    },
    "payload": {"description": "The original bytes, or none where they were too large to keep twice."},
    "bindings": {
        "kafka": {
            "key": {"type": "string", "description": "The original position, `topic/partition/offset`."},
            "bindingVersion": BINDING,
        }
    },
}


def files() -> dict[str, bytes]:
    """Every file of the published contract by its path, the same bytes for the same events, topics and folds."""
    documents: dict[str, Any] = {"asyncapi.json": asyncapi()}
    documents |= {f"schemas/{cloud_type(event)}.json": schema(event) for event in EVENTS.values()}
    documents |= {f"transitions/{topic}.json": asyncapi()["channels"][topic]["x-transitions"] for topic in AGGREGATES}
    documents |= {f"vectors/{topic}.json": vectors(topic) for topic in AGGREGATES}
    return {path: msgspec.json.format(msgspec.json.encode(it), indent=2) + b"\n" for path, it in documents.items()}


def schema(event: type[Event]) -> Json:
    """The event's JSON Schema, draft 2020-12, which needs no other file."""
    _, components = msgspec.json.schema_components([event], ref_template="#/$defs/{name}")
    own = _described(components).pop(event.__name__)
    return {"$schema": DRAFT, **own, **({"$defs": components} if components else {})}


@cache
def asyncapi() -> Json:
    """What `GET /asyncapi.json` answers."""
    _, components = msgspec.json.schema_components(EVENTS.values(), ref_template="#/components/schemas/{name}")
    cloud_event = {"type": "object", "required": [*HEADERS], "properties": HEADERS | OPTIONAL_HEADERS}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Text2Song Studio",
            "version": VERSION,
            "description": READING,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in TOPICS.values()},
        "operations": {
            f"append_{name}": {"action": "send", "channel": {"$ref": f"#/channels/{name}"}} for name in TOPICS
        },
        "components": {
            "messages": {
                **{name: _message(event) for name, event in EVENTS.items()},
                "DeadLetter": DEAD_LETTER,
            },
            "schemas": {"CloudEvent": cloud_event, **_described(components)},
        },
    }


def _channel(topic: Topic) -> Json:
    names = [name for name, event in EVENTS.items() if event.topic == topic.name] or ["DeadLetter"]
    milliseconds = -1 if topic.retention_seconds is None else round(topic.retention_seconds * 1000)
    return {
        "address": PREFIX + topic.name,
        "description": _kept(topic),
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {
            "kafka": {
                "topic": PREFIX + topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": {"cleanup.policy": ["compact"]}
                if topic.compacted
                else {"cleanup.policy": ["delete"], "retention.ms": milliseconds, "retention.bytes": -1},
                "bindingVersion": BINDING,
            }
        },
        **({"x-transitions": table(topic.name)} if topic.name in AGGREGATES else {}),
    }


def _kept(topic: Topic) -> str:
    if topic.compacted:
        return (
            "Compacted: a tombstone erases all records of its key, and a later record may erase an earlier one. "
            "Records whose key is the byte FF only move the topic on; pass over them."
        )
    if topic.retention_seconds is None:
        return "Kept forever."
    return f"Kept for {topic.retention_seconds / 3600:g} h: no state follows from these records."


def _message(event: type[Event]) -> Json:
    # With every field holding its own name, the key tells which field it is.
    key = event(**{field.name: field.name for field in fields(event)}).key
    cloud = cloud_type(event)
    typed = {"properties": {"ce_type": {"const": cloud}}}
    return {
        "name": event.__name__,
        "title": cloud,
        "headers": {"allOf": [{"$ref": "#/components/schemas/CloudEvent"}, typed]},
        "payload": {"$ref": f"#/components/schemas/{event.__name__}"},
        "correlationId": {"location": "$message.header#/ce_correlationid"},
        "x-key": key,
        "bindings": {
            "kafka": {"key": {"type": "string", "description": f"The event's `{key}`."}, "bindingVersion": BINDING}
        },
    }


def _described(components: dict[str, Json]) -> dict[str, Json]:
    """With the lines of each description, which is a docstring, at the margin."""
    for component in components.values():
        if text := component.get("description"):
            component["description"] = re.sub(r"\n +", "\n", text)
    return components
