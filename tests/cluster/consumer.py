"""A downstream consumer as somebody else would write it: librdkafka, JSON Schema, and the published contract alone.

    python consumer.py CONTRACT BROKER     reads the topics to their ends and prints every aggregate's final state
    python consumer.py CONTRACT --vectors  runs the conformance vectors

CONTRACT is the folder that `text2song contract export` wrote. The exit status is 0 when all went well, 1 when a vector
fails or the broker does not answer, and 3 at an event of a newer version, after which nobody may read on.
"""

import argparse
import json
import math
import sys
from base64 import b64decode
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import NAMESPACE_URL, uuid5

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from jsonschema import Draft202012Validator
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

Json = dict[str, Any]
MAX_DEPTH = 64
PATIENCE_SECONDS = 30.0
FORMS = ("own", "unpaired")
STRICT = extend(
    Draft202012Validator,
    # JSON Schema takes 1.0 for an integer; the contract does not.
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int),
)


class Record(NamedTuple):
    """`position` is topic/partition/offset, with the topic's name without its prefix."""

    position: str
    key: str
    value: bytes | None
    headers: dict[str, str]


class NewerVersionError(Exception):
    pass


class UndecodableError(Exception):
    pass


class Contract:
    def __init__(self, folder: Path) -> None:
        self.document: Json = json.loads((folder / "asyncapi.json").read_bytes())
        self.channels: Json = self.document["channels"]
        self.messages: Json = self.document["components"]["messages"]
        self._registry = Registry().with_resource("asyncapi", DRAFT202012.create_resource(self.document))
        self._validators: dict[str, Draft202012Validator] = {}

    def validator(self, path: str) -> Draft202012Validator:
        if path not in self._validators:
            self._validators[path] = STRICT({"$ref": f"asyncapi#{path}"}, registry=self._registry)
        return self._validators[path]

    def header_faults(self, record: Record) -> list[str]:
        """What the headers of a record of a known type lack: readers take it, its producer should be told."""
        titles = {message["title"]: name for name, message in self.messages.items()}
        if (name := titles.get(record.headers.get("ce_type", ""))) is None:
            return []
        return [
            error.message
            for error in self.validator(f"/components/messages/{name}/headers").iter_errors(record.headers)
        ]

    def decode(self, record: Record) -> tuple[Json, str]:
        """The event, its fields completed by their defaults, and its time. An unknown event has no other field."""
        event, time = _parse(record)
        name, topic = event["type"], record.position.partition("/")[0]
        if name not in self.messages or "x-key" not in (message := self.messages[name]):
            return {"type": None}, time
        cloud = record.headers.get("ce_type", "")
        if cloud != message["title"]:
            if cloud.startswith(message["title"].rpartition(".v")[0] + ".v"):
                raise NewerVersionError(
                    f"{record.position} holds a {name} of type {cloud!r}; known is {message['title']!r}"
                )
            raise UndecodableError(f"a {name} whose ce_type is {cloud!r}")
        if error := next(self.validator(f"/components/schemas/{name}").iter_errors(event), None):
            raise UndecodableError(error.message)
        if event[message["x-key"]] != record.key or name not in self.channels[topic]["messages"]:
            raise UndecodableError(f"a {name} that does not belong under {record.key!r} on {topic!r}")
        fields = self.document["components"]["schemas"][name]["properties"]
        return {field: schema["default"] for field, schema in fields.items() if "default" in schema} | event, time


def _parse(record: Record) -> tuple[Json, str]:
    if record.value is None:
        raise UndecodableError("a tombstone on a topic that is not compacted")
    try:
        moment = datetime.fromisoformat(record.headers.get("ce_time", ""))
        if moment.tzinfo is None:
            raise UndecodableError(f"{record.headers['ce_time']!r} has no offset")
        time = moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        text = record.value.decode()
        event = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        json.dumps(event, ensure_ascii=False).encode()
    except (ValueError, OverflowError, RecursionError) as error:
        raise UndecodableError(str(error)) from None
    if _depth(text) > MAX_DEPTH:
        raise UndecodableError(f"nested over {MAX_DEPTH} deep")
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise UndecodableError("no object with a type")
    return event, time


def _refuse(constant: str) -> None:
    raise UndecodableError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise UndecodableError(f"{text} is out of range")
    return number


def _depth(text: str) -> int:
    depth = deepest = 0
    inside = escaped = False
    for sign in text:
        if inside:
            inside, escaped = escaped or sign != '"', sign == "\\" and not escaped
        elif sign == '"':
            inside = True
        else:
            depth += (sign in "[{") - (sign in "]}")
            deepest = max(deepest, depth)
    return deepest


