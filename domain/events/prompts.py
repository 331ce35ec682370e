from typing import Annotated, Final

from msgspec import Meta, Struct

from domain.events import Event, Identifier, Label
from domain.ports import Topic

TOPIC: Final = Topic("prompts", partitions=4)
MAX_TEXT: Final = 4_000
MAX_INSTRUMENTS: Final = 50
MAX_WORDING: Final = 16_000  # a text with all its attributes
MAX_SECONDS: Final = 3_600.0


class PromptAttributes(Struct, frozen=True, kw_only=True, omit_defaults=True):
    style: Label | None = None
    tempo: Label | None = None
    instrumentation: Annotated[tuple[Label, ...], Meta(max_length=MAX_INSTRUMENTS)] = ()
    mood: Label | None = None
    duration: Annotated[float, Meta(gt=0, le=MAX_SECONDS)] | None = None


class PromptCreated(Event, frozen=True, kw_only=True, tag="PromptCreated"):
    topic = TOPIC.name
    name = "prompt.created"
    prompt_id: Identifier
    text: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
    attributes: PromptAttributes = PromptAttributes()
    user_id: Label | None = None

    @property
    def key(self) -> str:
        return self.prompt_id


EVENTS: Final = (PromptCreated,)
