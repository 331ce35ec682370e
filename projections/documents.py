"""The view that holds each aggregate of a topic as it is."""

from collections.abc import Callable, Sequence
from typing import Any

from domain.aggregates import AGGREGATES
from domain.events import Recorded
from domain.ports import Changes, D, Erasure, Reader, View


async def fold_documents(
    store: Reader,
    view: View[D],
    batch: Sequence[Recorded],
    noted: Callable[[Recorded, D | None, D | None], Any] = lambda *_: None,
) -> Changes:
    """`view` bears the topic's name. `noted` is told of each record, and of the document before and after it."""
    aggregate = AGGREGATES[view.name]
    documents: dict[str, D] = await store.get(view, list({recorded.key for recorded in batch}))
    erased: dict[str, Erasure] = {}
    for recorded in batch:
        key = recorded.key
        before = documents.get(key)
        after = aggregate.apply(before, recorded)
        noted(recorded, before, after)
        if after is not None:
            documents[key] = after
            erased.pop(key, None)
        elif before is not None:
            del documents[key]
            erased[key] = Erasure(view, key, recorded.position.offset)
    return Changes([(view, document) for document in documents.values()], list(erased.values()))
