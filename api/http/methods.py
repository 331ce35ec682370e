"""The methods that an address answers to, whichever of its routes is asked."""

from typing import Any

from litestar import Request, Response
from litestar.routes import HTTPRoute
from litestar.status_codes import HTTP_204_NO_CONTENT


def options(request: Request[Any, Any, Any]) -> Response[None]:
    """Litestar's own answer knows of one route alone, and each method of an address has its own."""
    path = request.scope["path_template"]
    routes = (route for route in request.app.routes if isinstance(route, HTTPRoute) and route.path_format == path)
    methods = {"OPTIONS", *(method for route in routes for method in route.methods)}
    allowed = methods | ({"HEAD"} if "GET" in methods else set())
    return Response(None, status_code=HTTP_204_NO_CONTENT, headers={"Allow": ", ".join(sorted(allowed))})
