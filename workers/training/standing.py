"""What a checkpoint's file says of itself, readable without torch."""

from typing import Final

import msgspec
from msgspec import Struct

FILE: Final = "checkpoint.safetensors"
ABOUT: Final = "training"
LENGTH: Final = 8  # bytes of a safetensors file in front of its header, which say how long that is


class Standing(Struct, frozen=True, kw_only=True):
    """`made_of` is the digest of configuration, data and base model. `step` steps are done.

    `curve` has a point a step, `best` the figures of the best evaluation, at
    `best_step`, and `memory` what the method keeps.
    """

    made_of: str
    step: int
    curve: list[dict[str, float]]
    best: dict[str, float] | None = None
    best_step: int = 0
    without_better: int = 0
    memory: dict[str, float] = {}


class Header(Struct):
    metadata: dict[str, str] = msgspec.field(name="__metadata__")


def standing_of(content: bytes) -> Standing:
    """Raises ValueError for bytes that are no checkpoint."""
    length = int.from_bytes(content[:LENGTH], "little")
    header = msgspec.json.decode(content[LENGTH : LENGTH + length], type=Header)
    if ABOUT not in header.metadata:
        raise ValueError("The file is no checkpoint of a training.")
    return msgspec.json.decode(header.metadata[ABOUT], type=Standing)
