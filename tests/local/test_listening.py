"""Rating and blind listening at a terminal."""

import asyncio
import fcntl
import os
import signal
import sys
import termios
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from api.app import create_app
from api.http.hosts import AllowedHosts
from domain.ab_tests import AB_VOTES
from domain.events.ab_tests import ABVoteCast, Arm
from domain.ports import Query
from infra.cli import listen, rate
from infra.cli.console import Terminal
from infra.cli.keyboard import Keyboard
from infra.cli.player import Clip, Player
from tests.conditions import eventually
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts
from tests.local.terminal import Person, player, served
from tests.local.test_reactions import reacting
from tests.local.test_trials import ready
from text2song.client import AsyncStudio, ClientError
from workers.ab_tests import ABTestReaction

JOB = "01980000-0000-7000-8000-000000abcdef"


class Room:
    """A studio with a job of two samples, somebody at a terminal, and a player."""

    def __init__(self, parts: Parts, url: str, person: Person, sample_ids: list[str]) -> None:
        self.parts = parts
        self.url = url
        self.person = person
        self.sample_ids = sample_ids

    async def feedback(self) -> list[dict[str, Any]]:
        """The oldest first, each without what is null or empty."""
        items = (await self.parts.http.get("/feedback")).json()["items"]
        known = ("audio_id", "rating", "preferred_over", "verdict", "tags", "notes", "user_id", "heard_first")
        return [
            {name: item[name] for name in (*known, "seconds_listened") if item[name] not in (None, [], {})}
            for item in reversed(items)
        ]

    async def votes(self) -> list[ABVoteCast]:
        """The oldest first."""
        await self.parts.host.caught_up(10)
        found = await self.parts.store.find(AB_VOTES, Query(limit=100))
        return [vote.event for vote in sorted(found, key=lambda vote: vote.position)]

    def rate(self, **options: Any) -> "asyncio.Task[None]":
        return asyncio.create_task(rate.rate(self.person.terminal, self.person.fd, self.url, JOB, **options))

    def listen(self, test_id: str = "test-1", **options: Any) -> "asyncio.Task[None]":
        return asyncio.create_task(
            listen.listen(self.person.terminal, self.person.fd, self.url, test_id, "ann", **options)
        )


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    sitting = Person(tmp_path)
    yield sitting
    sitting.close()


