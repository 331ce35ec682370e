from collections.abc import Sequence
from typing import Any

from domain.events import Recorded
from domain.ports import Document, ReadStore, View
from domain.prompts import PROMPTS, evolve


async def fold(store: ReadStore, batch: Sequence[Recorded]) -> list[tuple[View[Any], Document]]:
    prompts = await store.get(PROMPTS, list({recorded.key for recorded in batch}))
    for recorded in batch:
        if prompt := evolve(prompts.get(recorded.key), recorded):
            prompts[recorded.key] = prompt
    return [(PROMPTS, prompt) for prompt in prompts.values()]
