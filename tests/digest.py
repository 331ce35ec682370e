"""What a read store holds, view by view in one value each, so that two stores can be compared."""

from hashlib import sha256

import msgspec

from domain.ports import ReadStore
from projections.project import VIEWS


async def digests(store: ReadStore) -> dict[str, str]:
    folded = {view.name: sha256() for view in VIEWS}
    for view in VIEWS:
        async for document in store.scan(view):
            folded[view.name].update(msgspec.json.encode(document, order="sorted"))
    return {name: value.hexdigest() for name, value in folded.items()}
