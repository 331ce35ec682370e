from commands.transact import LOCAL, Receipt, Views, append, identify, load, read_back, seen
from domain import prompts
from domain.journal import Journal
from domain.prompts import PROMPTS, PromptRequest


async def create(
    journal: Journal, views: Views, request: PromptRequest, idempotency_key: str | None, *, owner: str = LOCAL
) -> Receipt:
    """Raises InvalidError, or KeyReusedError when the key named another prompt."""
    prompt_id = identify(journal, "prompt", owner, idempotency_key)
    prompt = None if idempotency_key is None else await load(views, PROMPTS, prompt_id)
    receipt = await append(journal, views, prompt_id, prompts.create(prompt, prompt_id, request), seen(PROMPTS, prompt))
    if idempotency_key is not None:
        # Another request under the same key may have landed first.
        await read_back(views, receipt.positions)
        prompts.create(await load(views, PROMPTS, prompt_id), prompt_id, request)
    return receipt
