"""LoRA adapters: registered with files that were checked, described, activated and deactivated.

A name and a version together are one adapter, whose files never change. What is wrong with files is in `lora.py`.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, Final
from uuid import NAMESPACE_URL, uuid5

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import replace

from domain.errors import ConflictError, Fault, InvalidError, NotFoundError, plain
from domain.events import MAX_LABEL, Recorded
from domain.events.adapters import (
    LARGEST,
    MAX_DESCRIPTION,
    MAX_ENTRIES,
    MAX_NAME,
    MAX_TEXT,
    NAME_FORM,
    VERSION_FORM,
    AdapterActivated,
    AdapterDeactivated,
    AdapterDescribed,
    AdapterEvent,
    AdapterRegistered,
)
from domain.events.jobs import AdapterSnapshot
from domain.lora import CHANCE, PREFERENCE
from domain.outcomes import Judged, Outcome, judge
from domain.ports import View
from domain.prompts import CONTROL, control_faults

COMMIT: Final = re.compile(r"[0-9a-f]{7,64}")  # other revisions are names, which may move
IDENTIFIER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")


class AdapterRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is said of an adapter beside its files. The base model, and its revision where it is known, are by default
    those that the files name. `version` is a semantic one, such as 1.0.0.
    """

    name: Annotated[str, Meta(examples=["jazz"])]
    version: Annotated[str, Meta(examples=["1.0.0"])]
    description: str = ""
    base_model: str | None = None
    base_revision: str | None = None
    training_dataset_id: str | None = None
    training_id: str | None = None
    training_config: dict[str, str | float | bool | None] = {}
    metrics: dict[str, float] = {}
    user_id: str | None = None


