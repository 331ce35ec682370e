"""Every setting, from the environment; the command line overrides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from domain.errors import Fault, InvalidError

PREFIX: Final = "TEXT2SONG_"


class Settings(Struct, frozen=True, kw_only=True):
    """Each field is read from `TEXT2SONG_` and its name in capitals.

    `model` is a name from `text2song models list` or the folder of a MusicGen checkpoint; `device` is cpu or cuda,
    by default whichever is there; `lease_seconds` is how long a silent worker keeps its jobs. `log` is kafka://host:port,
    several with commas between; `topic_prefix` begins the name of each topic there. `instance` tells processes of one
    role apart, and stays the same when one starts again.
    """

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    data: Annotated[str, Meta(min_length=1)] = "text2song-data"
    model: Annotated[str, Meta(min_length=1)] = "text2song/wiring-noise"
    device: Annotated[str, Meta(pattern="^(cpu|mps|cuda(:[0-9]+)?)$")] | None = None
    lease_seconds: Annotated[float, Meta(ge=1, le=3600)] = 6.0
    log: Annotated[str, Meta(pattern="^kafka://.+")] = "kafka://127.0.0.1:9092"
    topic_prefix: Annotated[str, Meta(pattern="^[a-zA-Z0-9._-]*$")] = "text2song."
    instance: Annotated[str, Meta(min_length=1)] = "1"

    @property
    def folder(self) -> Path:
        return Path(self.data).expanduser()


def from_environment(environment: Mapping[str, str], **overrides: object) -> Settings:
    """Raises InvalidError naming the variable whose value does not fit; overrides that are None count as not given."""
    read = {
        name: environment[PREFIX + name.upper()]
        for name in Settings.__struct_fields__
        if PREFIX + name.upper() in environment
    }
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return msgspec.convert({**read, **given}, Settings, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        name = path.rstrip("`")
        detail = f"{PREFIX}{name.upper()} is {read.get(name, given.get(name))!r}: {message}."
        raise InvalidError([Fault(f"/{name}", detail)]) from None
