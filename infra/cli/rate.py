"""Feedback on a job's samples, from a terminal or without one."""

import getpass
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

import click
from rich.markup import escape

from infra.cli import keyboard, pairs
from infra.cli.console import Terminal, console, or_exit, run, url_option
from infra.cli.keyboard import Keyboard
from infra.cli.player import Clip, Player
from text2song.client import AsyncStudio, ClientError, RefusedError, Sample
from text2song.connection import TERMINAL

LEGEND: Final = "Keys: 1 to 5 rating · r again · n notes · t tags · s skip · q quit"
WITHOUT_TERMINAL: Final = (
    "Rate without one: text2song rate JOB --rating 4 --tag calm --notes '…', with --sample 2 for the second sample "
    "alone."
)


@click.command("rate")
@click.argument("job_id", metavar="JOB")
@url_option
@click.option("--sample", "number", type=click.IntRange(min=1), help="Only this sample of the job, counted from 1.")
@click.option("--rating", type=float, help="1 to 5, in half steps. With it nothing is played, and no key is asked for.")
@click.option("--tag", "tags", multiple=True, help="May be given several times; plays nothing either.")
@click.option("--notes", help="Plays nothing either.")
@click.option("--user", help="Who rates.  [default: the login name]")
def command(job_id: str, url: str, number: int | None, user: str | None, **options: Any) -> None:
    """Listen to the samples of JOB, and rate each with one key.

    With --rating, --tag or --notes the feedback is sent at once, without playing anything.
    """
    user_id = login() if user is None else user
    given = {name: value for name, value in options.items() if value not in (None, ())}
    if given:
        run(lambda: send(console, url, job_id, number, given | {"user_id": user_id or None}))
    else:
        fd = or_exit(lambda: keyboard.terminal(WITHOUT_TERMINAL))
        run(lambda: rate(console, fd, url, job_id, number=number, user_id=user_id or None))


