from typing import Annotated, Final

from litestar import Response, get, post
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody
from litestar.status_codes import HTTP_201_CREATED, HTTP_202_ACCEPTED
from msgspec import Struct, convert
from msgspec.structs import asdict

from api.http import pages, positions
from api.http.pages import Page
from api.http.positions import CURRENT
from api.http.services import Injected
from commands import prompts as commands
from commands.transact import existing
from domain.events.prompts import PromptAttributes
from domain.prompts import PROMPTS, Prompt, PromptRequest

IdempotencyKey = Annotated[str | None, HeaderParameter(name="Idempotency-Key", min_length=1, max_length=200)]


class PromptBody(Struct, frozen=True, kw_only=True):
    id: str
    text: str
    attributes: PromptAttributes
    user_id: str | None
    created_at: str


class Reading(Struct, frozen=True, kw_only=True):
    warnings: list[str]


@post("/prompts", operation_id="createPrompt", opt=CURRENT, tags=["prompts"])
async def create_prompt(
    services: Injected, data: JSONBody[PromptRequest], idempotency_key: IdempotencyKey = None
) -> Response[PromptBody]:
    """Answers 202 with a Location where the prompt cannot be shown yet."""
    data, owner = services.caller.signed(data), services.caller.idempotency_owner
    receipt = await commands.create(services.journal, services.views, data, idempotency_key, owner=owner)
    headers = {"Location": f"/prompts/{receipt.id}", **positions.headers(*receipt.positions)}
    if await services.views.show(receipt.positions):
        shown = _body(await existing(services.views, PROMPTS, receipt.id, "prompt"))
        return Response(shown, status_code=HTTP_201_CREATED, headers=headers)
    fields = asdict(data) | {"id": receipt.id, "created_at": services.journal.now()}
    pending = convert(fields, PromptBody, from_attributes=True)
    return Response(pending, status_code=HTTP_202_ACCEPTED, headers=headers)


@get("/prompts", operation_id="listPrompts", tags=["prompts"])
async def list_prompts(
    services: Injected, limit: FromQuery[int] = 50, offset: FromQuery[int] = 0, cursor: FromQuery[str | None] = None
) -> Page[PromptBody]:
    return await pages.page(services.views, PROMPTS, pages.query(limit, offset, cursor), _body)


@get("/prompts/reading", operation_id="readPrompt", tags=["prompts"])
async def read_prompt(services: Injected, text: FromQuery[str], model_id: FromQuery[str | None] = None) -> Reading:
    """What a job of this text would be warned of: words that the model does not know, and what it leaves out."""
    models = await services.models()
    model = models.usable(model_id)
    return Reading(warnings=models.warnings(model, text))


@get("/prompts/{prompt_id:str}", operation_id="getPrompt", opt=CURRENT, tags=["prompts"])
async def get_prompt(services: Injected, prompt_id: FromPath[str]) -> PromptBody:
    return _body(await existing(services.views, PROMPTS, prompt_id, "prompt"))


ROUTES: Final = (create_prompt, list_prompts, read_prompt, get_prompt)


def _body(prompt: Prompt) -> PromptBody:
    return convert(prompt, PromptBody, from_attributes=True)
