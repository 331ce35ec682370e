from typing import Any, Final

from litestar import get

from api.http.access import OPEN
from domain.contract import document


@get("/asyncapi.json", operation_id="getAsyncApi", opt=OPEN, tags=["contract"], sync_to_thread=True)
def get_asyncapi() -> dict[str, Any]:
    """The topics and their events for other programs, as AsyncAPI 3.0, with what makes a state of them."""
    return document.asyncapi()


ROUTES: Final = (get_asyncapi,)
