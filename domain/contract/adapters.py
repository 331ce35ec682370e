from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import to_builtins
from msgspec.structs import replace

from domain.adapters import Adapter, adapter_id, folder
from domain.contract import Json, Published
from domain.contract.jobs import SUBMITTED
from domain.contract.records import encoded, headed, log, record
from domain.events import Recorded
from domain.events.adapters import (
    AdapterActivated,
    AdapterDeactivated,
    AdapterDescribed,
    AdapterFile,
    AdapterRegistered,
)
from domain.outcomes import OUTCOMES
from domain.ports import Position, Record

ID: Final = adapter_id("jazz", "1.0.0")
DIGEST: Final = f"{7:064}"
REGISTERED: Final = AdapterRegistered(
    adapter_id=ID,
    adapter_name="jazz",
    adapter_version="1.0.0",
    base_model="facebook/musicgen-small",
    rank=8,
    storage_path=folder(DIGEST, ID),
    size=1_500,
    sha256=DIGEST,
    files=(
        AdapterFile(name="adapter_config.json", size=500, sha256=f"{8:064}"),
        AdapterFile(name="adapter_model.safetensors", size=1_000, sha256=f"{9:064}"),
    ),
    base_revision="4c8334b0",
    description="trained on brushes",
    training_dataset_id="dataset-1",
    training_id="training-1",
    training_config={"learning_rate": 0.0001, "method": "dpo", "shuffled": True, "dropout": None},
    metrics={"held_out_loss": 1.58},
    user_id="user-1",
)
ACTIVATED: Final = AdapterActivated(adapter_id=ID)
DEACTIVATED: Final = AdapterDeactivated(adapter_id=ID)
DESCRIBED: Final = AdapterDescribed(adapter_id=ID, description="warmer")
SHOWN: Final = tuple(name for name in AdapterRegistered.__struct_fields__ if name not in {"adapter_id", "description"})


def _state(adapter: Adapter | None) -> Json:
    if adapter is None:
        return {}
    return {
        "id": adapter.id,
        "is_active": adapter.is_active,
        "description": adapter.description,
        **{name: to_builtins(getattr(adapter.request, name)) for name in SHOWN},
        "created_at": adapter.created_at,
    }


def _facts(adapter: Adapter | None, event: Any) -> Json:
    facts: Json = {"exists": adapter is not None}
    if isinstance(event, AdapterRegistered):
        facts["named"] = event.adapter_id == adapter_id(event.adapter_name, event.adapter_version)
    return facts


def _accepted(adapter: Adapter | None, recorded: Recorded) -> bool:
    outcome = adapter.outcome(recorded.id) if adapter else None
    return outcome is not None and outcome.reason is None


def _vectors() -> Mapping[str, Sequence[Record]]:
    return {
        "an adapter is registered, described, deactivated and activated": (
            run := log(REGISTERED, DESCRIBED, DEACTIVATED, ACTIVATED, name=ACTIVATED)
        ),
        "an adapter that is not active is so until it is activated": run[:3],
        "a batch delivered again changes nothing": [*run[:3], *run],
        "what comes before the registration is passed over": log(
            DESCRIBED, DEACTIVATED, ACTIVATED, b"{", REGISTERED, DEACTIVATED, name=ACTIVATED
        ),
        "a second registration is refused": log(REGISTERED, replace(REGISTERED, rank=16), name=ACTIVATED),
        "an adapter has the id of its name and version": log(
            replace(REGISTERED, adapter_name="blues"),
            replace(REGISTERED, adapter_version="1.0.1"),
            REGISTERED,
            name=ACTIVATED,
        ),
        "an adapter under another id is none": [record(0, replace(REGISTERED, adapter_id="adapter-1"))],
        "what is out of bounds is no event": log(
            encoded(REGISTERED).replace(b'"1.0.0"', b'"1.0"'),
            encoded(REGISTERED).replace(b'"adapters/', b'"secrets/'),
            REGISTERED,
            DEACTIVATED,
            name=REGISTERED,
        ),
        "what is no event marks the state as suspect": log(REGISTERED, b"{", DEACTIVATED, name=ACTIVATED),
        "an event appended twice under one id holds once": [
            *log(REGISTERED, DEACTIVATED, name=ACTIVATED),
            headed(record(2, ACTIVATED), ce_id="event-1"),
        ],
        "an id is forgotten after eight verdicts": [
            *log(REGISTERED, DEACTIVATED, *([REGISTERED] * 8), name=ACTIVATED),
            headed(record(10, ACTIVATED), ce_id="event-1"),
        ],
        "an unknown type is passed over": log(REGISTERED, b'{"type":"AdapterPraised"}', DEACTIVATED, name=ACTIVATED),
        "unknown fields are ignored and missing ones have their default": [
            record(
                0,
                REGISTERED,
                value=encoded(REGISTERED).replace(b',"user_id":"user-1"', b',"mood":"calm"'),
            )
        ],
        "an unknown version stops the reader": [
            *log(REGISTERED, name=ACTIVATED),
            headed(record(1, DEACTIVATED), ce_type="text2song.adapter.deactivated.v2"),
            record(2, DESCRIBED),
        ],
        "a tombstone erases nothing here": log(REGISTERED, None, DEACTIVATED, name=ACTIVATED),
        "an event of another topic is none": [
            *log(REGISTERED, name=ACTIVATED),
            record(1, replace(SUBMITTED, job_id=ID), position=Position("adapters", 0, 1)),
        ],
    }


PUBLISHED: Final = Published(
    accepted=_accepted,
    state=_state,
    facts=_facts,
    fields={
        "id": "the aggregate's key",
        "is_active": "whether it may be asked for",
        "description": "what was said of it last",
        **{name: f"the event's {name}" for name in SHOWN},
        "created_at": "when it was registered",
    },
    conditions={
        "exists": "whether there is a state, because a registration was accepted before",
        "named": "whether adapter_id is the UUIDv5, in the namespace of URLs, of "
        "adapter:{adapter_name}:{adapter_version}",
    },
    proposals=[
        REGISTERED,
        replace(REGISTERED, adapter_name="blues"),
        ACTIVATED,
        DEACTIVATED,
        DESCRIBED,
    ],
    outcomes=OUTCOMES,
    vectors=_vectors(),
)
