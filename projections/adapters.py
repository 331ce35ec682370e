from collections.abc import Sequence
from typing import Final

from domain.adapters import ADAPTERS
from domain.events import Recorded
from domain.ports import Changes, Reader
from projections.documents import fold_documents

VIEWS: Final = (ADAPTERS,)


async def fold(store: Reader, batch: Sequence[Recorded]) -> Changes:
    return await fold_documents(store, ADAPTERS, batch)
