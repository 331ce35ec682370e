from typing import Final

from domain.events import Event, Identifier, Label, ModelId
from domain.ports import Topic

TOPIC: Final = Topic("models", partitions=4)


class ModelActivated(Event, frozen=True, kw_only=True, tag="ModelActivated"):
    """From now on requests that name no model get this one. The studio has one choice, whose id is `default`."""

    topic = TOPIC.name
    name = "model.activated"
    choice_id: Identifier
    model_id: ModelId
    user_id: Label | None = None

    @property
    def key(self) -> str:
        return self.choice_id


EVENTS: Final = (ModelActivated,)