@pytest.fixture
async def room(parts: Parts, person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    for name, setting in player(tmp_path).items():
        monkeypatch.setenv(name, setting)
    async with parts.working(ScriptedEngine()):
        await parts.submit(JOB, seeds=[1, 2])
        made = await parts.when(JOB, "completed")
    async with served(create_app(parts.services, AllowedHosts())) as url:
        yield Room(parts, url, person, [sample.event.sample_id for sample in made.samples])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_every_sample_of_a_job_is_played_and_rated_with_one_key_and_two_are_compared(room: Room) -> None:
    person, (first, second) = room.person, room.sample_ids
    rating = room.rate(user_id="ann")
    await person.sees("rain on a tin roof", "1 to 5 rating", "Sample 1 of 2", "playing sample 1")
    playing = await person.hears(1)
    person.press("t")
    await person.sees("Tags, with commas between")
    assert is_alive(playing)
    person.press("calm,  warm,\n")
    person.press("n")
    await person.sees("Notes, up to Enter")
    person.press("ein schöner Klang\n")
    person.press("4")
    await person.sees("saved rating 4, tags calm, warm, notes", "Sample 2 of 2", "playing sample 2")
    assert not is_alive(playing)
    await person.hears(2)
    person.press("r")
    await person.hears(3)
    person.press("5")
    await person.sees("saved rating 5", "Which is better: left (sample 1) or right (sample 2)?")
    person.press("\x1b[C")
    await person.sees("saved: the right one is better", "Gave feedback on 2 of 2 samples, and compared them.")
    await rating
    one, two, compared = await room.feedback()
    assert one.pop("seconds_listened").keys() == {first}
    assert one == {
        "audio_id": first, "rating": 4, "tags": ["calm", "warm"], "notes": "ein schöner Klang", "user_id": "ann"
    }  # fmt: skip
    assert (two["audio_id"], two["rating"]) == (second, 5)
    seconds = compared.pop("seconds_listened")
    assert seconds.keys() == {first, second}
    assert all(0 < heard <= 2 for heard in seconds.values())
    assert compared == {
        "audio_id": second, "preferred_over": first, "verdict": "preferred", "heard_first": first, "user_id": "ann"
    }  # fmt: skip


async def test_what_the_studio_refuses_is_said_and_asked_again_and_skipping_keeps_what_was_written(room: Room) -> None:
    person = room.person
    rating = room.rate()
    await person.hears(1)
    person.press("t")
    await person.sees("Tags")
    person.press(f"{'x' * 51}\n")
    person.press("3")
    await person.sees("51 characters")
    person.press("3")
    await person.sees("saved rating 3", "Sample 2")
    person.press("x")
    await person.sees("Keys: 1 to 5 rating")
    person.press("t")
    await person.sees("Tags")
    person.press("odd\ns")
    await person.sees("saved tags odd", "Which is better")
    person.press("t")
    await person.sees("saved: a tie")
    await rating
    rated, tagged, compared = await room.feedback()
    assert rated["rating"] == 3
    assert "tags" not in rated
    assert (tagged["tags"], tagged.get("rating")) == (["odd"], None)
    assert compared["verdict"] == "tie"


async def test_one_sample_is_rated_alone_and_q_stops(room: Room) -> None:
    rating = room.rate(number=2)
    await room.person.sees("Sample 2 of 2")
    room.person.press("q")
    await rating
    await room.person.sees("Gave feedback on 0 of 1 samples.")
    assert await room.feedback() == []
    with pytest.raises(ClientError, match=f"Job {JOB} has 2 samples; --sample is 3. Write one from 1 to 2."):
        await room.rate(number=3)


async def test_feedback_without_a_terminal_goes_to_every_sample_or_to_one(room: Room) -> None:
    terminal = room.person.terminal
    await rate.send(terminal, room.url, JOB, None, {"rating": 4.5, "tags": ("calm",), "user_id": "ann"})
    await rate.send(terminal, room.url, JOB, 2, {"notes": "fine", "user_id": None})
    first, second = room.sample_ids
    assert await room.feedback() == [
        {"audio_id": first, "rating": 4.5, "tags": ["calm"], "user_id": "ann"},
        {"audio_id": second, "rating": 4.5, "tags": ["calm"], "user_id": "ann"},
        {"audio_id": second, "notes": "fine"},
    ]
    await room.person.sees("Sample 1: saved rating 4.5, tags calm", "Sample 2: saved notes")
    with pytest.raises(ClientError, match="There is no job 'nobody'"):
        await rate.send(terminal, room.url, "nobody", None, {"rating": 4})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((rate.command, [JOB]), "--rating 4 --tag calm --notes"),
        ((listen.command, ["duel", "--voter", "ann"]), "GET /ab-tests/{id}/next?voter=NAME"),
    ],
)
def test_without_a_terminal_one_sentence_says_what_does_without_it(arguments: Any, words: str) -> None:
    done = CliRunner().invoke(*arguments)
    assert done.exit_code == 1
    assert done.output.startswith("text2song: Standard input is no terminal, so no key can be read. ")
    assert words in done.output
    assert done.output.count("\n") == 1


