from collections.abc import Sequence
from typing import Final

from domain.events import Recorded
from domain.models import MODEL_CHOICES
from domain.ports import Changes, Reader
from projections.documents import fold_documents

VIEWS: Final = (MODEL_CHOICES,)


async def fold(store: Reader, batch: Sequence[Recorded]) -> Changes:
    return await fold_documents(store, MODEL_CHOICES, batch)
