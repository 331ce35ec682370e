"""Everything dies by SIGKILL in turn, again and again: the roles, the model's process, the broker, mongod and S3.

The workers have two models, and now and then the weights of one are away while its process dies. KILLS says how often,
SEED which moments.
"""

import asyncio
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any, Final

import httpx

from domain.ports import ObjectStore, ReadStore, Record
from infra.servers.loopback import Servers
from projections.audio import AUDIO
from tests import audit
from tests.cluster import consumer
from tests.cluster.roles import Name, Role, studio
from tests.conditions import eventually
from tests.customer import PATIENCE, Customer
from tests.digest import digests
from tests.servers import servers
from workers.engines import noise

KILLS: Final = int(os.environ.get("KILLS", "9"))
SEED: Final = int(os.environ.get("SEED", Random().randrange(10**6)))
VICTIMS: Final = ("api", "project", "work", "react", "engine", "kafka", "mongo", "s3", "model")
NAMES: Final[tuple[Name, ...]] = ("api", "project", "work", "react")
AWAY_SECONDS: Final = 4.0
# A worker gives up when its model dies while it is loaded, and an API that starts without one; a projection, when Faust
# leaves it behind.
ENDINGS: Final = {"api": {1}, "work": {1}, "project": {os.EX_SOFTWARE}}
CONTRACT: Final = Path(__file__).parents[1] / "golden" / "contract"


class Killer:
    """Waits for whoever is to die to be alive; a server that it has killed starts again at once."""

    def __init__(
        self, roles: list[Role], models: list[Path], there: Servers, dice: Random, tasks: asyncio.TaskGroup
    ) -> None:
        self._roles = roles
        self._models = models
        self._there = there
        self._dice = dice
        self._tasks = tasks
        self._starting: dict[str, asyncio.Task[None]] = {}

    async def kill(self, victim: str) -> None:
        match victim:
            case "kafka" | "mongo" | "s3":
                if victim in self._starting:
                    await self._starting[victim]
                await asyncio.to_thread(self._there.kill, victim)
                self._starting[victim] = self._tasks.create_task(asyncio.to_thread(self._there.start, victim))
            case "model":
                if victim in self._starting:
                    await self._starting[victim]
                number = self._dice.randrange(len(self._models))
                weights = self._models[number] / "model.safetensors"
                weights.rename(weights.with_suffix(".away"))
                self._starting[victim] = self._tasks.create_task(self._bring_back(weights))
                [role for role in self._roles if role.name == "work"][number].kill_engine()
            case "engine":
                await self._surely(self._any("work").kill_engine)
            case name:
                await self._surely(partial(self._any(name).send, signal.SIGKILL))

    async def done(self) -> None:
        await asyncio.gather(*self._starting.values())

    async def _bring_back(self, weights: Path) -> None:
        await asyncio.sleep(AWAY_SECONDS)
        weights.with_suffix(".away").rename(weights)

    async def _surely(self, kill: Callable[[], bool]) -> None:
        async def killed() -> bool:
            return kill()

        await eventually(killed, PATIENCE)

    def _any(self, name: str) -> Role:
        return self._dice.choice([role for role in self._roles if role.name == name])


def made_models(folder: Path) -> list[Path]:
    """Two folders with tiny models."""
    folders = [folder / f"model-{number}" for number in (1, 2)]
    for seed, place in enumerate(folders):
        network, tokenizer = noise.build(seed=seed)
        network.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return folders


def by_published_table(records: Iterable[Record]) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Each job's statuses, one after the other, and its last state, as a reader of the contract finds them."""
    fold = consumer.Fold(consumer.Contract(CONTRACT), "jobs")
    statuses: dict[str, list[str]] = defaultdict(list)
    for record in records:
        fold.add(consumer.Record(str(record.position), record.key, record.value, dict(record.headers)))
        status = fold.aggregates[record.key]["state"]["status"]
        if statuses[record.key][-1:] != [status]:
            statuses[record.key].append(status)
    assert not fold.dead_letters
    return {job_id: (passed, fold.aggregates[job_id]["state"]) for job_id, passed in statuses.items()}