async def test_a_player_that_fails_is_said_so_once_and_the_addresses_are_printed(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLAINT", "no sound card")
    person, (first, second) = room.person, room.sample_ids
    rating = room.rate()
    await person.sees(
        "ffplay cannot play here: no sound card.", f"sample 1: {room.url}/audio/{first}/stream?format=wav"
    )
    person.press("4")
    await person.sees(f"sample 2: {room.url}/audio/{second}/stream?format=wav")
    person.press("2")
    await person.sees("Which is better")
    person.press("b")
    await rating
    assert person.printed.count("no sound card") == 1
    given = await room.feedback()
    assert given[2]["verdict"] == "both_bad"
    assert not any({"heard_first", "seconds_listened"} & each.keys() for each in given)


async def test_what_is_heard_again_is_counted_again_up_to_the_length_of_the_clip(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAYS", "0.2")
    whole, short = (
        Clip(name="clip", path=f"/audio/{sample_id}/stream?format=wav", duration=duration)
        for sample_id, duration in zip(room.sample_ids, (1.0, 0.1), strict=True)
    )
    async with AsyncStudio(room.url) as client, Player(room.person.terminal, client) as opened:
        await opened.play(short, whole, whole, short)
        await eventually(lambda: asyncio.sleep(0, opened.is_silent))
        assert list(opened.seconds) == [short.path, whole.path]
        assert opened.seconds[short.path] == pytest.approx(0.2)
        # Twice 0.2 s, by a clock that is not the player's.
        assert 0.35 <= opened.seconds[whole.path] < 2


async def test_a_clip_that_is_gone_is_said_so_and_the_others_are_played(room: Room) -> None:
    gone = Clip(name="left", path="/audio/gone/stream?format=wav", duration=1.0)
    there = Clip(name="right", path=f"/audio/{room.sample_ids[0]}/stream?format=wav", duration=1.0)
    async with AsyncStudio(room.url) as client, Player(room.person.terminal, client) as opened:
        await opened.play(gone, there)
        await room.person.sees("left cannot be played. There is no audio sample 'gone'.", "playing right")
        playing = await room.person.hears(1)
        await opened.forget()
        assert (opened.seconds, is_alive(playing)) == ({}, False)


async def test_where_no_player_is_installed_the_addresses_are_printed(
    room: Room, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    rating = room.rate(number=1)
    await room.person.sees("No player is installed (ffplay, mpv", f"sample 1: {room.url}/audio/{room.sample_ids[0]}")
    room.person.press("q")
    await rating


async def test_the_pairs_of_a_test_are_heard_blind_and_voted_on_with_one_key(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ready(room.parts, 2)
    monkeypatch.setenv("PLAYS", "0.1")
    person = room.person
    listening = room.listen()
    await person.sees("Test: drums, as ann", "2 pairs to go: music", "playing", "playing")
    await person.hears(2)
    person.press("1")
    await person.sees("playing left")
    person.press("n")
    await person.sees("Notes")
    person.press("close\n")
    await person.sees("noted: close")
    assert "brushed-drums" not in person.printed
    person.press("\x1b[D")
    await person.sees("The left one is better. Left was", "One pair to go: music", "playing", "playing")
    person.press("t")
    await person.sees("A tie.", "Voted 2 times; no pair is left.")
    await listening
    first, second = await room.votes()
    assert (first.choice, first.voter, first.notes) == ("left", "ann", "close")
    assert (second.choice, second.notes) == ("tie", None)
    assert {first.pair, second.pair} == {0, 1}
    assert first.seconds_left is not None
    assert first.seconds_right is not None
    assert min(first.seconds_left, first.seconds_right) > 0
    played = [line.split()[1] for line in person.printed.splitlines() if "playing" in line]
    assert [first.heard_first, second.heard_first] in (["left", "right"], ["right", "left"])
    assert played[:2] in (["left", "right"], ["right", "left"])
    assert first.heard_first == played[0]
    said = {"A": "A, the base model", "B": "B, brushed-drums 3.1"}
    assert f"Left was {said[first.left]}, right {said['B' if first.left == 'A' else 'A']}." in person.printed


async def test_a_vote_that_was_given_in_another_window_goes_on_with_the_next(room: Room) -> None:
    await ready(room.parts, 2)
    listening = room.listen()
    await room.person.sees("2 pairs to go", "playing")
    trial_id = (await room.parts.http.get("/ab-tests/test-1/next", params={"voter": "ann"})).json()["trial_id"]
    vote = {"trial_id": trial_id, "choice": "tie"}
    assert (await room.parts.http.post("/ab-tests/test-1/votes", json=vote)).status_code == 201
    room.person.press("b")
    await room.person.sees("the first one counts", "One pair to go")
    room.person.press("q")
    await listening
    await room.person.sees("Voted 0 times; one pair to go.")
    assert [vote.choice for vote in await room.votes()] == ["tie"]


async def test_a_test_that_is_closed_meanwhile_ends_with_the_reason(room: Room) -> None:
    await ready(room.parts, 2)
    listening = room.listen()
    await room.person.sees("playing")
    assert (await room.parts.http.post("/ab-tests/test-1/close", json={})).status_code == 200
    room.person.press("b")
    with pytest.raises(ClientError, match="test-1 is closed"):
        await listening
    await room.person.sees("Voted 0 times; 2 pairs to go.")
    with pytest.raises(ClientError, match=r"Test test-1 is closed.*text2song verdict test-1"):
        await room.listen()


async def test_a_test_that_is_generated_is_waited_for_when_asked_to(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "POLL_SECONDS", 0.01)
    parts, person = room.parts, room.person
    asked = {"name": "nothing", "prompts": ["a storm"], "pairs_per_prompt": 2, "duration": 1}
    test_id = (await parts.http.post("/ab-tests", json=asked)).json()["id"]
    with pytest.raises(ClientError, match=rf"Test {test_id} is not ready: 0/2 pairs generated\. .* --wait"):
        await room.listen(test_id)
    listening = room.listen(test_id, wait=True)
    await person.sees("0/2 pairs generated")
    async with reacting(parts, ABTestReaction(parts.journal, parts.store)), parts.working(ScriptedEngine()):
        await person.sees("2 pairs to go: a storm")
    person.press("\x04")
    await listening


async def test_a_test_without_a_pair_that_can_be_heard_ends_at_once(room: Room) -> None:
    await ready(room.parts, 1, fails=0)
    await room.listen()
    await room.person.sees("Voted 0 times; no pair is left.")


def test_a_check_of_attention_is_told_after_the_vote() -> None:
    adapters: dict[Arm, listen.Adapter | None] = {"A": None, "B": listen.Adapter("jazz", "2")}
    twice = listen.Vote(left_arm="B", right_arm="B", adapters=adapters)
    assert listen.told(twice) == "Both were B, jazz 2, the same recording twice."


def command(room: Room) -> list[str]:
    return [sys.executable, "-m", "infra.cli", "rate", JOB, "--url", room.url]


async def test_sigterm_ends_player_and_command_and_gives_the_terminal_back(room: Room) -> None:
    process = await asyncio.create_subprocess_exec(*command(room), stdin=room.person.fd, stdout=PIPE, stderr=PIPE)
    playing = await room.person.hears(1)
    assert room.person.modes_now != room.person.modes
    process.send_signal(signal.SIGTERM)
    said, errors = await process.communicate()
    assert (process.returncode, errors) == (143, b"")
    assert said.endswith(b"Gave feedback on 0 of 2 samples.\n")
    assert not is_alive(playing)
    assert room.person.modes_now == room.person.modes


async def test_ctrl_c_at_a_shell_ends_player_and_command_and_gives_the_terminal_back(room: Room) -> None:
    shell = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", 'trap : INT; stty -g; "$@"; echo $?; stty -g', "sh", *command(room)),
        stdin=room.person.fd,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
        preexec_fn=partial(fcntl.ioctl, 0, termios.TIOCSCTTY, 0),
    )
    playing = await room.person.hears(1)
    room.person.press("\x03")
    said, errors = await shell.communicate()
    before, *lines, code, after = said.decode().splitlines()
    assert (code, errors, before) == ("130", b"", after)
    assert lines[-1] == "Gave feedback on 0 of 2 samples."
    assert not is_alive(playing)


async def test_a_prompt_does_not_command_the_terminal(person: Person) -> None:
    person.terminal.tell("a \x1b[2J[red]storm")
    assert person.printed == "a \ufffd[2J[red]storm\n"


async def test_after_ctrl_z_and_fg_single_keys_are_read_again(person: Person) -> None:
    with Keyboard(person.fd) as keys:
        modes = person.modes_now
        termios.tcsetattr(person.fd, termios.TCSANOW, person.modes)  # as the shell does
        os.kill(os.getpid(), signal.SIGCONT)
        await eventually(lambda: asyncio.sleep(0, person.modes_now == modes))
        person.press("n")
        assert await keys.key() == "n"


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        ("\x1b[D\x1b[C", ["left", "right"]),
        ("\x1bOD\x1bOC", ["left", "right"]),  # as terminals in application mode send them
        ("\x1b[1;5Cq", ["right", "q"]),
        ("\x1b[Ax", ["", "x"]),
        ("\x1bq", ["q"]),
        ("TÄ", ["t", "ä"]),
        ("\x04", ["q"]),
    ],
)
async def test_keys_have_names_however_they_arrive(person: Person, typed: str, keys: list[str]) -> None:
    for pieces in ([typed], list(typed)):
        with Keyboard(person.fd) as keyboard:
            reading = asyncio.create_task(read(keyboard, len(keys)))
            for piece in pieces:
                person.press(piece)
                await asyncio.sleep(0)
            assert await reading == keys


async def read(keyboard: Keyboard, count: int) -> list[str]:
    return [await keyboard.key() for _ in range(count)]


async def test_a_line_is_edited_by_the_terminal_and_ends_with_enter_or_ctrl_d(person: Person) -> None:
    with Keyboard(person.fd) as keyboard:
        for typed, line in (("  good\x7fd\n", "good"), ("\x04", ""), ("two words\n", "two words")):
            reading = asyncio.create_task(keyboard.line())
            await eventually(lambda: asyncio.sleep(0, person.modes_now == person.modes))
            person.press(typed)
            assert await reading == line
        person.press("q")
        assert await keyboard.key() == "q"


async def test_what_was_typed_before_it_was_asked_for_is_forgotten(person: Person) -> None:
    with Keyboard(person.fd) as keyboard:
        person.press("tt")
        assert await keyboard.key() == "t"
        keyboard.forget()
        person.press("b")
        assert await keyboard.key() == "b"


async def test_a_terminal_that_is_closed_ends_the_command(room: Room, tmp_path: Path) -> None:
    gone = Person(tmp_path)
    rating = asyncio.create_task(rate.rate(Terminal(quiet=True), gone.fd, room.url, JOB))
    playing = await gone.hears(1)
    gone.hang_up()
    with pytest.raises(ClientError, match="The terminal is gone"):
        await rating
    assert not is_alive(playing)
    os.close(gone.fd)
