from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from domain import adapters
from domain.adapters import Adapter, AdapterChanges, AdapterRequest, adapter_id, base, check
from domain.contract.adapters import ACTIVATED, DEACTIVATED, DESCRIBED, ID, PUBLISHED, REGISTERED
from domain.errors import ConflictError, InvalidError, NotFoundError
from domain.events import Recorded
from domain.events.jobs import AdapterSnapshot
from domain.generation import adapter_faults
from domain.models import KNOWN, NOISE, Model
from domain.ports import Position


def at(offset: int, event: Any) -> Recorded:
    time = f"2026-01-01T00:00:{offset % 60:02}.000000Z"
    return Recorded(Position("adapters", 0, offset), ID, f"event-{offset}", time, event)


def fold(*events: Any) -> Adapter | None:
    adapter = None
    for offset, event in zip(count(), events, strict=False):
        adapter = adapters.evolve(adapter, at(offset, event))
    return adapter


def after(*events: Any) -> Adapter:
    adapter = fold(REGISTERED, *events)
    assert adapter is not None
    return adapter


def test_an_adapter_is_active_until_it_is_deactivated_and_again_once_it_is_activated() -> None:
    assert after().is_active
    assert not after(DEACTIVATED).is_active
    assert after(DEACTIVATED, ACTIVATED).is_active
    assert after(DESCRIBED).description == "warmer"


def test_an_adapter_has_the_id_of_its_name_and_version() -> None:
    assert fold(replace(REGISTERED, adapter_name="blues")) is None
    assert fold(DEACTIVATED, ACTIVATED) is None
    assert adapter_id("jazz", "1.0.0") == ID != adapter_id("jazz", "1.0.1")


@given(st.lists(st.sampled_from(PUBLISHED.proposals), max_size=20))
def test_whatever_comes_the_files_of_an_adapter_stay(events: list[Any]) -> None:
    adapter = after(*events)
    assert adapter.request == REGISTERED
    told = [event for event in events if event in (ACTIVATED, DEACTIVATED)]
    assert adapter.is_active is (not told or told[-1] == ACTIVATED)


def test_a_command_that_is_repeated_appends_nothing() -> None:
    assert adapters.register(None, REGISTERED) == [REGISTERED]
    assert adapters.register(after(), REGISTERED) == adapters.register(after(DEACTIVATED, DESCRIBED), REGISTERED) == []
    for changes, events in (
        (AdapterChanges(), []),
        (AdapterChanges(is_active=False), [DEACTIVATED]),
        (AdapterChanges(is_active=True), []),
        (AdapterChanges(description="warmer", is_active=False), [DESCRIBED, DEACTIVATED]),
    ):
        assert adapters.change(after(), ID, changes) == events
        assert adapters.change(after(*events), ID, changes) == []


def test_a_version_that_is_there_is_not_registered_as_another() -> None:
    with pytest.raises(ConflictError, match=r"with other files: .* such as 1\.1\.0\."):
        adapters.register(after(), replace(REGISTERED, sha256=f"{1:064}"))
    with pytest.raises(ConflictError, match="with the same files and another base_model"):
        adapters.register(after(), replace(REGISTERED, base_model="m"))


def test_a_job_gets_an_adapter_that_is_active() -> None:
    assert adapters.snapshot(after(), ID, "/adapter_id") == AdapterSnapshot(
        id=ID,
        name="jazz",
        version="1.0.0",
        base_model=REGISTERED.base_model,
        base_revision=REGISTERED.base_revision,
        storage_path=REGISTERED.storage_path,
        sha256=REGISTERED.sha256,
    )
    with pytest.raises(NotFoundError):
        adapters.snapshot(None, ID, "/adapter_id")
    with pytest.raises(InvalidError, match=r"Adapter jazz 1\.0\.0 is not active") as caught:
        adapters.snapshot(after(DEACTIVATED), ID, "/adapter_b")
    assert caught.value.faults[0].pointer == "/adapter_b"


SMALL = next(model for model in KNOWN if model.id == "facebook/musicgen-small")


@pytest.mark.parametrize(
    ("model", "detail"),
    [
        (SMALL, None),
        (replace(SMALL, revision="4c8334b0"), None),
        (replace(SMALL, revision="4c8334b02c6ec4e8664a91979669a501ec497792"), None),
        (NOISE, f"Adapter requires {SMALL.id} but current model is {NOISE.id}"),
        (replace(SMALL, revision="5d"), f"Adapter requires {SMALL.id}@4c8334b0 but current model is {SMALL.id}@5d"),
    ],
)
def test_scenario_reject_incompatible_adapter(model: Model, detail: str | None) -> None:
    """Also where only the revision of the base model differs."""
    snapshot = adapters.snapshot(after(), ID, "/adapter_id")
    assert [fault.detail for fault in adapter_faults(snapshot, model, "/adapter_id")] == ([detail] if detail else [])


NAMES = [model.id for model in KNOWN]


@pytest.mark.parametrize(
    ("request_", "config", "expected"),
    [
        ({}, {"base_model_name_or_path": NOISE.id}, (NOISE.id, None)),
        ({"base_model": NOISE.id}, {"base_model_name_or_path": NOISE.id}, (NOISE.id, None)),
        ({"base_model": "local/m@1"}, {"base_model_name_or_path": "/home/ann/m"}, ("local/m@1", None)),
        ({"base_model": "local/m@1"}, {}, ("local/m@1", None)),
        ({}, {"base_model_name_or_path": NOISE.id, "revision": "4c8334b"}, (NOISE.id, "4c8334b")),
        ({}, {"base_model_name_or_path": NOISE.id, "revision": "main"}, (NOISE.id, None)),
        ({"base_revision": "x"}, {"base_model_name_or_path": NOISE.id, "revision": "main"}, (NOISE.id, "x")),
        ({}, {}, "base_model is missing"),
        ({}, {"base_model_name_or_path": "/home/ann/m"}, "base_model is missing, and adapter_config.json names '/home"),
        (
            {"base_model": SMALL.id},
            {"base_model_name_or_path": NOISE.id},
            "but adapter_config.json names text2song",
        ),
        (
            {"base_revision": "5d5d5d5"},
            {"base_model_name_or_path": NOISE.id, "revision": "4c8334b"},
            "base_revision is '5d5d5d5', but adapter_config.json names 4c8334b. Leave it out, or send that commit.",
        ),
    ],
)
def test_the_base_model_is_the_one_that_is_named(request_: Any, config: Any, expected: Any) -> None:
    asked = AdapterRequest(name="jazz", version="1.0.0", **request_)
    if isinstance(expected, tuple):
        assert base(asked, config, NAMES) == expected
        return
    with pytest.raises(InvalidError) as caught:
        base(asked, config, NAMES)
    assert expected in str(caught.value)


@pytest.mark.parametrize("version", ["0.0.0", "1.10.0", "1.0.0-rc.1", "1.0.0-alpha-2"])
def test_semantic_versions_are_taken(version: str) -> None:
    check(AdapterRequest(name="jazz", version=version))
    registered = replace(REGISTERED, adapter_version=version, adapter_id=adapter_id("jazz", version))
    assert adapters.register(None, registered) == [registered]


NO_VERSIONS = ("", "1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.0.0-", "1.0.0+b", "1.0.0\n", "\u0661.0.0")


@pytest.mark.parametrize("version", NO_VERSIONS)
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(InvalidError, match=r"write a semantic version such as 1\.0\.0"):
        check(AdapterRequest(name="jazz", version=version))
