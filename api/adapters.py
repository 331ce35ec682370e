"""LoRA adapters: uploaded or taken from the object store, checked, registered, listed, changed, downloaded."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from litestar import Request, Response, get, patch, post
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.status_codes import HTTP_201_CREATED
from msgspec import Struct

from api.http import pages, positions
from api.http.pages import Page
from api.http.positions import CURRENT
from api.http.renditions import AudioFile
from api.http.services import Injected, Services
from api.http.streams import stream
from api.http.uploads import FORM
from api.registration import Registration, registered
from commands import adapters as commands
from commands.transact import existing, load, seen
from domain.ab_tests import AB_TESTS
from domain.adapters import ADAPTERS, Adapter, AdapterChanges
from domain.datasets import DATASETS
from domain.errors import DamagedError, NotFoundError
from domain.events.adapters import AdapterFile
from domain.feedback import FEEDBACK
from domain.ports import Query
from projections import figures

MAX_TESTS: Final = 1_000


class AdapterBody(Struct, frozen=True, kw_only=True):
    """`sha256` is that of the files' list, as `sha256sum` writes it: a line for each file, by name. `size` is of all
    files, in bytes. `base_revision` null means that any revision of the base model is taken.
    """

    id: str
    name: str
    version: str
    description: str
    base_model: str
    base_revision: str | None
    rank: int
    storage_path: str
    size: int
    sha256: str
    files: list[AdapterFile]
    training_dataset_id: str | None
    training_id: str | None
    training_config: dict[str, str | float | bool | None]
    metrics: dict[str, float]
    is_active: bool
    user_id: str | None
    created_at: str


class Lineage(Struct, frozen=True, kw_only=True):
    """What the adapter came from, and what has come of it. `positions` are those up to which its dataset was built;
    `feedback_count` counts judgements of what was made with the adapter, `ab_tests` has the newest tests with it.
    """

    dataset: str | None
    positions: dict[str, int] | None
    feedback_count: int
    ab_tests: list[str]


class AdapterDetails(AdapterBody, frozen=True, kw_only=True):
    lineage: Lineage


@post(
    "/adapters",
    operation_id="registerAdapter",
    opt={**CURRENT, "media_types": (FORM, "application/json")},
    operation_class=Registration,
    request_max_body_size=None,
    status_code=HTTP_201_CREATED,
    tags=["adapters"],
)
async def register_adapter(request: Request[Any, Any, Any], services: Injected) -> Response[AdapterBody]:
    """Registers LoRA weights that PEFT has saved, once they are checked; they are active at once. Send both files in a
    form, or name a folder of the object store that holds them. The same registration twice changes nothing; another
    one of the name and version answers 409.
    """
    receipt = await registered(request, services)
    adapter = await existing(services.views, ADAPTERS, receipt.id, "adapter")
    headers = {"Location": f"/adapters/{receipt.id}", **positions.headers(*receipt.positions)}
    return Response(AdapterBody(**_fields(adapter)), status_code=HTTP_201_CREATED, headers=headers)


@get("/adapters", operation_id="listAdapters", tags=["adapters"])
async def list_adapters(
    services: Injected,
    *,
    name: FromQuery[str | None] = None,
    base_model: FromQuery[str | None] = None,
    is_active: FromQuery[bool | None] = None,
    training_dataset_id: FromQuery[str | None] = None,
    training_id: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[AdapterBody]:
    """Newest first. Every filter narrows."""
    equal = {
        "name": name,
        "base_model": base_model,
        "is_active": is_active,
        "training_dataset_id": training_dataset_id,
        "training_id": training_id,
    }
    query = pages.query(limit, offset, cursor, equal=equal)
    return await pages.page(services.views, ADAPTERS, query, lambda adapter: AdapterBody(**_fields(adapter)))


@get("/adapters/{adapter_id:str}", operation_id="getAdapter", opt=CURRENT, tags=["adapters"])
async def get_adapter(services: Injected, adapter_id: FromPath[str]) -> Response[AdapterDetails]:
    adapter = await existing(services.views, ADAPTERS, adapter_id, "adapter")
    body = AdapterDetails(lineage=await _lineage(services, adapter), **_fields(adapter))
    return Response(body, headers=positions.headers(*seen(ADAPTERS, adapter)))


@patch("/adapters/{adapter_id:str}", operation_id="changeAdapter", opt=CURRENT, tags=["adapters"])
async def change_adapter(
    services: Injected, adapter_id: FromPath[str], data: JSONBody[AdapterChanges]
) -> Response[AdapterBody]:
    """Describes, activates or deactivates it. Jobs that were accepted before go on with an adapter that is
    deactivated; new ones are refused.
    """
    there = await existing(services.views, ADAPTERS, adapter_id, "adapter")
    services.caller.check_owner(there.request.user_id, f"Adapter {adapter_id}")
    receipt = await commands.change(services.journal, services.views, adapter_id, data)
    adapter = await existing(services.views, ADAPTERS, adapter_id, "adapter")
    return Response(AdapterBody(**_fields(adapter)), headers=positions.headers(*receipt.positions))


@get("/adapters/{adapter_id:str}/files/{name:str}", operation_id="getAdapterFile", opt=CURRENT, tags=["adapters"])
async def get_file(
    request: Request[Any, Any, Any], services: Injected, adapter_id: FromPath[str], name: FromPath[str]
) -> Response[Any]:
    """One of the adapter's files, as PEFT reads it. Honours Range, If-Range and If-None-Match."""
    adapter = await existing(services.views, ADAPTERS, adapter_id, "adapter")
    listed = next((file for file in adapter.request.files if file.name == name), None)
    if listed is None:
        raise NotFoundError("file of the adapter", name)
    key = f"{adapter.request.storage_path}/{name}"
    stored = await services.objects.stat(key)
    if stored is None or stored.size != listed.size:
        found = "gone" if stored is None else f"damaged: it has {stored.size:,} bytes, and {listed.size:,} were stored"
        raise DamagedError(f"The file {key!r} is {found}. Put a sound copy in its place.")
    media_type = "application/json" if name.endswith(".json") else "application/octet-stream"
    file = AudioFile(listed.size, listed.sha256, partial(services.objects.read, key))
    return await stream(request.headers, file, etag=f'"{listed.sha256}"', file_name=name, media_type=media_type)


ROUTES: Final = (register_adapter, list_adapters, get_adapter, change_adapter, get_file)


async def _lineage(services: Services, adapter: Adapter) -> Lineage:
    partitions = services.journal.log.topics[FEEDBACK.name].partitions
    [counts] = await figures.of_groups(services.views, [("adapter", adapter.id)], partitions)
    tests = await services.views.find(AB_TESTS, Query(equal={"adapter_id": adapter.id}, limit=MAX_TESTS))
    dataset_id = adapter.request.training_dataset_id
    dataset = None if dataset_id is None else await load(services.views, DATASETS, dataset_id)
    return Lineage(
        dataset=dataset_id,
        positions=dataset.built.positions if dataset and dataset.built else None,
        feedback_count=counts["count"],
        ab_tests=[test.id for test in tests],
    )


def _fields(adapter: Adapter) -> Mapping[str, Any]:
    request = adapter.request
    same = ("base_model", "base_revision", "rank", "storage_path", "size", "sha256", "training_dataset_id")
    return {
        "id": adapter.id,
        "name": request.adapter_name,
        "version": request.adapter_version,
        "description": adapter.description,
        "files": list(request.files),
        "is_active": adapter.is_active,
        "created_at": adapter.created_at,
        **{name: getattr(request, name) for name in (*same, "training_id", "training_config", "metrics", "user_id")},
    }
