from uuid import NAMESPACE_URL, uuid5

from commands.receipt import Receipt
from domain import prompts
from domain.journal import Journal
from domain.ports import Reader
from domain.prompts import PROMPTS, PromptRequest


async def create(journal: Journal, store: Reader, request: PromptRequest, idempotency_key: str | None) -> Receipt:
    """Raises InvalidError, or KeyReusedError when the key named another prompt."""
    prompt_id = journal.new_id() if idempotency_key is None else str(uuid5(NAMESPACE_URL, f"prompt:{idempotency_key}"))
    prompt = (await store.get(PROMPTS, [prompt_id])).get(prompt_id)
    events = prompts.create(prompt, prompt_id, request)
    if not events:
        return Receipt(prompt_id)
    event_id = journal.new_id()
    (position,) = await journal.append(*events, event_id=event_id)
    return Receipt(prompt_id, position, event_id)