class AdapterChanges(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields left out stay as they are."""

    description: str | UnsetType = UNSET
    is_active: bool | UnsetType = UNSET


class Adapter(Judged, frozen=True, kw_only=True):
    id: str
    request: AdapterRegistered
    is_active: bool
    description: str
    created_at: str
    partition: int
    position: int
    suspect: bool = False
    outcomes: tuple[Outcome, ...] = ()


FILTERS: Final = ("base_model", "training_dataset_id", "training_id")
ADAPTERS: Final = View(
    "adapters",
    Adapter,
    fields=lambda adapter: {
        "name": adapter.request.adapter_name,
        "is_active": adapter.is_active,
        **{name: getattr(adapter.request, name) for name in FILTERS},
    },
    filters=("name", "is_active", *FILTERS),
)


def adapter_id(name: str, version: str) -> str:
    """Published: the foreign producers compute it too."""
    return str(uuid5(NAMESPACE_URL, f"adapter:{name}:{version}"))


def folder(sha256: str, id_: str) -> str:
    """Where an adapter's files lie among the objects: in a folder that no other adapter has."""
    return f"adapters/{sha256}/{id_}"


def check(request: AdapterRequest) -> None:
    """Raises InvalidError naming every value out of bounds, whatever the files are."""
    if faults := [*_faults(request)]:
        raise InvalidError(faults)


def base(request: AdapterRequest, config: Mapping[str, Any], known: Collection[str]) -> tuple[str, str | None]:
    """The model that the adapter was trained on, and its revision where that is known. `config` is PEFT's.

    Raises InvalidError where nothing names the model, or request and configuration name different ones.
    """
    faults = []
    named, given = config.get("base_model_name_or_path"), request.base_model
    if given is None and named not in known:
        names = f"adapter_config.json names {_shown(str(named))}, which is no known model"
        detail = (
            f"base_model is missing, and {'the files name none' if named is None else names}. "
            f"Name it: {', '.join(known)}, or the id that GET /models shows of another."
        )
        faults.append(Fault("/base_model", detail))
    elif given is not None and named in known and named != given:
        detail = (
            f"base_model is {_shown(given)}, but adapter_config.json names {named}. Leave it out, or send that name."
        )
        faults.append(Fault("/base_model", detail))
    pinned = config.get("revision")
    revision = pinned if isinstance(pinned, str) and COMMIT.fullmatch(pinned) else None
    if None not in {revision, request.base_revision} and revision != request.base_revision:
        said = f"base_revision is {_shown(str(request.base_revision))}, but adapter_config.json names {revision}."
        detail = f"{said} Leave it out, or send that commit."
        faults.append(Fault("/base_revision", detail))
    if faults:
        raise InvalidError(faults)
    return str(given or named), request.base_revision or revision


def register(adapter: Adapter | None, registration: AdapterRegistered) -> list[AdapterEvent]:
    """Registering the same twice changes nothing. Raises ConflictError where the version is another adapter."""
    if adapter is None:
        return [registration]
    there = adapter.request
    if there == registration:
        return []
    said = f"Adapter {there.adapter_name} {there.adapter_version} is there already"
    if there.sha256 != registration.sha256:
        raise ConflictError(
            f"{said}, with other files: their SHA-256 is {there.sha256}, not {registration.sha256}. "
            f"Files never change; register these as a new version, such as {_next(there.adapter_version)}."
        )
    names = [
        name for name in AdapterRegistered.__struct_fields__ if getattr(there, name) != getattr(registration, name)
    ]
    raise ConflictError(
        f"{said}, with the same files and another {names[0]}. PATCH /adapters/{adapter.id} changes the description; "
        f"register it as a new version, such as {_next(there.adapter_version)}, to change the rest."
    )


def change(adapter: Adapter | None, id_: str, changes: AdapterChanges) -> list[AdapterEvent]:
    """What is so already is not said again. Raises NotFoundError and InvalidError."""
    if adapter is None:
        raise NotFoundError("adapter", id_)
    events: list[AdapterEvent] = []
    if changes.description is not UNSET and changes.description != adapter.description:
        if faults := [*_text_faults(changes.description)]:
            raise InvalidError(faults)
        events.append(AdapterDescribed(adapter_id=id_, description=changes.description))
    if changes.is_active is not UNSET and changes.is_active != adapter.is_active:
        kind = AdapterActivated if changes.is_active else AdapterDeactivated
        events.append(kind(adapter_id=id_))
    return events


def snapshot(adapter: Adapter | None, id_: str, pointer: str) -> AdapterSnapshot:
    """The adapter as it is now, for a job. Raises NotFoundError, and InvalidError for one that is not active."""
    if adapter is None:
        raise NotFoundError("adapter", id_)
    request = adapter.request
    if not adapter.is_active:
        detail = (
            f"Adapter {request.adapter_name} {request.adapter_version} is not active. "
            f'Activate it by PATCH /adapters/{id_} with {{"is_active": true}}, or choose another.'
        )
        raise InvalidError([Fault(pointer, detail)])
    return AdapterSnapshot(
        id=adapter.id,
        name=request.adapter_name,
        version=request.adapter_version,
        base_model=request.base_model,
        base_revision=request.base_revision,
        storage_path=request.storage_path,
        sha256=request.sha256,
        has_preference=has_preference(request),
    )


def has_preference(registration: AdapterRegistered) -> bool:
    """Whether a preference model is among its files which tells held-out pairs apart better than chance."""
    names = {file.name for file in registration.files}
    return names.issuperset(PREFERENCE) and registration.metrics.get("pair_accuracy_chance", 1.0) < CHANCE


def begun(event: AdapterRegistered, recorded: Recorded) -> Adapter:
    return Adapter(
        id=event.adapter_id,
        request=event,
        is_active=True,
        description=event.description,
        created_at=recorded.time,
        partition=recorded.position.partition,
        position=recorded.position.offset,
        outcomes=(Outcome(recorded.id, recorded.type),),
    )


def evolve(adapter: Adapter | None, recorded: Recorded) -> Adapter | None:
    """Total: whatever the log holds, in whatever order, it never raises."""
    if adapter is None:
        event = recorded.event
        if isinstance(event, AdapterRegistered) and event.adapter_id == adapter_id(
            event.adapter_name, event.adapter_version
        ):
            return begun(event, recorded)
        return None
    return judge(adapter, recorded, _apply)


def _apply(adapter: Adapter, recorded: Recorded) -> Adapter | str:
    """The adapter after the event, or why the event is refused."""
    match recorded.event:
        case AdapterActivated():
            return replace(adapter, is_active=True)
        case AdapterDeactivated():
            return replace(adapter, is_active=False)
        case AdapterDescribed(description=description):
            return replace(adapter, description=description)
        case AdapterRegistered():
            return "the adapter was registered before"
        case _:
            return "not an event of an adapter"


def _next(version: str) -> str:
    major, minor, _ = version.partition("-")[0].split(".")
    return f"{major}.{int(minor) + 1}.0"


def _faults(request: AdapterRequest) -> Iterator[Fault]:
    if len(request.name) > MAX_NAME or not re.fullmatch(NAME_FORM, request.name):
        detail = f"name is {_shown(request.name)}; write 1 to {MAX_NAME} letters, digits, dots, dashes and underscores."
        yield Fault("/name", f"{detail} The first one is a letter or digit.")
    if len(request.version) > MAX_NAME or not re.fullmatch(VERSION_FORM, request.version):
        yield Fault("/version", f"version is {_shown(request.version)}; write a semantic version such as 1.0.0.")
    yield from _text_faults(request.description)
    for name, most in (("base_model", 1_000), ("base_revision", MAX_LABEL), ("user_id", MAX_LABEL)):
        text = getattr(request, name)
        if text is not None and (not 1 <= len(text) <= most or CONTROL.search(text)):
            yield Fault(f"/{name}", f"{name} is {_shown(text)}; it must be a text of 1 to {most:,} characters.")
    for name in ("training_dataset_id", "training_id"):
        ident = getattr(request, name)
        if ident is not None and not IDENTIFIER.fullmatch(ident):
            yield Fault(f"/{name}", f"{name} is {_shown(ident)}, which no id is; leave it out where there is none.")
    for name in ("training_config", "metrics"):
        yield from _entry_faults(name, getattr(request, name))


def _text_faults(description: str) -> Iterator[Fault]:
    if len(description) > MAX_DESCRIPTION:
        detail = f"description has {len(description):,} characters; the limit is {MAX_DESCRIPTION:,}."
        yield Fault("/description", detail)
    else:
        yield from control_faults(description, "/description")


def _entry_faults(field: str, entries: Mapping[str, Any]) -> Iterator[Fault]:
    if len(entries) > MAX_ENTRIES:
        yield Fault(f"/{field}", f"{field} has {len(entries):,} entries; the limit is {MAX_ENTRIES}.")
        return
    for name, value in entries.items():
        if len(name) > MAX_LABEL:
            yield Fault(f"/{field}", f"{field} has a name of {len(name):,} characters; the limit is {MAX_LABEL}.")
        elif isinstance(value, float) and not -LARGEST <= value <= LARGEST:
            yield Fault(f"/{field}", f"{field} has {_shown(name)} of {plain(value)}; numbers go to ±{LARGEST:g}.")
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            detail = f"{field} has a text of {len(value):,} characters as {_shown(name)}; the limit is {MAX_TEXT:,}."
            yield Fault(f"/{field}", detail)


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 60 else f"{text[:60]!r}… ({len(text):,} characters)"
