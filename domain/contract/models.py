from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace

from domain.contract import Json, Published
from domain.contract.records import headed, record
from domain.events.models import ModelActivated
from domain.models import CHOICE, ModelChoice
from domain.ports import Record

ACTIVATED: Final = ModelActivated(choice_id=CHOICE, model_id="facebook/musicgen-small")


def _state(choice: ModelChoice | None) -> Json:
    if choice is None:
        return {}
    return {
        "id": choice.id,
        "model_id": choice.model_id,
        "created_at": choice.created_at,
        "updated_at": choice.updated_at,
    }


def _facts(choice: ModelChoice | None, _: Any) -> Json:
    return {"exists": choice is not None}


def _vectors() -> Mapping[str, Sequence[Record]]:
    first, second = record(0, ACTIVATED), record(1, replace(ACTIVATED, model_id="text2song/musicgen-nano"))
    return {
        "a model is made the default": [first],
        "the last one holds": [first, second],
        "delivered again it is the same": [first, second, first, second],
        "everything else only moves the position": [
            first,
            record(1, ACTIVATED, value=b'{"type":"ModelPraised"}'),
            record(2, ACTIVATED, value=b"{"),
            record(3, ACTIVATED, value=None),
        ],
        "an unknown version stops the reader": [first, headed(second, ce_type="text2song.model.activated.v2")],
    }


PUBLISHED: Final = Published(
    accepted=lambda choice, recorded: choice is not None and choice.updated_at == recorded.time,
    state=_state,
    facts=_facts,
    fields={
        "id": "the aggregate's key",
        "model_id": "the model that requests get which name none",
        "created_at": "when one was chosen first",
        "updated_at": "when one was chosen last",
    },
    conditions={"exists": "whether there is a state"},
    proposals=[ACTIVATED, replace(ACTIVATED, model_id="text2song/musicgen-nano")],
    outcomes=0,
    vectors=_vectors(),
)
