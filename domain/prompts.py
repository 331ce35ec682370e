"""Prompts: what somebody wants to hear."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Annotated, Final
from uuid import NAMESPACE_URL, uuid5

from msgspec import Meta, Struct, convert
from msgspec.structs import replace

from domain.errors import Fault, InvalidError, KeyReusedError, plain
from domain.events import MAX_LABEL, Recorded
from domain.events.prompts import MAX_INSTRUMENTS, MAX_SECONDS, MAX_TEXT, PromptAttributes, PromptCreated
from domain.ports import View

CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
BLANKS: Final = "\u115f\u1160\u2800\u3164\uffa0"  # letters and signs without ink


class AttributesRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    style: str | None = None
    tempo: str | None = None
    instrumentation: tuple[str, ...] = ()
    mood: str | None = None
    duration: float | None = None


class PromptRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    text: Annotated[str, Meta(examples=["slow blues, brushed drums"])]
    attributes: AttributesRequest = AttributesRequest()
    user_id: str | None = None


class Prompt(Struct, frozen=True, kw_only=True):
    id: str
    text: str
    attributes: PromptAttributes
    user_id: str | None
    created_at: str
    partition: int
    position: int


PROMPTS: Final = View("prompts", Prompt, fields=lambda prompt: {"user_id": prompt.user_id}, filters=("user_id",))


def own_id(job_id: str) -> str:
    """The id of the prompt that came with a job, as its text."""
    return str(uuid5(NAMESPACE_URL, f"prompt of job:{job_id}"))


def text_faults(text: str, pointer: str) -> list[Fault]:
    if not any(is_visible(character) for character in text):
        return [Fault(pointer, "The prompt is empty; say what you want to hear.")]
    if faults := control_faults(text, pointer, " of the prompt"):
        return faults
    if len(text) > MAX_TEXT:
        return [Fault(pointer, f"The prompt has {len(text):,} characters; the limit is {MAX_TEXT:,}.")]
    return []


def control_faults(text: str, pointer: str, of: str = "") -> list[Fault]:
    """At most one: of the first control character. `of` says whose character it is, in front of the verb."""
    if (found := CONTROL.search(text)) is None:
        return []
    detail = f"Character {found.start() + 1:,}{of} is U+{ord(found[0]):04X}, which is no text; take it out."
    return [Fault(pointer, detail)]


def is_visible(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNPSM" and character not in BLANKS


def create(prompt: Prompt | None, prompt_id: str, request: PromptRequest) -> list[PromptCreated]:
    """Raises InvalidError for a text or attribute out of bounds, and KeyReusedError when the id is another prompt's."""
    if faults := [*text_faults(request.text, "/text"), *_attribute_faults(request)]:
        raise InvalidError(faults)
    attributes = convert(request.attributes, PromptAttributes, from_attributes=True)
    if prompt is not None:
        if (prompt.text, prompt.attributes, prompt.user_id) != (request.text, attributes, request.user_id):
            raise KeyReusedError(
                "This Idempotency-Key was sent before with another prompt; use a new key for a new one."
            )
        return []
    return [PromptCreated(prompt_id=prompt_id, text=request.text, attributes=attributes, user_id=request.user_id)]


def evolve(prompt: Prompt | None, recorded: Recorded) -> Prompt | None:
    match recorded.event:
        case PromptCreated() as event if prompt is None:
            return Prompt(
                id=event.prompt_id,
                text=event.text,
                attributes=event.attributes,
                user_id=event.user_id,
                created_at=recorded.time,
                partition=recorded.position.partition,
                position=recorded.position.offset,
            )
    if prompt is None or recorded.position.offset <= prompt.position:
        return prompt
    return replace(prompt, position=recorded.position.offset)


def _attribute_faults(request: PromptRequest) -> Iterator[Fault]:
    attributes = request.attributes
    if attributes.duration is not None and not 0 < attributes.duration <= MAX_SECONDS:
        detail = (
            f"The duration is {plain(attributes.duration)} s; it must be over 0 s and at most {plain(MAX_SECONDS)} s."
        )
        yield Fault("/attributes/duration", detail)
    if len(attributes.instrumentation) > MAX_INSTRUMENTS:
        detail = f"instrumentation has {len(attributes.instrumentation):,} entries; the limit is {MAX_INSTRUMENTS}."
        yield Fault("/attributes/instrumentation", detail)
    words = {f"attributes/{name}": getattr(attributes, name) for name in ("style", "tempo", "mood")}
    words |= {f"attributes/instrumentation/{at}": name for at, name in enumerate(attributes.instrumentation)}
    for path, word in {**words, "user_id": request.user_id}.items():
        if len(word or "") > MAX_LABEL:
            yield Fault(f"/{path}", f"{path} has {len(word):,} characters; the limit is {MAX_LABEL:,}.")