def login() -> str:
    """Empty where the system has no name for whoever runs this."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


async def send(terminal: Terminal, url: str, job_id: str, number: int | None, given: Mapping[str, Any]) -> None:
    """The same feedback on every sample, or on one. Raises ClientError."""
    async with AsyncStudio(url) as client:
        await client.index()
        _, chosen = await _samples(client, job_id, number)
        for place, sample_id in chosen:
            await client.post("/feedback", {"audio_id": sample_id, **given}, dict[str, Any])
            terminal.tell(f"Sample {place}: saved {_described(given)}")


async def rate(
    terminal: Terminal, fd: int, url: str, job_id: str, *, number: int | None = None, user_id: str | None = None
) -> None:
    """Raises ClientError."""
    async with AsyncStudio(url) as client:
        studio = await client.index()
        if studio.notice:
            terminal.print(f"[yellow]{escape(studio.notice)}[/yellow]", soft_wrap=True)
        job, chosen = await _samples(client, job_id, number)
        terminal.tell(f"Prompt: {job['prompt']}")
        if job["status"] not in TERMINAL:
            terminal.tell(f"Job {job_id} is {job['status']}; these are its samples so far.", "yellow")
        terminal.tell(LEGEND)
        with Keyboard(fd) as keys:
            async with Player(terminal, client) as player:
                rating = Rating(terminal, client, keys, player, user_id)
                try:
                    await rating.run(chosen)
                finally:
                    terminal.tell(rating.summary(len(chosen)))


class Rating:
    def __init__(
        self, terminal: Terminal, client: AsyncStudio, keys: Keyboard, player: Player, user_id: str | None
    ) -> None:
        self._terminal = terminal
        self._client = client
        self._keys = keys
        self._player = player
        self._user_id = user_id
        self._rated = 0
        self._compared = 0

    async def run(self, samples: Sequence[tuple[int, str]]) -> None:
        clips = {}
        for place, sample_id in samples:
            sample = await self._client.sample(sample_id)
            name = f"sample {place}"
            clips[sample_id] = Clip(name=name, path=f"{sample.stream_url}?format=wav", duration=sample.duration_seconds)
            self._terminal.tell(f"{name.capitalize()} of {samples[-1][0]}: {_facts(sample)}", "bold")
            if not await self._rate(sample_id, clips[sample_id]):
                return
        if len(clips) == 2:
            await self._compare(*clips.items())

    def summary(self, count: int) -> str:
        compared = ", and compared them" if self._compared else ""
        return f"Gave feedback on {self._rated} of {count} samples{compared}."

    async def _rate(self, sample_id: str, clip: Clip) -> bool:
        """Whether to go on."""
        given: dict[str, Any] = {}
        self._keys.forget()
        await self._player.play(clip)
        while True:
            match await self._keys.key():
                case "1" | "2" | "3" | "4" | "5" as digit:
                    if await self._save(sample_id, clip, given | {"rating": int(digit)}):
                        return True
                    given = {}
                case "s" | "q" as key:
                    if not given or await self._save(sample_id, clip, given):
                        await self._player.stop()
                        return key == "s"
                    given = {}
                case "r":
                    await self._player.play(clip)
                case "n":
                    self._terminal.tell("Notes, up to Enter:")
                    given |= _nonempty("notes", await self._keys.line())
                case "t":
                    self._terminal.tell("Tags, with commas between, up to Enter:")
                    tags = [tag.strip() for tag in (await self._keys.line()).split(",")]
                    given |= _nonempty("tags", [tag for tag in tags if tag])
                case _:
                    self._terminal.tell(LEGEND)

    async def _save(self, sample_id: str, clip: Clip, given: Mapping[str, Any]) -> bool:
        """False for what the studio refuses, which is said."""
        await self._player.stop()
        seconds = {sample_id: self._player.seconds[clip.path]} if clip.path in self._player.seconds else {}
        if not await self._post({"audio_id": sample_id, **given, "seconds_listened": seconds}):
            return False
        self._rated += 1
        self._terminal.tell(f"  saved {_described(given)}", "green")
        return True

    async def _compare(self, left: tuple[str, Clip], right: tuple[str, Clip]) -> None:
        (left_id, left_clip), (right_id, right_clip) = left, right
        self._keys.forget()
        self._terminal.tell(f"Which is better: left ({left_clip.name}) or right ({right_clip.name})?", "bold")
        self._terminal.tell(pairs.LEGEND)
        answer = await pairs.answer(self._terminal, self._keys, self._player, left_clip, right_clip)
        if answer is None:
            return
        winner, loser = (right_id, left_id) if answer.choice == "right" else (left_id, right_id)
        seconds = {left_id: answer.left_seconds, right_id: answer.right_seconds}
        heard = {"left": left_id, "right": right_id}
        body: dict[str, Any] = {
            "audio_id": winner,
            "preferred_over": loser,
            "verdict": "preferred" if answer.choice in heard else answer.choice,
            "seconds_listened": {id_: value for id_, value in seconds.items() if value is not None},
        }
        if answer.notes:
            body["notes"] = answer.notes
        if answer.heard_first:
            body["heard_first"] = heard[answer.heard_first]
        if await self._post(body):
            self._compared += 1
            self._terminal.tell(f"  saved: {answer.said}", "green")

    async def _post(self, body: dict[str, Any]) -> bool:
        try:
            await self._client.post("/feedback", body | {"user_id": self._user_id}, dict[str, Any])
        except RefusedError as error:
            self._terminal.tell(f"  {error}", "red")
            return False
        return True


async def _samples(
    client: AsyncStudio, job_id: str, number: int | None
) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    """The job, and those of its samples that were asked for, by their places. Raises ClientError."""
    job = await client.get(f"/jobs/{quote(job_id, safe='')}")
    samples = list(enumerate(job["sample_ids"], 1))
    if not samples:
        reason = f": {job['error']}" if job["error"] else "."
        raise ClientError(f"Job {job_id} is {job['status']} and has no samples{reason}")
    if number is None:
        return job, samples
    if number > len(samples):
        raise ClientError(
            f"Job {job_id} has {len(samples)} samples; --sample is {number}. Write one from 1 to {len(samples)}."
        )
    return job, [samples[number - 1]]


def _facts(sample: Sample) -> str:
    made = f"adapter {sample.adapter.name} {sample.adapter.version}" if sample.adapter else "base model"
    return f"{sample.duration_seconds:.2f} s, seed {sample.generation_params['seed']}, {made}"


def _nonempty(name: str, value: Any) -> dict[str, Any]:
    return {name: value} if value else {}


def _described(given: Mapping[str, Any]) -> str:
    said = [f"rating {given['rating']:g}"] if "rating" in given else []
    said += [f"tags {', '.join(given['tags'])}"] if "tags" in given else []
    return ", ".join(said + (["notes"] if "notes" in given else []))
