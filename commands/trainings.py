from functools import partial

from commands.transact import LOCAL, Receipt, Views, append, identify, load, seen, settle, transact
from domain import adapters, trainings
from domain.adapters import ADAPTERS
from domain.datasets import DATASETS
from domain.errors import ConflictError
from domain.events.trainings import TrainingRequested
from domain.idempotency import digest
from domain.journal import Journal
from domain.trainings import TRAININGS, TrainingRequest


async def request(
    journal: Journal,
    views: Views,
    asked: TrainingRequest,
    idempotency_key: str | None,
    *,
    owner: str = LOCAL,
) -> Receipt:
    """Raises InvalidError, KeyReusedError, NotFoundError for the dataset, and ConflictError for one that is not built
    or has nothing, and for a name and version that an adapter has already.
    """
    trainings.check(asked)
    id_, request_digest = identify(journal, "training", owner, idempotency_key), digest(asked)
    training = None if idempotency_key is None else await load(views, TRAININGS, id_)
    dataset = await load(views, DATASETS, asked.dataset_id)
    taken = await load(views, ADAPTERS, adapters.adapter_id(asked.adapter_name, asked.adapter_version))

    def requested() -> TrainingRequested:
        trainings.check_dataset(dataset, asked)
        if taken is not None:
            raise ConflictError(
                f"Adapter {asked.adapter_name} {asked.adapter_version} exists; ask for another version of it."
            )
        return TrainingRequested(
            training_id=id_,
            dataset_id=asked.dataset_id,
            method=asked.method,
            adapter_name=asked.adapter_name,
            adapter_version=asked.adapter_version,
            config=asked.config,
            user_id=asked.user_id,
            request_digest=request_digest,
        )

    events = trainings.request(training, request_digest, requested)
    receipt = await append(journal, views, id_, events, seen(TRAININGS, training))
    decide = partial(trainings.request, request_digest=request_digest, requested=requested)
    return await settle(views, TRAININGS, receipt, idempotency_key, decide)


async def cancel(journal: Journal, views: Views, training_id: str) -> Receipt:
    return await transact(
        journal, views, TRAININGS, training_id, lambda training: trainings.cancel(training, training_id)
    )
