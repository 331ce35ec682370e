"""Where a command's events stand, and which routes wait for what."""

from typing import Final

from domain.ports import Position

# Marks routes that read documents by id alone, which are never behind the log's tail; the others wait for the views.
CURRENT: Final = {"current": True}


def headers(*positions: Position) -> dict[str, str]:
    return {"X-Event-Position": ", ".join(map(str, positions))} if positions else {}
