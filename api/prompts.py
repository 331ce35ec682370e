from typing import Annotated

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody
from litestar.status_codes import HTTP_201_CREATED, HTTP_202_ACCEPTED
from msgspec import Struct

from api import pages, positions
from api.pages import Page
from api.positions import CURRENT
from api.services import Injected, Services
from commands import prompts as commands
from domain.errors import NotFoundError
from domain.events import PromptAttributes
from domain.ports import Query
from domain.prompts import PROMPTS, Prompt, PromptRequest, check_same_request

IdempotencyKey = Annotated[str | None, HeaderParameter(name="Idempotency-Key", min_length=1, max_length=200)]


class PromptBody(Struct, frozen=True, kw_only=True):
    id: str
    text: str
    attributes: PromptAttributes
    user_id: str | None
    created_at: str


@post("/prompts", operation_id="createPrompt", opt=CURRENT, tags=["prompts"])
async def create_prompt(
    services: Injected, data: JSONBody[PromptRequest], idempotency_key: IdempotencyKey = None
) -> Response[PromptBody]:
    """Answers 202 with a Location where the prompt cannot be shown yet."""
    receipt = await commands.create(services.journal, services.views, data, idempotency_key)
    headers = {"Location": f"/prompts/{receipt.id}", **positions.headers(*receipt.positions)}
    if await positions.visible(services, receipt):
        shown = await _load(services, receipt.id)
        check_same_request(shown, data)
        return Response(_body(shown), status_code=HTTP_201_CREATED, headers=headers)
    pending = PromptBody(
        id=receipt.id,
        text=data.text,
        attributes=data.attributes,
        user_id=data.user_id,
        created_at=services.journal.now(),
    )
    return Response(pending, status_code=HTTP_202_ACCEPTED, headers=headers)


@get("/prompts", operation_id="listPrompts", tags=["prompts"])
async def list_prompts(
    services: Injected, limit: FromQuery[int] = 50, offset: FromQuery[int] = 0, cursor: FromQuery[str | None] = None
) -> Page[PromptBody]:
    pages.check(limit, offset)
    query = Query(after=pages.after(cursor), offset=offset, limit=limit + 1)
    found = await services.views.find(PROMPTS, query)
    return Page(
        items=[_body(prompt) for prompt in found[:limit]],
        total=await services.views.count(PROMPTS, query),
        limit=limit,
        offset=offset,
        next_cursor=pages.cursor(found, limit),
    )


@get("/prompts/{prompt_id:str}", operation_id="getPrompt", opt=CURRENT, tags=["prompts"])
async def get_prompt(services: Injected, prompt_id: FromPath[str]) -> PromptBody:
    return _body(await _load(services, prompt_id))


async def _load(services: Services, prompt_id: str) -> Prompt:
    if prompt := (await services.views.get(PROMPTS, [prompt_id])).get(prompt_id):
        return prompt
    raise NotFoundError("prompt", prompt_id)


def _body(prompt: Prompt) -> PromptBody:
    return PromptBody(
        id=prompt.id,
        text=prompt.text,
        attributes=prompt.attributes,
        user_id=prompt.user_id,
        created_at=prompt.created_at,
    )
