"""What a turn of the loop has done so far, in a file of its folder."""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from text2song.client import ClientError
from workers.training.config import Method

FILE: Final = "turn.json"
LOCK: Final = "turn.lock"
FORMAT: Final = "text2song-loop/1"


class Options(Struct, frozen=True, kw_only=True):
    """What a turn was begun with. `prompts` is empty for the built-in ones, `simulate` None for a person."""

    pairs: int
    duration: float
    method: Method
    simulate: str | None
    errors: float
    test_pairs: int
    seed: int
    steps: int | None
    user: str
    prompts: tuple[str, ...]


class Judgement(Struct, frozen=True, kw_only=True):
    """What is sent as feedback on a pair, written down before it is sent; `body` None leaves the pair out."""

    body: dict[str, Any] | None
    is_sent: bool = False

    @property
    def is_decided(self) -> bool:
        return self.body is not None and self.body["verdict"] == "preferred"


class Turn(Struct, kw_only=True):
    """`tries` counts the datasets and trainings that failed; `ended` says when each step ended, ISO 8601."""

    format: str = FORMAT
    id: str
    options: Options
    jobs: list[str] = []
    judged: dict[int, Judgement] = {}
    dataset_id: str | None = None
    training_id: str | None = None
    adapter_id: str | None = None
    ab_test_id: str | None = None
    tries: int = 0
    ended: dict[str, str] = {}

    @classmethod
    def begun(cls, options: Options) -> Self:
        return cls(id=secrets.token_hex(4), options=options)

    @property
    def name(self) -> str:
        """Of its collection, its dataset, its adapter and its test."""
        return f"loop-{self.id}"

    @property
    def decided(self) -> int:
        return sum(each.is_decided for each in self.judged.values())

    def key(self, *parts: object) -> str:
        """The same request of the turn has the same one, whichever process sends it."""
        return "-".join([self.name, *map(str, parts)])


class Folder:
    """A turn's folder. One process at a time works in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises ClientError for a folder that cannot be used or that another process holds."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / LOCK).open("w")
        except OSError as error:
            raise self._unusable(error) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ClientError(
                    f"Another text2song loop works in {self.path}. Wait for it, or name another with --folder."
                ) from None
            yield

    def read(self) -> Turn | None:
        """Raises ClientError for a file that is not a turn's."""
        try:
            turn = msgspec.json.decode((self.path / FILE).read_bytes(), type=Turn)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ClientError(
                f"{self.path / FILE} cannot be read: {error}. Name another folder with --folder."
            ) from None
        if turn.format != FORMAT:
            raise ClientError(
                f"{self.path / FILE} is of the format {turn.format!r}; this version of text2song reads {FORMAT}. Go on "
                "with the version that wrote it, or begin another turn with --folder."
            )
        return turn

    def write(self, turn: Turn) -> None:
        """The whole file or none."""
        partial = self.path / f".{FILE}.part"
        try:
            with partial.open("wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(turn), indent=1))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path / FILE)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> ClientError:
        return ClientError(f"{self.path} cannot be written to: {error.strerror}. Name another folder with --folder.")


def gone_on(turn: Turn, given: dict[str, Any], folder: Path) -> Turn:
    """The turn with what may change while it runs: more pairs, until there is a dataset. Raises ClientError."""
    before = msgspec.structs.asdict(turn.options)
    changed = {name: value for name, value in given.items() if value != before[name]}
    pairs = changed.pop("pairs", before["pairs"])
    if changed:
        name = min(changed)
        raise ClientError(
            f"The turn in {folder} was begun with another --{name.replace('_', '-')}: {_said(before[name])}, not "
            f"{_said(changed[name])}. Leave the option out to go on with it, or begin another turn with --folder."
        )
    if pairs != before["pairs"] and (turn.dataset_id is not None or pairs < len(turn.jobs)):
        why = f"{len(turn.jobs)} are asked for already" if turn.dataset_id is None else "its dataset is made already"
        raise ClientError(
            f"The turn in {folder} has {before['pairs']} pairs, and {why}: --pairs {pairs} is too late. Leave it out, "
            "or begin another turn with --folder."
        )
    turn.options = replace(turn.options, pairs=pairs)
    return turn


def _said(value: Any) -> str:
    return f"{len(value)} prompts" if isinstance(value, tuple) else "none" if value is None else str(value)
