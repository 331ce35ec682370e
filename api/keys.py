"""API keys: made, listed, revoked."""

from typing import Final

from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.status_codes import HTTP_201_CREATED
from msgspec.structs import asdict

from api.http import pages, positions
from api.http.access import ADMIN
from api.http.pages import Page
from api.http.positions import CURRENT
from api.http.services import Injected
from commands import keys as commands
from commands.transact import begun, existing, read_back
from domain.keys import KEYS, KeyBody, KeyRequest, NewKey, body


@post("/keys", operation_id="createKey", opt={**CURRENT, **ADMIN}, status_code=HTTP_201_CREATED, tags=["keys"])
async def create_key(services: Injected, data: JSONBody[KeyRequest]) -> Response[NewKey]:
    """Makes a key; its text is in this answer and nowhere else. The first key of a studio closes it to requests without
    one, in every API process within a second.
    """
    receipt, text = await commands.create(services.journal, services.views, data)
    # Its text is in no later answer, so this one comes even where the key cannot be read back yet.
    key = await begun(services.journal, services.views, KEYS, receipt, "key")
    headers = {"Cache-Control": "no-store", **positions.headers(*receipt.positions)}
    return Response(
        NewKey(key=text, **asdict(body(key, services.journal.now()))), status_code=HTTP_201_CREATED, headers=headers
    )


@get("/keys", operation_id="listKeys", opt=ADMIN, tags=["keys"])
async def list_keys(
    services: Injected,
    *,
    owner: FromQuery[str | None] = None,
    limit: FromQuery[int] = 50,
    offset: FromQuery[int] = 0,
    cursor: FromQuery[str | None] = None,
) -> Page[KeyBody]:
    """Newest first, revoked ones too."""
    now, query = services.journal.now(), pages.query(limit, offset, cursor, equal={"owner": owner})
    return await pages.page(services.views, KEYS, query, lambda key: body(key, now))


@delete("/keys/{key_id:str}", operation_id="revokeKey", opt={**CURRENT, **ADMIN}, status_code=200, tags=["keys"])
async def revoke_key(services: Injected, key_id: FromPath[str]) -> Response[KeyBody]:
    """It opens nothing any more, in every API process within a second, and what streams by it ends. Revoking it twice
    changes nothing.
    """
    receipt = await commands.revoke(services.journal, services.views, key_id)
    await read_back(services.views, receipt.positions)
    key = await existing(services.views, KEYS, key_id, "key")
    return Response(body(key, services.journal.now()), headers=positions.headers(*receipt.positions))


ROUTES: Final = (create_key, list_keys, revoke_key)
