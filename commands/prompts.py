from uuid import NAMESPACE_URL, uuid5

from commands.receipt import Receipt
from domain import prompts
from domain.journal import Journal
from domain.ports import Reader
from domain.prompts import PROMPTS, PromptRequest


async def create(journal: Journal, store: Reader, request: PromptRequest, idempotency_key: str | None) -> Receipt:
    """Raises InvalidError, or KeyReusedError when the key named another prompt."""
    if idempotency_key is None:
        prompt_id, prompt = journal.new_id(), None
    else:
        prompt_id = str(uuid5(NAMESPACE_URL, f"prompt:{idempotency_key}"))
        prompt = (await store.get(PROMPTS, [prompt_id])).get(prompt_id)
    events = prompts.create(prompt, prompt_id, request)
    if not events:
        return Receipt(prompt_id)
    event_id = journal.new_id()
    return Receipt(prompt_id, tuple(await journal.append(*events, event_id=event_id)), event_id)