class Fold:
    """The aggregates of one topic, by key, as its transition table makes them."""

    def __init__(self, contract: Contract, topic: str) -> None:
        self._contract = contract
        channel = contract.channels[topic]
        self._table = channel["x-transitions"]
        self._erases = "compact" in channel["bindings"]["kafka"]["topicConfiguration"]["cleanup.policy"]
        self.aggregates: dict[str, Json] = {}
        self.dead_letters: dict[str, None] = {}

    def add(self, record: Record) -> None:
        """Raises NewerVersionError, after which nothing more may be added."""
        event, time = None, ""
        offset = int(record.position.rpartition("/")[2])
        aggregate = self.aggregates.get(record.key)
        if record.value is None and self._erases:
            if aggregate is not None and offset > aggregate["offset"]:
                del self.aggregates[record.key]
            return
        try:
            event, time = self._contract.decode(record)
        except UndecodableError:
            self.dead_letters[record.position] = None
        rule = self._rule(aggregate["state"] if aggregate else {}, event) if event else None
        if aggregate is None:
            if rule is None:
                return
            aggregate = {"state": dict.fromkeys(self._table["state"]), "offset": offset}
            aggregate |= {"suspect": False, "outcomes": []} if self._table["outcomes"] else {}
            self.aggregates[record.key] = aggregate
        elif offset <= aggregate["offset"]:
            return
        aggregate["offset"] = offset
        ident = record.headers.get("ce_id", record.position)
        outcomes = aggregate.get("outcomes", [])
        if (event and event["type"] is None) or any(outcome["id"] == ident for outcome in outcomes):
            return
        if event and rule:
            aggregate["state"] = _changed(aggregate["state"], event, time, rule["set"])
        if self._table["outcomes"]:
            aggregate["suspect"] |= event is None
            outcomes.append({"id": ident, "accepted": rule is not None})
            del outcomes[: -self._table["outcomes"]]

    def _rule(self, state: Json, event: Json) -> Json | None:
        facts = _facts(state, event)
        return next(
            (
                rule
                for rule in self._table["rules"]
                if rule["event"] == event["type"] and rule["when"].items() <= facts.items()
            ),
            None,
        )


def _facts(state: Json, event: Json) -> Json:
    attempt, samples = state.get("attempt") or 0, state.get("samples") or {}
    indexes = range(len(state.get("seeds") or []))
    relation = {0: "current", 1: "next"}
    pairs, left_out = len(state.get("pairs") or []), set(state.get("left_out") or [])
    adapter = f"{event.get('adapter_name')}:{event.get('adapter_version')}"
    place = f"samples/{event['job_id']}" if "job_id" in event else f"trainings/{event.get('training_id')}"
    kind = "catch" if event.get("catch") else "pair"
    form = {state.get("type"): "own", "unpaired": "unpaired"}.get(event.get("format")) if state else None
    trial = f"{event.get('ab_test_id')}:{event.get('pair')}:{kind}:{event.get('voter')}"
    return {
        "exists": bool(state.get("id")),
        "status": state.get("status"),
        "attempted": attempt > 0,
        "complete": bool(state) and all(str(index) in samples for index in indexes),
        "deleted": state.get("deleted_at") is not None,
        "purged": state.get("purged_at") is not None,
        "revoked": state.get("revoked_at") is not None,
        "attempt": relation.get(event["attempt"] - attempt, "other") if "attempt" in event else None,
        "sample": "missing" if event.get("index") in indexes and str(event["index"]) not in samples else "other",
        "own": str(event.get("storage_path")).startswith(f"{place}/"),
        "released": event.get("released"),
        "erred": event.get("error") is not None,
        "retried": event.get("retry_at") is not None,
        "dated": event.get("created_at") is not None,
        "made": state.get("ready_at") is not None,
        "known": all(number < pairs for number in event.get("failed", [])),
        "news": not set(event.get("failed", [])) <= left_out,
        "heard": event.get("pair", pairs) < pairs and event.get("pair") not in left_out,
        "named": event.get("adapter_id") == str(uuid5(NAMESPACE_URL, f"adapter:{adapter}")),
        "form": form,
        "export": state.get(f"{form}_status"),
        "current": form is not None and state.get(f"{form}_request") == event.get("request_id"),
        "inside": str(event.get("items", event.get("archive"))).startswith(f"datasets/{event.get('dataset_id')}/"),
        "aware": event.get("erasures") == state.get("erasures"),
        "number": "next" if event.get("number") == (state.get("erasures") or 0) + 1 else "other",
        **{f"{form}_exported": state.get(f"{form}_status") == "exported" for form in FORMS},
        "trial": event.get("vote_id") == str(uuid5(NAMESPACE_URL, f"abvote:{trial}")),
    }


