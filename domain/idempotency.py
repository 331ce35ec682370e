from hashlib import sha256

import msgspec
from msgspec import Struct


def digest(request: Struct) -> str:
    """The same for equal requests: it tells a retry from another request that is sent under the same key."""
    return sha256(msgspec.json.encode(request, order="sorted")).hexdigest()
