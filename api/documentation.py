"""The documentation at /schema: one page of the studio's own, as those of a CDN stay blank without internet."""

from importlib.resources import files
from typing import Any, Final

from litestar import Request, Router
from litestar.datastructures import CacheControlHeader
from litestar.openapi.plugins import OpenAPIRenderPlugin

# Makes the browser refuse other hosts, whatever the page asks for.
POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Page(OpenAPIRenderPlugin):
    def __init__(self) -> None:
        super().__init__(path="/")
        self.html = files("api").joinpath("documentation.html").read_bytes()

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:  # noqa: ARG002
        return self.html


def router() -> Router:
    return Router(
        "/schema",
        route_handlers=[],
        include_in_schema=False,
        cache_control=CacheControlHeader(no_cache=True),
        response_headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"},
    )
