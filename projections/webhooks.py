from collections.abc import Sequence
from typing import Final

from domain.events import Recorded
from domain.ports import Changes, Reader
from domain.webhooks import WEBHOOKS
from projections.documents import fold_documents

VIEWS: Final = (WEBHOOKS,)


async def fold(store: Reader, batch: Sequence[Recorded]) -> Changes:
    return await fold_documents(store, WEBHOOKS, batch)
