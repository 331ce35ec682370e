"""Files that a command sends along with its requests."""

import asyncio
from pathlib import Path
from typing import Any

from text2song.client import AsyncStudio, ClientError


async def with_melody(client: AsyncStudio, request: dict[str, Any]) -> dict[str, Any]:
    """The request with the id of its melody in place of a file, which is uploaded. Raises ClientError."""
    given = request.get("melody_from")
    if given is None:
        return request
    path = await asyncio.to_thread(_file, given)
    return request if path is None else request | {"melody_from": (await client.upload_melody(path)).id}


def _file(given: str) -> Path | None:
    path = Path(given)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise ClientError(f"There is no file {given}. Give one with the melody, or the id of a sample or a melody.")
    return None
