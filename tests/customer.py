"""Somebody who uses a studio that keeps dying, by its documented ways alone, and remembers what was agreed."""

import asyncio
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any, Final

import httpx

from domain.jobs import OPEN
from tests.conditions import eventually

IN_FLIGHT: Final = 20
PATIENCE: Final = float(os.environ.get("PATIENCE", "300"))
DELETED: Final = 0.3
JUDGED_AT_ONCE: Final = 4
PAIRS: Final = 2
VOTERS: Final = ("ann", "ben")
FEW: Final = 12
CHANGES: Final = ("revise", "revise", "revise", "erase", "delete", "nothing", "nothing")


class Customer:
    """Keeps the queue filled, now and then thinks better of a job, and repeats every request until it is answered.

    `urls` are the studio's doors: each try goes to any of them. `accepted` has each job's number of samples.
    """

    def __init__(self, http: httpx.AsyncClient, dice: Random, name: str) -> None:
        self.urls: Sequence[str] = [""]
        self.leaving = False
        self.accepted: dict[str, int] = {}
        self.cancelled: set[str] = set()
        self.deleted: set[str] = set()
        self.feedback: dict[str, dict[str, Any]] = {}
        self.erased: set[str] = set()
        self.voted: dict[str, str] = {}
        self.votes: dict[str, str] = {}
        self._http = http
        self._dice = dice
        self._name = name
        self._since: dict[str, str] = {}
        self._unsure: set[str] = set()
        self._given: dict[str, dict[str, str]] = {}

    async def order(self) -> None:
        ordered = 0
        while not self.leaving:
            counts = (await self._ask("GET", "/jobs/stats")).json()["counts"]
            missing = IN_FLIGHT - sum(counts.get(status, 0) for status in OPEN)
            await asyncio.gather(*(self._submit(f"{self._name}-{ordered + number}") for number in range(missing)))
            ordered += max(missing, 0)
            await asyncio.sleep(0.2)

    async def reconsider(self) -> None:
        while not self.leaving:
            await asyncio.sleep(self._dice.uniform(0, 8))
            status = self._dice.choice(["queued", "processing"])
            listed = (await self._ask("GET", "/jobs", params={"status": status}, headers=self._since)).json()["items"]
            # The retry of a submission whose answer was lost would meet a deleted job.
            known = self.accepted.keys() - self._unsure - self.deleted
            if not (jobs := [job["id"] for job in listed if job["id"] in known]):
                continue
            job_id = self._dice.choice(jobs)
            if self._dice.random() < DELETED:
                done = await self._ask("DELETE", f"/jobs/{job_id}", or_else=404)  # by a try whose answer was lost
                self.deleted.add(job_id)
                self._since = _since(done)
                if self._since:
                    assert (await self._look(job_id, done)).status_code == 404
                else:
                    # The one process that says so may be ahead of the others, and of the lists.
                    self._unsure.add(job_id)
            else:
                done = await self._ask("DELETE", f"/generate/{job_id}", or_else=(404, 409))
                if done.status_code == 404:
                    # While it was asked again and again, the job may have been completed, judged and deleted.
                    assert job_id in self.deleted, f"DELETE /generate/{job_id}: {done.text}"
                    continue
                # After a 202 the job may turn out to have been over before.
                seen = await self._look(job_id, done)
                assert seen.is_success or job_id in self.deleted, f"GET /jobs/{job_id}: {seen.text}"
                if seen.is_success and seen.json()["status"] in {"cancelling", "cancelled"}:
                    self.cancelled.add(job_id)

    async def judge(self) -> None:
        """Gives feedback on finished jobs, revises it, erases it, and now and then deletes a job that has some.

        What it said last is in `feedback`, by id, whatever became of the job. It leaves late where few jobs had ended.
        """
        given = 0
        while not self.leaving or (len(self.standing) < FEW and await self._awaits_jobs()):
            await asyncio.sleep(self._dice.uniform(0, 2))
            listed = (await self._ask("GET", "/jobs", params={"status": "completed"}, headers=self._since)).json()
            jobs = [job for job in listed["items"] if job["id"] in self.accepted and job["id"] not in self.deleted]
            if not jobs:
                continue
            for _ in range(JUDGED_AT_ONCE):
                given += 1
                await self._give(self._dice.choice(jobs), f"{self._name}-feedback-{given}")
            mine = [id_ for id_, said in self.feedback.items() if self._stands(id_, said)]
            match self._dice.choice(CHANGES) if mine else "nothing":
                case "revise":
                    said = self.feedback[revised := self._dice.choice(mine)]
                    said["notes"] = f"{said['notes']}, on second thought"
                    body = {"rating": said["rating"], "notes": said["notes"]}
                    await self._ask("PUT", f"/feedback/{revised}", or_else=404, json=body, headers=self._given[revised])
                case "erase":
                    erased = self._dice.choice(mine)
                    # By a try whose answer was lost.
                    await self._ask("DELETE", f"/feedback/{erased}", or_else=404, headers=self._given[erased])
                    self.erased.add(erased)
                case "delete":
                    job_id = self.feedback[self._dice.choice(mine)]["job_id"]
                    self.deleted.add(job_id)
                    done = await self._ask("DELETE", f"/jobs/{job_id}", or_else=404)
                    self._since = _since(done) or self._since

    async def compare(self) -> None:
        """Has one A/B test after the other made, and several voters vote on it until they have heard all of it.

        `voted` has the choice of each vote by its notes, which are like no other's; `votes` has, by id, the notes of
        those that were taken. Of the others it is not known: an answer may be lost.
        """
        created = 0
        while not self.leaving or not self.votes:
            created += 1
            key = f"{self._name}-test-{created}"
            body = {"name": key, "prompts": [f"snow, {key}"], "pairs_per_prompt": PAIRS, "duration": 1.0}
            test = (await self._ask("POST", "/ab-tests", json=body, headers={"Idempotency-Key": key})).json()
            self.accepted |= {pair[job]: 1 for pair in test["pairs"] for job in ("job_a", "job_b")}
            # While everything dies a worker may hardly come to work, so only afterwards its time is limited.
            while not (is_ready := await self._is_ready(test["id"])) and not self.leaving:
                pass
            if not is_ready:
                await eventually(partial(self._is_ready, test["id"]), PATIENCE)
            await asyncio.gather(*(self._vote(test["id"], voter) for voter in VOTERS))

    async def _is_ready(self, test_id: str) -> bool:
        await asyncio.sleep(0.2)
        test = (await self._ask("GET", f"/ab-tests/{test_id}")).json()
        return bool(test["status"] == "ready")

    async def _vote(self, test_id: str, voter: str) -> None:
        url, since = f"/ab-tests/{test_id}", dict[str, str]()
        while (
            trial := await self._ask("GET", f"{url}/next", params={"voter": voter}, headers=since)
        ).status_code != 204:
            notes, choice = f"<{test_id} {voter} {len(self.voted)}>", self._dice.choice(["left", "right", "tie"])
            self.voted[notes] = choice
            body = {
                "trial_id": trial.json()["trial_id"],
                "choice": choice,
                "heard_first": "left",
                "seconds_listened": {"left": 1.0, "right": 1.0},
                "notes": notes,
            }
            # A try whose answer was lost may have been taken, or a job of the pair been deleted.
            answer = await self._ask("POST", f"{url}/votes", or_else=409, json=body)
            if answer.is_success:
                self.votes[answer.json()["vote_id"]] = notes
            since = _since(answer)
            await asyncio.sleep(self._dice.uniform(0, 1))

    async def _awaits_jobs(self) -> bool:
        counts = (await self._ask("GET", "/jobs/stats")).json()["counts"]
        return any(counts.get(status, 0) for status in OPEN)

    async def _give(self, job: dict[str, Any], key: str) -> None:
        said = {
            "audio_id": job["sample_ids"][0],
            "rating": self._dice.choice([1.0, 2.5, 5.0]),
            "notes": f"<{key}>",
        }
        answer = await self._ask("POST", "/feedback", or_else=404, json=said, headers={"Idempotency-Key": key})
        # The job may be deleted meanwhile; then nothing of it may be left, whatever was appended.
        if answer.is_success:
            self.feedback[id_ := answer.json()["id"]] = {**said, "job_id": job["id"]}
            self._given[id_] = _since(answer)

    def _stands(self, id_: str, said: Mapping[str, Any]) -> bool:
        return id_ not in self.erased and said["job_id"] not in self.deleted

    @property
    def standing(self) -> dict[str, dict[str, Any]]:
        """The feedback that has to be there in the end, and no other."""
        return {id_: said for id_, said in self.feedback.items() if self._stands(id_, said)}

    async def is_served(self) -> bool:
        with suppress(httpx.TransportError):
            ready = await self._http.get(f"{self._dice.choice(self.urls)}/health/ready")
            return ready.status_code == 200 and bool(ready.json()["generates"])
        return False

    async def _submit(self, key: str) -> None:
        samples, duration = self._dice.choice([1, 2]), self._dice.uniform(1, 2)
        request = {"prompt": f"rain on a tin roof, take {key}", "num_samples": samples, "duration": duration}
        answer = await self._ask("POST", "/generate", json=request, headers={"Idempotency-Key": key})
        self.accepted[answer.json()["job_id"]] = samples

    async def _look(self, job_id: str, since: httpx.Response) -> httpx.Response:
        """The job with what that answer was about."""
        return await self._ask("GET", f"/jobs/{job_id}", or_else=404, headers=_since(since))

    async def _ask(
        self, method: str, path: str, *, or_else: int | Collection[int] = (), **request: Any
    ) -> httpx.Response:
        """The first answer that is a success, or another one that fits."""
        fitting = [or_else] if isinstance(or_else, int) else or_else
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(httpx.TransportError):
                    answer = await self._http.request(method, self._dice.choice(self.urls) + path, **request)
                    if answer.is_success or answer.status_code in fitting:
                        return answer
                    assert answer.status_code == 503, f"{method} {path}: {answer.status_code} {answer.text}"
                    assert "Retry-After" in answer.headers
                await asyncio.sleep(0.1)


def _since(answer: httpx.Response) -> dict[str, str]:
    """Asks for an answer that shows what that one was about."""
    position = answer.headers.get("X-Event-Position")
    return {"If-Event-Position": position} if position else {}
