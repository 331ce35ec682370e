from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import to_builtins
from msgspec.structs import replace

from domain.contract import Json, Published
from domain.contract.jobs import SUBMITTED
from domain.contract.records import encoded, headed, log, record
from domain.events import Recorded
from domain.events.keys import KeyCreated, KeyRevoked
from domain.keys import Key
from domain.outcomes import OUTCOMES
from domain.ports import Position, Record

ID: Final = "key-1"
CREATED: Final = KeyCreated(
    key_id=ID,
    owner="ann@example.org",
    scopes=("listen",),
    secret_sha256=f"{7:064}",
    label="laptop",
    ab_test_id="test-1",
    expires_at="2027-01-31T12:00:00.000000Z",
)
REVOKED: Final = KeyRevoked(key_id=ID)
SHOWN: Final = tuple(name for name in KeyCreated.__struct_fields__ if name != "key_id")


def _state(key: Key | None) -> Json:
    if key is None:
        return {}
    return {
        "id": key.id,
        **{name: to_builtins(getattr(key.request, name)) for name in SHOWN},
        "created_at": key.created_at,
        "revoked_at": key.revoked_at,
    }


def _facts(key: Key | None, _: Any) -> Json:
    return {"exists": key is not None, "revoked": key is not None and key.revoked_at is not None}


def _accepted(key: Key | None, recorded: Recorded) -> bool:
    outcome = key.outcome(recorded.id) if key else None
    return outcome is not None and outcome.reason is None


def _vectors() -> Mapping[str, Sequence[Record]]:
    return {
        "a key is created and revoked": (run := log(CREATED, REVOKED, name=REVOKED)),
        "a batch delivered again changes nothing": [*run, *run],
        "what comes before the creation is passed over": log(REVOKED, b"{", CREATED, name=REVOKED),
        "the first creation holds": log(CREATED, replace(CREATED, owner="bob", scopes=("admin",)), name=REVOKED),
        "a revoked key stays revoked": log(CREATED, REVOKED, REVOKED, CREATED, name=REVOKED),
        "what is out of bounds is no event": log(
            encoded(CREATED).replace(b'"listen"', b'"root"'),
            encoded(CREATED).replace(b'"ann@example.org"', b'"ann:bob"'),
            CREATED,
            name=CREATED,
        ),
        "what is no event marks the state as suspect": log(CREATED, b"{", REVOKED, name=REVOKED),
        "an event appended twice under one id holds once": [
            *log(CREATED, REVOKED, name=REVOKED),
            headed(record(2, REVOKED), ce_id="event-1"),
        ],
        "an unknown type is passed over": log(CREATED, b'{"type":"KeyPraised"}', REVOKED, name=REVOKED),
        "an unknown version stops the reader": [
            *log(CREATED, name=REVOKED),
            headed(record(1, REVOKED), ce_type="text2song.key.revoked.v2"),
        ],
        "a tombstone erases nothing here": log(CREATED, None, name=REVOKED),
        "an event of another topic is none": [
            *log(CREATED, name=REVOKED),
            record(1, replace(SUBMITTED, job_id=ID), position=Position("keys", 0, 1)),
        ],
    }


PUBLISHED: Final = Published(
    accepted=_accepted,
    state=_state,
    facts=_facts,
    fields={
        "id": "the aggregate's key",
        **{name: f"the event's {name}" for name in SHOWN},
        "created_at": "when it was created",
        "revoked_at": "since when it opens nothing, null while it does",
    },
    conditions={
        "exists": "whether there is a state, because a creation was accepted before",
        "revoked": "whether it was revoked before",
    },
    proposals=[CREATED, REVOKED],
    outcomes=OUTCOMES,
    vectors=_vectors(),
)
