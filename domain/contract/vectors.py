"""Conformance vectors: records in, aggregates out, as this project's own decode and evolve make them.

A reader that ends with the same states, dead letters and stops reads the log as everybody else does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from domain.aggregates import AGGREGATES
from domain.contract import Json
from domain.contract.transitions import PUBLISHED
from domain.envelope import decode
from domain.errors import UnknownVersionError
from domain.events import Undecodable
from domain.ports import Record


def vectors(topic: str) -> list[Json]:
    return [
        {"name": name, "records": [_written(record) for record in records], "expected": _expected(topic, records)}
        for name, records in PUBLISHED[topic].vectors.items()
    ]


def _written(record: Record) -> Json:
    """With the value as text or null; where it is no UTF-8, as `value_base64`."""
    try:
        value: Json = {"value": record.value if record.value is None else record.value.decode()}
    except UnicodeDecodeError:
        value = {"value_base64": record.value}
    return {"position": str(record.position), "key": record.key, "headers": record.headers, **value}


def _expected(topic: str, records: Sequence[Record]) -> Json:
    aggregate = AGGREGATES[topic]
    folded: dict[str, Any] = {}
    dead_letters: dict[str, None] = {}
    stopped_at = None
    for record in records:
        try:
            recorded = decode(record)
        except UnknownVersionError:
            stopped_at = str(record.position)
            break
        if isinstance(recorded.event, Undecodable):
            dead_letters[str(record.position)] = None
        folded[record.key] = aggregate.apply(folded.get(record.key), recorded)
    return {
        "aggregates": {key: published(topic, document) for key, document in folded.items() if document},
        "dead_letters": [*dead_letters],
        "stopped_at": stopped_at,
    }


def published(topic: str, document: Any) -> Json:
    """A folded aggregate as the vectors show it."""
    aggregate = PUBLISHED[topic]
    marks: Mapping[str, Any] = {}
    if aggregate.outcomes:
        outcomes = [{"id": outcome.event_id, "accepted": outcome.reason is None} for outcome in document.outcomes]
        marks = {"suspect": document.suspect, "outcomes": outcomes}
    return {"state": aggregate.state(document), "offset": document.position, **marks}
