from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import to_builtins
from msgspec.structs import replace

from domain.contract import Json, Published
from domain.contract.records import headed, record
from domain.events.prompts import PromptAttributes, PromptCreated
from domain.ports import Record
from domain.prompts import Prompt

CREATED: Final = PromptCreated(
    prompt_id="prompt-1",
    text="rain on a tin roof",
    attributes=PromptAttributes(mood="calm", instrumentation=("oud",)),
    user_id="user-1",
)


def _state(prompt: Prompt | None) -> Json:
    if prompt is None:
        return {}
    return {
        "id": prompt.id,
        "text": prompt.text,
        "attributes": to_builtins(prompt.attributes),
        "user_id": prompt.user_id,
        "created_at": prompt.created_at,
    }


def _vectors() -> Mapping[str, Sequence[Record]]:
    created = record(0, CREATED)
    return {
        "a prompt is created": [created],
        "a prompt delivered again is the same": [created, created],
        "the first creation holds": [created, record(1, replace(CREATED, text="snow"))],
        "everything else only moves the position": [
            created,
            record(1, CREATED, value=b'{"type":"PromptPraised"}'),
            record(2, CREATED, value=b"{"),
            record(3, CREATED, value=None),
        ],
        "an unknown version stops the reader": [
            created,
            headed(record(1, CREATED), ce_type="text2song.prompt.created.v2"),
        ],
    }


PUBLISHED: Final = Published(
    accepted=lambda prompt, recorded: prompt is not None and prompt.created_at == recorded.time,
    state=_state,
    facts=lambda prompt, _: {"exists": prompt is not None},
    fields={
        "id": "the aggregate's key",
        "text": "what somebody wants to hear",
        "attributes": "style, tempo, instrumentation, mood, duration in seconds, as far as given",
        "user_id": "who wrote it",
        "created_at": "when the first event was accepted",
    },
    conditions={"exists": "whether there is a state, because an event was accepted before"},
    proposals=[
        PromptCreated(prompt_id="prompt-1", text="rain", attributes=PromptAttributes(mood="calm"), user_id="user-1"),
    ],
    outcomes=0,
    vectors=_vectors(),
)
