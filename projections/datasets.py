from collections.abc import Sequence
from typing import Final

from domain.datasets import DATASETS
from domain.events import Recorded
from domain.ports import Changes, Reader
from projections.documents import fold_documents

VIEWS: Final = (DATASETS,)


async def fold(store: Reader, batch: Sequence[Recorded]) -> Changes:
    return await fold_documents(store, DATASETS, batch)
