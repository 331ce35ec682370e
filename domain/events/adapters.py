from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct, field

from domain.events import END, NAME, Event, Identifier, Label, ModelId, Sha256
from domain.events.jobs import AdapterFolder
from domain.ports import Topic

TOPIC: Final = Topic("adapters", partitions=4)
MAX_NAME: Final = 100
MAX_DESCRIPTION: Final = 4_000
MAX_ENTRIES: Final = 100
MAX_TEXT: Final = 1_000
LARGEST: Final = 1e15  # of a number in `training_config` and `metrics`
NAME_FORM: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
# Major, minor and patch, and what may follow for a version that comes before it, such as 1.2.0-rc.1.
VERSION_FORM: Final = (
    r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"
)
AdapterName: TypeAlias = Annotated[str, Meta(pattern=f"^{NAME_FORM}{END}", max_length=MAX_NAME)]
Version: TypeAlias = Annotated[str, Meta(pattern=f"^{VERSION_FORM}{END}", max_length=MAX_NAME)]
Description: TypeAlias = Annotated[str, Meta(max_length=MAX_DESCRIPTION)]
Number: TypeAlias = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Text: TypeAlias = Annotated[str, Meta(max_length=MAX_TEXT)]
Size: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]


class AdapterFile(Struct, frozen=True, kw_only=True):
    name: Annotated[str, Meta(pattern=f"^{NAME}{END}", max_length=200)]
    size: Size
    sha256: Sha256


class AdapterEvent(Event, frozen=True, kw_only=True):
    topic = TOPIC.name
    adapter_id: Identifier

    @property
    def key(self) -> str:
        return self.adapter_id


class AdapterRegistered(AdapterEvent, frozen=True, kw_only=True, tag="AdapterRegistered"):
    """The files are checked and stored below `storage_path` when this is appended.

    `adapter_id` is the UUIDv5, in the namespace of URLs, of `adapter:{adapter_name}:{adapter_version}`, so that a
    version of a name is registered once. `sha256` is that of the files' list, in the form of `sha256sum`: a line for
    each file, by name, of its digest, two spaces, its name and a line feed. `rank` is the largest of its matrices.
    """

    name = "adapter.registered"
    adapter_name: AdapterName
    adapter_version: Version
    base_model: ModelId
    rank: Annotated[int, Meta(ge=1, le=1_000_000)]
    storage_path: AdapterFolder
    size: Size
    sha256: Sha256
    files: Annotated[tuple[AdapterFile, ...], Meta(min_length=1, max_length=10)]
    base_revision: Label | None = None
    description: Description = ""
    training_dataset_id: Identifier | None = None
    training_id: Identifier | None = None
    training_config: Annotated[dict[Label, Text | Number | bool | None], Meta(max_length=MAX_ENTRIES)] = field(
        default_factory=dict
    )
    metrics: Annotated[dict[Label, Number], Meta(max_length=MAX_ENTRIES)] = field(default_factory=dict)
    user_id: Label | None = None


class AdapterActivated(AdapterEvent, frozen=True, kw_only=True, tag="AdapterActivated"):
    """From now on it may be asked for. So it may after its registration."""

    name = "adapter.activated"


class AdapterDeactivated(AdapterEvent, frozen=True, kw_only=True, tag="AdapterDeactivated"):
    """From now on it may not be asked for. Jobs that were accepted before go on with it."""

    name = "adapter.deactivated"


class AdapterDescribed(AdapterEvent, frozen=True, kw_only=True, tag="AdapterDescribed"):
    name = "adapter.described"
    description: Description


EVENTS: Final = (AdapterRegistered, AdapterActivated, AdapterDeactivated, AdapterDescribed)