async def named(store: ReadStore) -> set[str]:
    """The objects that the store's documents speak of: hidden ones have lost theirs."""
    paths = [sample.storage_path async for sample in store.scan(AUDIO) if not sample.hidden]
    assert len(set(paths)) == len(paths)
    return audit.keys(paths)


async def stored(objects: ObjectStore) -> set[str]:
    return {info.key for info in await objects.list("samples")}


async def test_whatever_is_killed_nothing_accepted_is_lost_or_done_twice(tmp_path: Path) -> None:
    print(f"\nSEED={SEED}")
    began, there, dice = time.monotonic(), servers(), Random(SEED)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(asyncio.to_thread, there.up)
        running = await stack.enter_async_context(studio(there.addresses, tmp_path))
        models = await asyncio.to_thread(made_models, tmp_path)
        roles = [running.role(name, TEXT2SONG_MODEL=str(model)) for name in NAMES for model in models]
        http = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=10))
        customer = Customer(http, Random(SEED), str(SEED))
        customer.urls = [role.url for role in roles if role.name == "api"]
        async with asyncio.TaskGroup() as tasks:
            kept = [tasks.create_task(role.keep()) for role in roles]
            killer = Killer(roles, models, there, dice, tasks)
            using = [tasks.create_task(customer.order()), tasks.create_task(customer.reconsider())]
            using += [tasks.create_task(customer.judge()), tasks.create_task(customer.compare())]
            for victim in islice(cycle(VICTIMS), KILLS):
                if dice.random() < 0.5:
                    await eventually(customer.is_served, PATIENCE)
                await asyncio.sleep(dice.uniform(0, 3))
                print(f"{time.monotonic() - began:6.1f} s: {victim}", flush=True)
                await killer.kill(victim)
            await killer.done()
            customer.leaving = True
            await asyncio.gather(*using)
            log, store, objects = await stack.enter_async_context(running.adapters())
            folded = await eventually(lambda: audit.settled(log, objects, customer), PATIENCE)
            assert folded is not None
            await eventually(lambda: audit.is_erased(log, customer), PATIENCE)
            for task in kept:
                task.cancel()
        # What was appended in doubt may still land, until those that appended it are gone.
        assert [await role.stop() for role in roles if role.name != "project"] == [0] * 6
        await eventually(lambda: audit.is_folded(log, store), PATIENCE)
        assert [await role.stop() for role in roles if role.name == "project"] == [0] * 2

        await audit.compare(folded, customer, objects)
        await audit.compare_feedback(log, customer)
        await audit.compare_votes(log, customer)
        published = by_published_table(await audit.records(log, "jobs"))
        assert published.keys() == customer.accepted.keys()
        for job_id, (statuses, state) in published.items():
            assert [status in {"completed", "failed", "cancelled"} for status in statuses].index(True) == (
                len(statuses) - 1
            ), statuses
            assert len(set(state["samples"].values())) == len(state["samples"]) <= customer.accepted[job_id]
        assert await stored(objects) == await named(store)
        assert await digests(store) == await audit.replayed(log, tmp_path)

    for role in roles:
        assert {-signal.SIGKILL, *ENDINGS.get(role.name, ())}.issuperset(role.endings), (role.endings, role.said)
    ended = Counter(job.status for job, _ in folded.values())
    assert not ended["failed"], [job.error for job, _ in folded.values() if job.status == "failed"]
    print(
        f"{KILLS} kills, {len(folded)} jobs: {', '.join(f'{count} {status}' for status, count in ended.items())}, "
        f"{len(customer.deleted)} deleted; {len(customer.feedback)} times feedback, "
        f"{len(customer.standing)} stand; {len(customer.votes)} votes; "
        f"{sum(job.attempt for job, _ in folded.values())} attempts, "
        f"{time.monotonic() - began:.0f} s"
    )
