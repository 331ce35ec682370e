"""Answers with audio: whole, in part, or that the client has it."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from litestar import Response
from litestar.exceptions import HTTPException
from litestar.response import Stream
from litestar.status_codes import (
    HTTP_200_OK,
    HTTP_206_PARTIAL_CONTENT,
    HTTP_304_NOT_MODIFIED,
    HTTP_416_REQUESTED_RANGE_NOT_SATISFIABLE,
)

from api.http import ranges
from api.http.ranges import Slice, Unsatisfiable
from api.http.renditions import AudioFile
from domain.errors import NotFoundError, UnavailableError


async def stream(
    asked: Mapping[str, str], file: AudioFile, *, etag: str, file_name: str, media_type: str
) -> Response[Any]:
    """`asked` are the request's headers, of which Range, If-Range and If-None-Match are honoured."""
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": etag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'inline; filename="{file_name}"',
    }
    if ranges.unchanged(asked, etag):
        return Response(None, status_code=HTTP_304_NOT_MODIFIED, headers=headers)
    match ranges.requested(asked, file.size, etag):
        case Unsatisfiable():
            raise HTTPException(
                status_code=HTTP_416_REQUESTED_RANGE_NOT_SATISFIABLE,
                detail=f"The range begins after the end; the file has {file.size:,} bytes.",
                headers={"Content-Range": f"bytes */{file.size}"},
            )
        case Slice(start, length):
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{file.size}"
            status = HTTP_206_PARTIAL_CONTENT
        case None:
            start, length, status = 0, file.size, HTTP_200_OK
    headers["Content-Length"] = str(length)
    chunks = await _begun(file.read(start, length))
    return Stream(chunks, status_code=status, headers=headers, media_type=media_type)


async def _begun(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same, with the first chunk read, while an error can still be sent."""
    try:
        first = await anext(chunks, b"")
    except NotFoundError as error:
        raise UnavailableError(f"The file {error.key!r} has made room for others meanwhile; ask again.") from None

    async def rest() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return rest()
