"""Prompts: what somebody wants to hear."""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct, convert, to_builtins
from msgspec.structs import replace

from domain.errors import Fault, InvalidError, KeyReusedError
from domain.events import PromptAttributes, PromptCreated, Recorded
from domain.ports import View

MAX_TEXT: Final = 4000
MAX_ATTRIBUTE: Final = 200
MAX_INSTRUMENTS: Final = 50


class AttributesRequest(PromptAttributes, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request is held to the names there are; an event may have got new ones since."""


class PromptRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    text: str
    attributes: AttributesRequest = AttributesRequest()
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
    if faults := [*text_faults(request.text, "/text"), *_attribute_faults(request)]:
        raise InvalidError(faults)
    if prompt is not None:
        check_same_request(prompt, request)
        return []
    attributes = _attributes(request)
    return [PromptCreated(prompt_id=prompt_id, text=request.text, attributes=attributes, user_id=request.user_id)]


def check_same_request(prompt: Prompt, request: PromptRequest) -> None:
    if (prompt.text, prompt.attributes, prompt.user_id) != (request.text, _attributes(request), request.user_id):
        raise KeyReusedError("This Idempotency-Key was sent before with another prompt; use a new key for a new one.")


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


def _attributes(request: PromptRequest) -> PromptAttributes:
    return convert(to_builtins(request.attributes), PromptAttributes)


def _attribute_faults(request: PromptRequest) -> Iterator[Fault]:
    attributes = request.attributes
    if attributes.duration is not None and not attributes.duration > 0:
        yield Fault("/attributes/duration", f"The duration must be over 0 s; got {attributes.duration:g} s.")
    if len(attributes.instrumentation) > MAX_INSTRUMENTS:
        detail = f"instrumentation has {len(attributes.instrumentation):,} entries; the limit is {MAX_INSTRUMENTS}."
        yield Fault("/attributes/instrumentation", detail)
    words = {f"attributes/{name}": getattr(attributes, name) for name in ("style", "tempo", "mood")}
    words |= {f"attributes/instrumentation/{at}": name for at, name in enumerate(attributes.instrumentation)}
    for path, word in {**words, "user_id": request.user_id}.items():
        if len(word or "") > MAX_ATTRIBUTE:
            yield Fault(f"/{path}", f"{path} has {len(word):,} characters; the limit is {MAX_ATTRIBUTE:,}.")
