"""What a read store holds, view by view in one value each, so that two stores can be compared.

Where counters of a topic that erases stand says nothing: the records that moved them on last may be gone.
"""

from hashlib import sha256

import msgspec
from msgspec.structs import replace

from domain.ports import ReadStore
from projections.feedback import STATS
from projections.project import VIEWS


async def digests(store: ReadStore) -> dict[str, str]:
    folded = {view.name: sha256() for view in VIEWS}
    for view in VIEWS:
        async for document in store.scan(view):
            counted = replace(document, position=0) if view is STATS else document
            folded[view.name].update(msgspec.json.encode(counted, order="sorted"))
    return {name: value.hexdigest() for name, value in folded.items()}
