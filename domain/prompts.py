"""Prompts: what somebody wants to hear."""

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from domain.errors import Fault, InvalidError, KeyReusedError
from domain.events import PromptAttributes, PromptCreated, Recorded
from domain.ports import View

MAX_TEXT: Final = 4000
MAX_ATTRIBUTE: Final = 200


class PromptRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    text: str
    attributes: PromptAttributes = PromptAttributes()
    user_id: str | None = None


class Prompt(Struct, frozen=True, kw_only=True):
    id: str
    text: str
    attributes: PromptAttributes
    user_id: str | None
    created_at: str
    position: int


PROMPTS: Final = View("prompts", Prompt)


def text_faults(text: str, pointer: str) -> list[Fault]:
    if not text.strip():
        return [Fault(pointer, "The prompt is empty; say what you want to hear.")]
    if len(text) > MAX_TEXT:
        return [Fault(pointer, f"The prompt has {len(text):,} characters; the limit is {MAX_TEXT:,}.")]
    return []


def create(prompt: Prompt | None, prompt_id: str, request: PromptRequest) -> list[PromptCreated]:
    """Raises InvalidError for a text or attribute out of bounds, and KeyReusedError when the id is another prompt's."""
    faults = text_faults(request.text, "/text")
    attributes = request.attributes
    if attributes.duration is not None and not attributes.duration > 0:
        faults.append(Fault("/attributes/duration", f"The duration must be over 0 s; got {attributes.duration:g} s."))
    for name in ("style", "tempo", "mood"):
        value = getattr(attributes, name) or ""
        if len(value) > MAX_ATTRIBUTE:
            detail = f"{name} has {len(value):,} characters; the limit is {MAX_ATTRIBUTE:,}."
            faults.append(Fault(f"/attributes/{name}", detail))
    if faults:
        raise InvalidError(faults)
    created = PromptCreated(prompt_id=prompt_id, text=request.text, attributes=attributes, user_id=request.user_id)
    if prompt is None:
        return [created]
    if (prompt.text, prompt.attributes, prompt.user_id) != (created.text, created.attributes, created.user_id):
        raise KeyReusedError("This Idempotency-Key was sent before with another prompt; use a new key for a new one.")
    return []


def evolve(prompt: Prompt | None, recorded: Recorded) -> Prompt | None:
    match recorded.event:
        case PromptCreated() as event if prompt is None:
            return Prompt(
                id=event.prompt_id,
                text=event.text,
                attributes=event.attributes,
                user_id=event.user_id,
                created_at=recorded.time,
                position=recorded.position.offset,
            )
    if prompt is None or recorded.position.offset <= prompt.position:
        return prompt
    return replace(prompt, position=recorded.position.offset)
