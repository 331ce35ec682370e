"""The studio as a page: files of this package, served with a policy that lets them reach nothing but the studio."""

import gzip
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final

from litestar import Request, Response, get
from litestar.params import FromPath
from litestar.status_codes import HTTP_200_OK, HTTP_304_NOT_MODIFIED
from msgspec import Struct

from api.http import ranges
from api.http.access import OPEN
from domain.errors import NotFoundError

TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
INDEX: Final = "index.html"


class File(Struct, frozen=True):
    content: bytes
    gzipped: bytes
    etag: str
    media_type: str


def _read() -> dict[str, File]:
    found = {}
    for file in files("api").joinpath("studio").iterdir():
        kind = TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            content = file.read_bytes()
            etag = f'"{sha256(content).hexdigest()[:16]}"'
            found[file.name] = File(content, gzip.compress(content, mtime=0), etag, kind)
    return found


FILES: Final = _read()


@get("/studio", opt=OPEN, include_in_schema=False)
async def studio_page(request: Request[Any, Any, Any]) -> Response[bytes]:
    return _answer(request, FILES[INDEX])


@get("/studio/{name:str}", opt=OPEN, include_in_schema=False)
async def studio_file(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
    if name not in FILES:
        raise NotFoundError("file of the page", name)
    return _answer(request, FILES[name])


ROUTES: Final = (studio_page, studio_file)


def _answer(request: Request[Any, Any, Any], file: File) -> Response[bytes]:
    headers = {
        "ETag": file.etag,
        "Cache-Control": "no-cache",
        "Vary": "Accept-Encoding",
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    if ranges.unchanged(request.headers, file.etag):
        return Response(b"", status_code=HTTP_304_NOT_MODIFIED, headers=headers, media_type=file.media_type)
    content = file.content
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        headers["Content-Encoding"] = "gzip"
        content = file.gzipped
    return Response(content, status_code=HTTP_200_OK, headers=headers, media_type=f"{file.media_type}; charset=utf-8")
