from functools import partial
from typing import Final

from commands.transact import LOCAL, Receipt, Views, append, identify, load, seen, settle, transact
from domain import datasets, selection
from domain.datasets import DATASETS
from domain.errors import ConflictError
from domain.events.datasets import DatasetCreated, Format
from domain.idempotency import digest
from domain.journal import Journal
from domain.ports import Query
from domain.selection import DatasetRequest

FAILED_AT_ONCE: Final = 1_000


async def create(
    journal: Journal,
    views: Views,
    request: DatasetRequest,
    idempotency_key: str | None,
    *,
    owner: str = LOCAL,
) -> Receipt:
    """Raises InvalidError, KeyReusedError, and ConflictError for a name that another dataset has.

    Of two requests at the same moment both may get one name: it is for people, and no id.
    """
    dataset_id, request_digest = identify(journal, "dataset", owner, idempotency_key), digest(request)
    dataset = None if idempotency_key is None else await load(views, DATASETS, dataset_id)

    def created() -> DatasetCreated:
        return selection.creation(request, dataset_id, request_digest)

    events = datasets.create(dataset, request_digest, created)
    if events:
        await _check_name(views, request.name.strip())
    receipt = await append(journal, views, dataset_id, events, seen(DATASETS, dataset))
    decide = partial(datasets.create, request_digest=request_digest, creation=created)
    return await settle(views, DATASETS, receipt, idempotency_key, decide)


async def export(journal: Journal, views: Views, dataset_id: str, wanted: Format) -> Receipt:
    """Raises NotFoundError, InvalidError and ConflictError."""
    request_id = journal.new_id()
    return await transact(
        journal, views, DATASETS, dataset_id, lambda dataset: datasets.export(dataset, dataset_id, wanted, request_id)
    )


async def _check_name(views: Views, name: str) -> None:
    for there in await views.find(DATASETS, Query(equal={"name": name}, limit=FAILED_AT_ONCE)):
        if there.status != "failed":
            raise ConflictError(
                f"There is a dataset {name!r} already: {there.id}, created {there.created_at}. Datasets never change; "
                "give this one another name."
            )
