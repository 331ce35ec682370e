"""The contract as others read it, generated from events, topics and folds; each slice adds what only it can say."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from domain.events import Event, Recorded
from domain.ports import Record

Json: TypeAlias = dict[str, Any]


class Published(Struct, frozen=True, kw_only=True):
    """What a reader in any language keeps of an aggregate, and what tells its transitions apart.

    `state` gives the state as it is published, empty where there is no aggregate; `facts` what a rule may ask of a
    state and an event. Both are put in words by `fields` and `conditions`. `accepted` says whether the state shows that
    a record was accepted; `proposals` are met by every state within reach; `outcomes` is how many verdicts a reader
    remembers; `vectors` are histories by what they show.
    """

    state: Callable[[Any], Json]
    fields: Mapping[str, str]
    facts: Callable[[Any, Any], Json]
    conditions: Mapping[str, str]
    accepted: Callable[[Any, Recorded], bool]
    proposals: Sequence[Event]
    outcomes: int
    vectors: Mapping[str, Sequence[Record]]
