"""The steps of a turn of the loop at a running studio. Each writes down what it did, and is done once."""

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypeVar

from msgspec import Struct
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from domain.events.jobs import SEEDS
from domain.verdicts import Results
from infra.cli import listen, loop_prompts, verdict
from infra.cli.console import Terminal
from infra.cli.loop_listening import Judge, Two
from infra.cli.loop_report import Clips, Told, report
from infra.cli.loop_state import Folder, Judgement, Turn
from infra.cli.verdict_words import Asked
from text2song.client import AsyncStudio, ClientError, RefusedError
from workers.training.config import LEAST

Outcome: TypeAlias = Literal["tested", "nothing_learnt", "stopped"]
POLL_SECONDS: Final = 0.5
LONELY_SECONDS: Final = 20.0  # without a trainer
HEARD_IN_REPORT: Final = 6
GONE: Final = 404
FIGURES: Final = {"loss": "loss", "gain": "expected reward", "kl": "KL a code", "held_out_accuracy": "held-out pairs"}
T = TypeVar("T")


class Receipt(Struct, frozen=True):
    training_id: str


class Identified(Struct, frozen=True):
    id: str


class Loop:
    def __init__(self, terminal: Terminal, client: AsyncStudio, folder: Folder, turn: Turn, judge: Judge) -> None:
        self._terminal = terminal
        self._client = client
        self._folder = folder
        self._turn = turn
        self._options = turn.options
        self._judge = judge
        self._is_person = turn.options.simulate is None

    async def run(self, report: Path) -> Outcome:
        """Raises ClientError, after which the same turn goes on where it stopped."""
        studio = await self._client.index()
        if studio.notice:
            self._terminal.print(f"[yellow]{escape(studio.notice)}[/yellow]", soft_wrap=True)
        self._save()
        whose = self._options.user if self._is_person else f"a simulated listener ({self._options.simulate})"
        self._say(
            f"Turn {self._turn.id} in {self._folder.path}, for {whose}. Stop it at any time: the same command goes on."
        )
        await self._check_studio()
        if self._turn.dataset_id is None:
            await self._submit()
            if not await self._collect():
                return self._stopped("the pairs")
            self._check_decided()
        await self._build()
        await self._train()
        if self._turn.adapter_id is None:
            await self._end(report, None)
            return "nothing_learnt"
        await self._test()
        is_heard = await self._vote()
        await self._end(report, self._turn.ab_test_id)
        return "tested" if is_heard else self._stopped("the blind test")

    async def _check_studio(self) -> None:
        """Raises ClientError for another studio than the one that the turn was begun at."""
        if not self._turn.jobs:
            return
        try:
            await self._client.get(f"/jobs/{self._turn.jobs[0]}")
        except RefusedError as error:
            if error.status != GONE:
                raise
            raise ClientError(
                f"The turn in {self._folder.path} was begun at another studio: {error} Name that one with --url, or "
                "begin another turn with --folder."
            ) from None

    async def _submit(self) -> None:
        options, turn = self._options, self._turn
        prompts = loop_prompts.of_pairs(options)
        if len(turn.jobs) < len(prompts):
            self._say(f"1. Pairs: two clips of {options.duration:g} s for each of {len(prompts)} prompts.")
        for number in range(len(turn.jobs), len(prompts)):
            request = {
                "prompt": prompts[number],
                "seeds": [(options.seed + 2 * number + side) % SEEDS for side in range(2)],
                "duration": options.duration,
                "collection": turn.name,
                "user_id": options.user,
            }
            receipt = await self._client.submit(request, turn.key("pair", number))
            turn.jobs.append(receipt.job_id)
            self._save()

    async def _collect(self) -> bool:
        """Whether every pair is judged."""
        turn = self._turn
        for number, known in list(turn.judged.items()):
            if known.body is not None and not known.is_sent:
                await self._give(number, known.body)
        left = [number for number in range(len(turn.jobs)) if number not in turn.judged]
        if not left:
            self._mark("preferences")
            return True
        self._say(f"2. Preferences: {len(left)} pairs to compare.")
        async with self._judge.listening() as compare:
            with self._bar(hidden=self._is_person) as bar:
                task = bar.add_task("pairs", total=len(turn.jobs), completed=len(turn.judged), figures="")
                for number in left:
                    two = await self._two(number, bar, task)
                    body = None
                    if two is not None:
                        if (said := await compare(two)) is None:
                            return False
                        body = said | {"user_id": self._options.user}
                    turn.judged[number] = Judgement(body=body)
                    self._save()
                    if body is not None:
                        await self._give(number, body)
                    bar.update(task, completed=len(turn.judged))
        self._mark("preferences")
        self._say(f"   {turn.decided} of {len(turn.jobs)} pairs say which clip is better.")
        return True

    async def _two(self, number: int, bar: Progress, task: TaskID) -> Two | None:
        """None for a pair that could not be made."""
        job = await self._job(self._turn.jobs[number], bar, task)
        if job["status"] != "completed" or len(job["sample_ids"]) != 2:
            self._say(f"   Pair {number + 1} is left out: its job is {job['status']}. {job['error'] or ''}", "yellow")
            return None
        first, second = job["sample_ids"]
        words = f"Pair {number + 1} of {len(self._turn.jobs)}: {job['prompt']}"
        return Two(number=number, words=words, first=first, second=second, duration=self._options.duration)

    async def _give(self, number: int, body: dict[str, Any]) -> None:
        """It was written down before, so that it is sent again as it was."""
        key = self._turn.key("answer", number)
        judgement = Judgement(body=body, is_sent=True)
        try:
            await self._client.post("/feedback", body, dict[str, Any], key)
        except RefusedError as error:
            if error.status != GONE:
                raise
            self._say(f"   Pair {number + 1} is left out: {error}", "yellow")
            judgement = Judgement(body=None)
        self._turn.judged[number] = judgement
        self._save()

    def _check_decided(self) -> None:
        least, found = LEAST[self._options.method], self._turn.decided
        if found < least:
            more = len(self._turn.jobs) + max(8, 2 * (least - found))
            raise ClientError(
                f"{found} pairs say which clip is better, and {self._options.method} learns from {least} or more. Go "
                f"on with more pairs: the same command with --pairs {more}."
            )

    async def _build(self) -> None:
        turn = self._turn
        if turn.dataset_id is None:
            self._say("3. Dataset")
            request = {
                "name": turn.name,
                "type": "preference",
                "description": f"The pairs of one turn of text2song loop, heard by {self._options.user}.",
                "filter_query": {"collections": [turn.name], "user_ids": [self._options.user], "sources": "feedback"},
                # The training itself keeps prompts back.
                "held_out": 0.0,
                "user_id": self._options.user,
            }
            made = await self._client.post("/datasets", request, Identified, turn.key("dataset", turn.tries))
            turn.dataset_id = made.id
            self._save()
        dataset = await self._client.get(f"/datasets/{turn.dataset_id}")
        while dataset["status"] not in {"built", "failed"}:
            await asyncio.sleep(POLL_SECONDS)
            dataset = await self._client.get(f"/datasets/{turn.dataset_id}")
        if dataset["status"] == "failed":
            turn.dataset_id, turn.tries = None, turn.tries + 1
            self._save()
            raise ClientError(f"Dataset {dataset['id']} failed: {dataset['error']} The same command makes another.")
        if self._mark("dataset"):
            self._say(f"   {dataset['id']} has {dataset['sample_count']} pairs.")

    async def _train(self) -> None:
        turn, options = self._turn, self._options
        if "training" in turn.ended:
            return
        if turn.training_id is None:
            self._say(f"4. Training by {options.method}")
            request = {
                "dataset_id": turn.dataset_id,
                "method": options.method,
                "adapter_name": turn.name,
                "adapter_version": f"1.0.{turn.tries}",
                "config": {} if options.steps is None else {"steps": options.steps},
                "user_id": options.user,
            }
            made = await self._client.post("/trainings", request, Receipt, turn.key("training", turn.tries))
            turn.training_id = made.training_id
            self._save()
        training = await self._trained()
        if training["status"] != "completed":
            turn.training_id, turn.tries = None, turn.tries + 1
            self._save()
            raise ClientError(
                f"Training {training['id']} is {training['status']}: {training['error'] or 'somebody stopped it'} The "
                "same command asks for another."
            )
        turn.adapter_id = training["adapter_id"]
        self._mark("training")
        self._say(f"   {training['message']}", None if turn.adapter_id else "yellow")

    async def _trained(self) -> dict[str, Any]:
        """The training at its end."""
        begin, is_lonely = time.monotonic(), False
        with self._bar() as bar:
            task = bar.add_task("waiting for a trainer", total=100, figures="")
            while (now := await self._client.get(f"/trainings/{self._turn.training_id}"))["status"] in {
                "queued",
                "processing",
            }:
                stage = now["stage"] or ("training" if now["status"] == "processing" else "waiting for a trainer")
                point = now["curve"][-1] if now["curve"] else {}
                figures = " · ".join(f"{words} {point[name]:.3f}" for name, words in FIGURES.items() if name in point)
                bar.update(task, description=stage, completed=now["progress"], figures=figures)
                if now["status"] == "queued" and time.monotonic() - begin > LONELY_SECONDS and not is_lonely:
                    is_lonely = True
                    self._say(
                        "   No trainer has taken it yet. `text2song up` has one; in a cluster, start text2song learn."
                    )
                await asyncio.sleep(POLL_SECONDS)
        return now

    async def _test(self) -> None:
        turn, options = self._turn, self._options
        if turn.ab_test_id is None:
            prompts = loop_prompts.of_test(options)
            each = max(1, options.test_pairs // len(prompts))
            self._say(
                f"5. Blind test of base against adapter: {len(prompts) * each} pairs of prompts that were not rated."
            )
            request = {
                "name": f"{turn.name}: base against adapter",
                "prompts": prompts,
                "pairs_per_prompt": each,
                "adapter_b": turn.adapter_id,
                "duration": options.duration,
                "seed": (options.seed + SEEDS // 2) % SEEDS,
                "user_id": options.user,
            }
            turn.ab_test_id = (await self._client.post("/ab-tests", request, Identified, turn.key("test"))).id
            self._save()
        with self._bar() as bar:
            task = bar.add_task("clips of the test", total=None, figures="")
            while (test := await self._client.get(f"/ab-tests/{turn.ab_test_id}"))["status"] == "generating":
                done = test["pairs_generated"] + test["pairs_failed"]
                bar.update(task, total=test["pairs_total"], completed=done)
                await asyncio.sleep(POLL_SECONDS)

    async def _vote(self) -> bool:
        """Whether no pair is left to be heard."""
        path = f"/ab-tests/{self._turn.ab_test_id}"
        if (await self._client.get(path))["status"] == "closed":
            return True
        with self._bar(hidden=self._is_person) as bar:
            task = bar.add_task("votes", total=None, figures="")
            await self._judge.vote(
                path, self._options.user, lambda cast, of: bar.update(task, completed=cast, total=of)
            )
        if await self._client.find(f"{path}/next", listen.Trial, voter=self._options.user) is not None:
            return False
        self._mark("test")
        return True

    async def _end(self, file: Path, test_id: str | None) -> None:
        """Tells the verdict and writes the report."""
        turn = self._turn
        asked, found, clips = None, None, list[Clips]()
        if test_id is not None:
            path = f"/ab-tests/{test_id}"
            self._say("6. Verdict")
            asked = await self._client.fetch(path, Asked)
            found = await self._client.fetch(f"{path}/results", Results)
            verdict.show(self._terminal, asked, found)
            clips = await self._clips(await self._client.get(path))
        told = Told(
            turn=turn,
            dataset=await self._client.get(f"/datasets/{turn.dataset_id}"),
            training=await self._client.get(f"/trainings/{turn.training_id}"),
            adapter=await self._client.get(f"/adapters/{turn.adapter_id}") if turn.adapter_id else None,
            asked=asked,
            found=found,
            clips=clips,
        )
        page = report(told, f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
        try:
            await asyncio.to_thread(file.write_text, page, encoding="utf-8")
        except OSError as error:
            raise ClientError(f"{file} cannot be written: {error.strerror}. Choose another with --report.") from None
        self._say(f"Report: {file}", "bold")

    async def _clips(self, test: dict[str, Any]) -> list[Clips]:
        """Base and adapter on the first prompts of the test; a clip that is gone is left out."""
        found = []
        for pair in [each for each in test["pairs"] if each["status"] == "generated"][:HEARD_IN_REPORT]:
            sides = []
            for name in ("job_a", "job_b"):
                try:
                    [sample_id] = (await self._client.get(f"/jobs/{pair[name]}"))["sample_ids"]
                    sides.append(await self._client.content(f"/audio/{sample_id}/stream?format=mp3"))
                except (RefusedError, ValueError):
                    break
            else:
                found.append(Clips(prompt=pair["prompt"], base=sides[0], adapter=sides[1]))
        return found

    async def _job(self, job_id: str, bar: Progress, task: TaskID) -> dict[str, Any]:
        """As it is at its end."""
        data: dict[str, Any] = {}
        async for update in self._client.follow(job_id):
            data = update.data
            if "progress" in data:
                bar.update(task, figures=f"making {data['progress']:.0f} %")
        bar.update(task, figures="")
        return data

    def _stopped(self, where: str) -> Outcome:
        self._say(f"Stopped in the middle of {where}; the same command goes on.")
        return "stopped"

    def _mark(self, step: str) -> bool:
        """Whether the step ended only now."""
        if step in self._turn.ended:
            return False
        self._turn.ended[step] = datetime.now(UTC).isoformat(timespec="seconds")
        self._save()
        return True

    def _save(self) -> None:
        self._folder.write(self._turn)

    def _say(self, words: str, style: str | None = None) -> None:
        self._terminal.tell(words, style)

    def _bar(self, *, hidden: bool = False) -> Progress:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
        )
        return Progress(*columns, console=self._terminal, transient=True, disable=hidden)
