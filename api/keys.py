"""API keys: made, listed, revoked."""

from typing import Final

from litestar import Response, delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody
from litestar.status_codes import HTTP_201_CREATED
from msgspec import Struct
from msgspec.structs import asdict

from api.http import pages, positions
from api.http.access import ADMIN
from api.http.pages import Page
from api.http.positions import CURRENT
from api.http.services import Injected
from commands import keys as commands
from commands.transact import existing, read_back
from domain.events.keys import Scope
from domain.keys import KEYS, Key, KeyRequest


class KeyBody(Struct, frozen=True, kw_only=True):
    """`is_valid` says whether it opens anything now."""

    id: str
    owner: str
    scopes: list[Scope]
    label: str
    ab_test_id: str | None
    is_valid: bool
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class NewKey(KeyBody, frozen=True, kw_only=True):
    """`key` is the text to send, which is shown this once."""

    key: str


@post("/keys", operation_id="createKey", opt={**CURRENT, **ADMIN}, status_code=HTTP_201_CREATED, tags=["keys"])
async def create_key(services: Injected, data: JSONBody[KeyRequest]) -> Response[NewKey]:
    """Makes a key; its text is in this answer and nowhere else. The first key of a studio closes it to requests without
    one, in every API process within a second.
    """
    receipt, text = await commands.create(services.journal, services.views, data)
    await read_back(services.views, receipt.positions)
    key = await existing(services.views, KEYS, receipt.id, "key")
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


def body(key: Key, now: str) -> KeyBody:
    request = key.request
    return KeyBody(
        id=key.id,
        owner=request.owner,
        scopes=list(request.scopes),
        label=request.label,
        ab_test_id=request.ab_test_id,
        is_valid=key.is_valid(now),
        created_at=key.created_at,
        expires_at=request.expires_at,
        revoked_at=key.revoked_at,
    )
