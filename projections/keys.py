from collections.abc import Sequence
from typing import Final

from domain.events import Recorded
from domain.keys import KEYS
from domain.ports import Changes, Reader
from projections.documents import fold_documents

VIEWS: Final = (KEYS,)


async def fold(store: Reader, batch: Sequence[Recorded]) -> Changes:
    return await fold_documents(store, KEYS, batch)
