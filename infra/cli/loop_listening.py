"""Who listens in a turn of the loop: a person at a terminal, or a simulated listener."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from infra.cli import listen, pairs
from infra.cli.console import Terminal
from infra.cli.keyboard import Keyboard
from infra.cli.listener import Listener
from infra.cli.player import Clip, Player
from text2song.client import AsyncStudio, RefusedError


class Two(Struct, frozen=True, kw_only=True):
    """Two samples of one prompt; `words` say which pair it is."""

    number: int
    words: str
    first: str
    second: str
    duration: float


# The feedback on a pair without its user, or None where the listener stops.
Compare: TypeAlias = Callable[[Two], Awaitable[dict[str, Any] | None]]
Counted: TypeAlias = Callable[[int, int], None]  # how many votes were cast, of how many


class Judge(Protocol):
    def listening(self) -> AbstractAsyncContextManager[Compare]: ...

    async def vote(self, path: str, voter: str, counted: Counted) -> None:
        """On the trials of the blind test at `path`, as long as there are any or until the listener stops."""


class Person:
    def __init__(self, terminal: Terminal, client: AsyncStudio, fd: int) -> None:
        self._terminal = terminal
        self._client = client
        self._fd = fd

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Compare]:
        self._terminal.tell(pairs.LEGEND)
        with Keyboard(self._fd) as keys:
            async with Player(self._terminal, self._client) as player:

                async def compare(two: Two) -> dict[str, Any] | None:
                    left, right = (
                        Clip(name=name, path=_wav(id_), duration=two.duration)
                        for name, id_ in (("left", two.first), ("right", two.second))
                    )
                    await player.forget()
                    keys.forget()
                    self._terminal.tell(two.words, "bold")
                    # The clip that is heard first is favoured, so it is the left one in every other pair.
                    await player.play(*((right, left) if two.number % 2 else (left, right)))
                    said = await pairs.answer(self._terminal, keys, player, left, right)
                    return None if said is None else _feedback(said.choice, two) | _heard(said, two)

                yield compare

    async def vote(self, path: str, voter: str, counted: Counted) -> None:  # noqa: ARG002
        self._terminal.tell(pairs.LEGEND)
        with Keyboard(self._fd) as keys:
            async with Player(self._terminal, self._client) as player:
                await listen.Listening(self._terminal, self._client, keys, player, path).run(voter)


class Simulated:
    def __init__(self, client: AsyncStudio, listener: Listener) -> None:
        self._client = client
        self._listener = listener

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Compare]:
        async def compare(two: Two) -> dict[str, Any]:
            left, right = _wav(two.first), _wav(two.second)
            return _feedback(await self._listener.prefers(self._client, left, right, two.number), two)

        yield compare

    async def vote(self, path: str, voter: str, counted: Counted) -> None:
        """It knows of a trial what any voter does."""
        cast = 0
        while trial := await self._client.find(f"{path}/next", listen.Trial, voter=voter):
            counted(cast, cast + trial.remaining)
            sides = trial.left.stream_url, trial.right.stream_url
            choice = await self._listener.prefers(self._client, *sides, f"{trial.prompt} {trial.remaining}")
            try:
                await self._client.post(f"{path}/votes", {"trial_id": trial.trial_id, "choice": choice}, dict[str, Any])
            except RefusedError as error:
                if error.status != listen.CONFLICT:
                    raise
            cast += 1


def _wav(sample_id: str) -> str:
    return f"/audio/{sample_id}/stream?format=wav"


def _feedback(choice: str, two: Two) -> dict[str, Any]:
    winner, loser = (two.second, two.first) if choice == "right" else (two.first, two.second)
    verdict = "preferred" if choice in {"left", "right"} else choice
    return {"audio_id": winner, "preferred_over": loser, "verdict": verdict}


def _heard(answer: pairs.Answer, two: Two) -> dict[str, Any]:
    seconds = {two.first: answer.left_seconds, two.second: answer.right_seconds}
    more: dict[str, Any] = {"seconds_listened": {id_: value for id_, value in seconds.items() if value is not None}}
    if answer.heard_first:
        more["heard_first"] = two.first if answer.heard_first == "left" else two.second
    if answer.notes:
        more["notes"] = answer.notes
    return more