def _changed(state: Json, event: Json, time: str, effects: Json) -> Json:
    changed = dict(state)
    for field, source in effects.items():
        match source:
            case {"value": value}:
                changed[field] = value
            case {"event": name}:
                changed[field] = event[name]
            case {"header": "ce_time"}:
                changed[field] = time
            case {"add": number}:
                changed[field] = state[field] + number
            case {"merge": name}:
                changed[field] = sorted({*state[field], *event[name]})
            case {"put": value, "at": at}:
                changed[field] = {**state[field], str(event[at]): event[value]}
            case _:
                raise ValueError(f"this consumer does not know the source {source}")
    return changed


def failures(contract: Contract, folder: Path, topic: str = "*") -> Iterator[str]:
    """The names of the vectors that end otherwise than they should, of one topic or of all."""
    for path in sorted((folder / "vectors").glob(f"{topic}.json")):
        for vector in json.loads(path.read_bytes()):
            fold, stopped_at = Fold(contract, path.stem), None
            for published in vector["records"]:
                record = Record(published["position"], published["key"], _value(published), published["headers"])
                try:
                    fold.add(record)
                except NewerVersionError:
                    stopped_at = record.position
                    break
            ended = {"aggregates": fold.aggregates, "dead_letters": [*fold.dead_letters], "stopped_at": stopped_at}
            if ended != vector["expected"]:
                yield f"{path.stem}: {vector['name']}"


def _value(published: Json) -> bytes | None:
    if "value_base64" in published:
        return b64decode(published["value_base64"])
    return None if published["value"] is None else published["value"].encode()


def read(contract: Contract, topic: str, broker: str, prefix: str | None) -> Iterator[Record]:
    """Every record that the topic holds now, partition by partition in the order of offsets."""
    kafka = contract.channels[topic]["bindings"]["kafka"]
    name = kafka["topic"] if prefix is None else prefix + topic
    consumer = Consumer(
        {"bootstrap.servers": broker, "group.id": "unused", "enable.auto.commit": False, "enable.partition.eof": True}
    )
    try:
        for partition in range(kafka["partitions"]):
            consumer.assign([TopicPartition(name, partition, OFFSET_BEGINNING)])
            while (message := consumer.poll(PATIENCE_SECONDS)) is not None:
                if (error := message.error()) is None:
                    pairs: Any = message.headers() or []
                    headers = {header: _text(value) for header, value in pairs}
                    position = f"{topic}/{partition}/{message.offset()}"
                    yield Record(position, _text(message.key()), message.value(), headers)
                elif error.code() == KafkaError._PARTITION_EOF:
                    break
                else:
                    raise KafkaException(error)
            else:
                raise TimeoutError(f"{broker} gave nothing of {name}/{partition} within {PATIENCE_SECONDS:g} s")
    finally:
        consumer.close()


def _text(raw: Any) -> str:
    """librdkafka gives headers and keys as bytes."""
    return bytes(raw or b"").decode(errors="backslashreplace")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contract", type=Path)
    parser.add_argument("broker", nargs="?", help="host:port")
    parser.add_argument("--topic", default="jobs")
    parser.add_argument("--prefix", help="the topics' prefix where it is not the published one")
    parser.add_argument("--vectors", action="store_true")
    options = parser.parse_args()
    if options.broker is None and not options.vectors:
        parser.error("name a broker, or ask for --vectors")
    contract = Contract(options.contract)
    if options.vectors:
        failed = list(failures(contract, options.contract))
        print("\n".join(failed) or "every vector ends as published")
        return 1 if failed else 0
    fold = Fold(contract, options.topic)
    try:
        for record in read(contract, options.topic, options.broker, options.prefix):
            fold.add(record)
            for fault in contract.header_faults(record):
                print(f"{record.position}: {fault}", file=sys.stderr)
    except NewerVersionError as error:
        print(f"{error}; upgrade before reading on", file=sys.stderr)
        return 3
    except (KafkaException, TimeoutError) as error:
        print(f"{options.broker} cannot be read: {error}", file=sys.stderr)
        return 1
    for key, aggregate in fold.aggregates.items():
        print(json.dumps({"key": key, **aggregate}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
