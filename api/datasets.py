"""Datasets: made of what listeners said, listed, read item by item, exported and downloaded."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Final

from litestar import Request, Response, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.status_codes import HTTP_202_ACCEPTED
from msgspec import Struct, to_builtins
from msgspec.structs import replace

from api.http import pages, positions
from api.http.items import Items, page_of_items
from api.http.pages import Page
from api.http.positions import CURRENT
from api.http.refusals import ForbiddenError
from api.http.renditions import AudioFile
from api.http.services import Injected, Services
from api.http.streams import stream
from api.prompts import IdempotencyKey
from commands import datasets as commands
from commands.transact import Receipt, existing, seen
from domain.dataset_card import card, explanation
from domain.datasets import DATASETS, Dataset, Export, ExportStatus, Status, begun
from domain.errors import ConflictError, DamagedError, NotFoundError
from domain.events import Recorded
from domain.events.datasets import Agreement, DatasetCreated, Filters, Format, Kind, LeftOut
from domain.file_names import stem
from domain.selection import DatasetRequest


class ExportBody(Struct, frozen=True, kw_only=True):
    """`left_out` counts by reason what the archive lacks, `missing` names the first of it. An `outdated` export is
    gone, because records that it rested on were erased: ask for it again.
    """

    format: Format
    status: ExportStatus
    requested_at: str
    exported_at: str | None
    url: str | None
    size: int | None
    sha256: str | None
    rows: int | None
    left_out: dict[str, int]
    missing: list[LeftOut]
    error: str | None


class ErasedSince(Struct, frozen=True, kw_only=True):
    """What the dataset rests on and that was erased since it was built."""

    count: int
    feedback_ids: list[str]
    job_ids: list[str]


class DatasetItem(Struct, frozen=True, kw_only=True):
    """`digest` is the SHA-256 of the list of items as it was built, `sample_count` counts the items that are left of
    it. `positions` has the offset before which each partition of the log was taken in. `left_out` counts by reason what
    was not. `notice` says why there is nothing.
    """

    id: str
    name: str
    description: str
    type: Kind
    filter_query: Filters
    held_out: float
    seed: int
    user_id: str | None
    status: Status
    error: str | None
    sample_count: int | None
    judgements: int | None
    digest: str | None
    positions: dict[str, int] | None
    splits: dict[str, int]
    agreement: Agreement | None
    left_out: dict[str, int]
    notice: str | None
    erased_since: ErasedSince
    exports: dict[str, ExportBody]
    created_at: str
    built_at: str | None


class ExportRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Format


@post("/datasets", operation_id="createDataset", opt=CURRENT, status_code=HTTP_202_ACCEPTED, tags=["datasets"])
async def create_dataset(
    services: Injected, data: JSONBody[DatasetRequest], idempotency_key: IdempotencyKey = None
) -> Response[DatasetItem]:
    """It is built from what is on the log by then, and never changes afterwards. A retry under the same
    `Idempotency-Key` is the same dataset. With a key without admin it takes in what its owner said alone.
    """
    request, owner = _own(services, data), services.caller.idempotency_owner
    receipt = await commands.create(services.journal, services.views, request, idempotency_key, owner=owner)
    dataset = await _created(services, receipt)
    headers = {"Location": f"/datasets/{receipt.id}", **positions.headers(*receipt.positions)}
    return Response(_body(dataset), status_code=HTTP_202_ACCEPTED, headers=headers)


@get("/datasets", operation_id="listDatasets", tags=["datasets"])
async def list_datasets(
    services: Injected,
    *,
    name: FromQuery[str | None] = None,
    kind: Annotated[Kind | None, QueryParameter(name="type")] = None,
    status: FromQuery[Status | None] = None,
    user_id: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[DatasetItem]:
    """Newest first. Every filter narrows."""
    equal = {"name": name, "type": kind, "status": status, "user_id": user_id}
    query = pages.query(limit, offset, cursor, equal=equal)
    return await pages.page(services.views, DATASETS, query, _body)


@get("/datasets/{dataset_id:str}", operation_id="getDataset", opt=CURRENT, tags=["datasets"])
async def get_dataset(services: Injected, dataset_id: FromPath[str]) -> Response[DatasetItem]:
    dataset = await existing(services.views, DATASETS, dataset_id, "dataset")
    return Response(_body(dataset), headers=positions.headers(*seen(DATASETS, dataset)))


@get("/datasets/{dataset_id:str}/items", operation_id="listDatasetItems", opt=CURRENT, tags=["datasets"])
async def list_items(
    services: Injected,
    dataset_id: FromPath[str],
    *,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Items:
    """In the order of the list, which is the same for the same events. A far offset reads all that comes before it:
    go on with `next_cursor` instead.
    """
    dataset = await _built(services, dataset_id, "items")
    return await page_of_items(services.objects, dataset, pages.bounds(limit, offset), cursor)


@get("/datasets/{dataset_id:str}/card", operation_id="getDatasetCard", opt=CURRENT, tags=["datasets"])
async def get_card(services: Injected, dataset_id: FromPath[str]) -> Response[str]:
    """In Markdown, as a person would read it."""
    dataset = await existing(services.views, DATASETS, dataset_id, "dataset")
    return Response(card(dataset), media_type="text/markdown", headers=positions.headers(*seen(DATASETS, dataset)))


@post(
    "/datasets/{dataset_id:str}/export",
    operation_id="exportDataset",
    opt=CURRENT,
    status_code=HTTP_202_ACCEPTED,
    tags=["datasets"],
)
async def export_dataset(
    services: Injected, dataset_id: FromPath[str], data: JSONBody[ExportRequest]
) -> Response[DatasetItem]:
    """Made in the background; `exports` of the dataset says when it can be downloaded. One that is there or being made
    is not made again.
    """
    receipt = await commands.export(services.journal, services.views, dataset_id, data.format)
    dataset = await existing(services.views, DATASETS, dataset_id, "dataset")
    headers = {
        "Location": f"/datasets/{dataset_id}/exports/{data.format}",
        **positions.headers(*receipt.positions),
    }
    return Response(_body(dataset), status_code=HTTP_202_ACCEPTED, headers=headers)


@get(
    "/datasets/{dataset_id:str}/exports/{export_format:str}",
    operation_id="getDatasetExport",
    opt=CURRENT,
    tags=["datasets"],
)
async def get_export(
    request: Request[Any, Any, Any],
    services: Injected,
    dataset_id: FromPath[str],
    export_format: FromPath[str],
) -> Response[Any]:
    """A ZIP file of audio and rows. Honours Range, If-Range and If-None-Match. 409 until it is made."""
    dataset = await existing(services.views, DATASETS, dataset_id, "dataset")
    export = dataset.export(export_format)
    if export is None:
        raise NotFoundError("export of the dataset", export_format)
    made = export.made
    if export.status != "exported" or made is None:
        raise ConflictError(_unmade(export))
    stored = await services.objects.stat(made.archive)
    if stored is None or stored.size != made.size:
        found = "gone" if stored is None else f"damaged: it has {stored.size:,} bytes, and {made.size:,} were stored"
        raise DamagedError(
            f"The archive {made.archive!r} is {found}. Put a sound copy back, or create another dataset."
        )
    file = AudioFile(made.size, made.sha256, partial(services.objects.read, made.archive))
    name = f"{stem(dataset.request.dataset_name)}-{dataset.id[-6:]}-{export.format}.zip"
    return await stream(request.headers, file, etag=f'"{made.sha256}"', file_name=name, media_type="application/zip")


ROUTES: Final = (
    create_dataset,
    list_datasets,
    get_dataset,
    list_items,
    get_card,
    export_dataset,
    get_export,
)


def _own(services: Services, request: DatasetRequest) -> DatasetRequest:
    """A key without admin takes in what its owner said, and nobody else."""
    caller = services.caller
    request = caller.signed(request)
    if not caller.is_restricted or caller.owner is None:
        return request
    query = request.filter_query
    if others := sorted({*query.user_ids, *query.expert_ids} - {caller.owner}):
        raise ForbiddenError(
            "other_owner",
            f"The filter names the listener {others[0]!r}, and this key is of {caller.owner!r}. Leave user_ids and "
            "expert_ids out, or use a key with admin.",
        )
    return replace(request, filter_query=replace(query, user_ids=(caller.owner,)))


def _unmade(export: Export) -> str:
    match export.status:
        case "outdated":
            return "Records that the export rested on were erased, so it is gone. Ask for it again by POST …/export."
        case "failed":
            return f"The export failed: {export.error} Ask for it again by POST …/export."
    return "The export is being made; ask again soon."


async def _built(services: Services, dataset_id: str, what: str) -> Dataset:
    dataset = await existing(services.views, DATASETS, dataset_id, "dataset")
    if dataset.built is None:
        way_out = "create another" if dataset.status == "failed" else "ask again when it is built"
        raise ConflictError(f"Dataset {dataset_id} is {dataset.status} and has no {what}; {way_out}.")
    return dataset


async def _created(services: Services, receipt: Receipt) -> Dataset:
    """As it will be shown, where it cannot be read back yet."""
    if await services.views.show(receipt.positions):
        return await existing(services.views, DATASETS, receipt.id, "dataset")
    [created] = [event for event in receipt.events if isinstance(event, DatasetCreated)]
    at = receipt.positions[-1]
    return begun(created, Recorded(at, receipt.id, receipt.event_id or "", services.journal.now(), created))


def _body(dataset: Dataset) -> DatasetItem:
    request, built = dataset.request, dataset.built
    return DatasetItem(
        id=dataset.id,
        name=request.dataset_name,
        description=request.description,
        type=request.kind,
        filter_query=request.filters,
        held_out=request.held_out,
        seed=request.seed,
        user_id=request.user_id,
        status=dataset.status,
        error=dataset.error,
        sample_count=dataset.sample_count,
        judgements=built.judgements if built else None,
        digest=built.digest if built else None,
        positions=dict(built.positions) if built else None,
        splits=dict(built.splits) if built else {},
        agreement=built.agreement if built else None,
        left_out=dict(built.left_out) if built else {},
        notice=explanation(dataset),
        erased_since=ErasedSince(
            count=dataset.erased, feedback_ids=list(dataset.erased_feedback), job_ids=list(dataset.erased_jobs)
        ),
        exports={export.format: _export(dataset, export) for export in dataset.exports},
        created_at=dataset.created_at,
        built_at=dataset.built_at,
    )


def _export(dataset: Dataset, export: Export) -> ExportBody:
    made = export.made if export.status == "exported" else None
    figures: Mapping[str, Any] = to_builtins(made) if made else {}
    return ExportBody(
        format=export.format,
        status=export.status,
        requested_at=export.requested_at,
        exported_at=export.exported_at,
        url=f"/datasets/{dataset.id}/exports/{export.format}" if made else None,
        size=figures.get("size"),
        sha256=figures.get("sha256"),
        rows=figures.get("rows"),
        left_out=figures.get("left_out", {}),
        missing=list(made.missing) if made else [],
        error=export.error,
    )
