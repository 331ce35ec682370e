"""A blind A/B test at a terminal, one key per vote."""

import asyncio
import random
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import click
from msgspec import Struct
from rich.markup import escape

from domain.events.ab_tests import Arm, Side
from infra.cli import keyboard, pairs
from infra.cli.console import Terminal, console, or_exit, run, url_option
from infra.cli.keyboard import Keyboard
from infra.cli.pairs import Answer
from infra.cli.player import Clip, Player
from infra.cli.rate import login
from text2song.client import AsyncStudio, ClientError, RefusedError

CONFLICT: Final = 409
POLL_SECONDS: Final = 1.0
WITHOUT_TERMINAL: Final = (
    "Vote over HTTP without one: GET /ab-tests/{id}/next?voter=NAME, then POST /ab-tests/{id}/votes."
)


class Stream(Struct, frozen=True):
    stream_url: str
    duration_seconds: float


class Trial(Struct, frozen=True):
    """`remaining` counts this one too."""

    trial_id: str
    prompt: str
    left: Stream
    right: Stream
    remaining: int


class Adapter(Struct, frozen=True):
    name: str
    version: str


class Vote(Struct, frozen=True):
    """An arm whose adapter is null is the base model."""

    left_arm: Arm
    right_arm: Arm
    adapters: dict[Arm, Adapter | None]


@click.command("listen")
@click.argument("test_id", metavar="TEST")
@url_option
@click.option("--voter", help="Who votes.  [default: the login name]")
@click.option("--wait", is_flag=True, help="Wait until the test's pairs are generated.")
def command(test_id: str, url: str, voter: str | None, *, wait: bool) -> None:
    """Listen to the pairs of the A/B test TEST without knowing what made them, and vote with one key."""
    name = voter or login()
    if not name:
        raise click.UsageError("The system has no login name for you; give --voter NAME.")
    fd = or_exit(lambda: keyboard.terminal(WITHOUT_TERMINAL))
    run(lambda: listen(console, fd, url, test_id, name, wait=wait))


async def listen(terminal: Terminal, fd: int, url: str, test_id: str, voter: str, *, wait: bool = False) -> None:
    """Raises ClientError."""
    path = f"/ab-tests/{quote(test_id, safe='')}"
    async with AsyncStudio(url) as client:
        studio = await client.index()
        if studio.notice:
            terminal.print(f"[yellow]{escape(studio.notice)}[/yellow]", soft_wrap=True)
        test = await _ready(terminal, client, path, wait=wait)
        terminal.tell(f"Test: {test['name']}, as {voter}")
        terminal.tell(pairs.LEGEND)
        with Keyboard(fd) as keys:
            async with Player(terminal, client) as player:
                listening = Listening(terminal, client, keys, player, path)
                try:
                    await listening.run(voter)
                finally:
                    terminal.tell(listening.summary())


class Listening:
    def __init__(self, terminal: Terminal, client: AsyncStudio, keys: Keyboard, player: Player, path: str) -> None:
        self._terminal = terminal
        self._client = client
        self._keys = keys
        self._player = player
        self._path = path
        self._first: Side = random.choice(("left", "right"))
        self._votes = 0
        self._remaining = 0

    async def run(self, voter: str) -> None:
        """Raises ClientError."""
        refused: RefusedError | None = None
        trial_id = None
        while trial := await self._client.find(f"{self._path}/next", Trial, voter=voter):
            if refused is not None and trial.trial_id == trial_id:
                raise refused
            refused, trial_id, self._remaining = None, trial.trial_id, trial.remaining
            answer = await self._ask(trial)
            if answer is None:
                return
            try:
                await self._vote(trial, answer)
            except RefusedError as error:
                if error.status != CONFLICT:
                    raise
                refused = error
                self._terminal.tell(f"  {error}", "yellow")
        self._remaining = 0

    def summary(self) -> str:
        left = f"{_pairs(self._remaining)} to go" if self._remaining else "no pair is left"
        return f"Voted {self._votes} time{'' if self._votes == 1 else 's'}; {left}."

    async def _ask(self, trial: Trial) -> Answer | None:
        """None for a listener who stops."""
        clips = {
            side: Clip(name=side, path=stream.stream_url, duration=stream.duration_seconds)
            for side, stream in (("left", trial.left), ("right", trial.right))
        }
        await self._player.forget()
        self._keys.forget()
        self._terminal.tell(f"{_pairs(trial.remaining).capitalize()} to go: {trial.prompt}", "bold")
        # The clip that is heard first is favoured, so it is the left one in every other trial.
        order = (self._first, _other(self._first))
        self._first = _other(self._first)
        await self._player.play(*(clips[side] for side in order))
        return await pairs.answer(self._terminal, self._keys, self._player, clips["left"], clips["right"])

    async def _vote(self, trial: Trial, answer: Answer) -> None:
        body: dict[str, Any] = {"trial_id": trial.trial_id, "choice": answer.choice}
        if answer.heard_first:
            body["heard_first"] = answer.heard_first
            body["seconds_listened"] = {"left": answer.left_seconds or 0, "right": answer.right_seconds or 0}
        if answer.notes:
            body["notes"] = answer.notes
        vote = await self._client.post(f"{self._path}/votes", body, Vote)
        self._votes += 1
        self._remaining -= 1
        self._terminal.tell(f"  {answer.said.capitalize()}. {told(vote)}", "green")


def told(vote: Vote) -> str:
    """What made the two sides. Those of one arm check whether voters listen."""
    left, right = (_described(arm, vote.adapters) for arm in (vote.left_arm, vote.right_arm))
    if vote.left_arm == vote.right_arm:
        return f"Both were {left}, the same recording twice."
    return f"Left was {left}, right {right}."


async def _ready(terminal: Terminal, client: AsyncStudio, path: str, *, wait: bool) -> dict[str, Any]:
    """The test once there is something to hear. Raises ClientError."""
    said = ""
    while (test := await client.get(path))["status"] == "generating":
        if not wait:
            raise ClientError(f"Test {test['id']} is not ready: {test['progress']}. Come back later, or add --wait.")
        if test["progress"] != said:
            said = test["progress"]
            terminal.tell(said)
        await asyncio.sleep(POLL_SECONDS)
    if test["status"] == "closed":
        raise ClientError(
            f"Test {test['id']} is closed, and no vote counts any more. See `text2song verdict {test['id']}`."
        )
    return test


def _pairs(count: int) -> str:
    return "one pair" if count == 1 else f"{count} pairs"


def _other(side: Side) -> Side:
    return "right" if side == "left" else "left"


def _described(arm: Arm, adapters: Mapping[Arm, Adapter | None]) -> str:
    adapter = adapters[arm]
    return f"{arm}, {adapter.name} {adapter.version}" if adapter else f"{arm}, the base model"
