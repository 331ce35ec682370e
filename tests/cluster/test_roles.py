"""The roles as an operator meets them: started before the servers, told to stop, left alone by a server, side by side.

READS says how often one API process reads what another one wrote.
"""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from msgspec.structs import replace

from domain.aggregates import TOPICS
from domain.envelope import encode
from domain.events import Event
from domain.events.progress import WorkerAlive
from domain.events.prompts import PromptCreated
from domain.ports import EventLog, Message
from infra.servers.loopback import NAMES
from infra.storage.kafka import KafkaAccess
from projections.project import FOLDED_FROM
from tests import audit
from tests.bench.read_side import completed as life
from tests.bench.read_side import history
from tests.cluster.roles import PATIENCE, Role, Studio, studio
from tests.cluster.test_kafka_log import create
from tests.conditions import eventually
from tests.history import SUBMITTED
from tests.servers import Servers, servers

READS: Final = int(os.environ.get("READS", "200"))
AT_ONCE: Final = 8
OLD_JOBS: Final = 2_000
READABLE: Final = 200  # lines about a few outages
TIME: Final = "2026-01-01T00:00:00.000000Z"
SHORT: Final = {"prompt": "rain on a tin roof", "num_samples": 2, "duration": 1.0}
LONG: Final = {**SHORT, "duration": 6.0}
HELLO: Final = ("Text2Song Studio", "Folding ", "Generating ")
READ: Final = ("prompts", "jobs", "progress")
ODD: Final = (b"\xff no JSON", b'{"type":"Unheard"}')
PROMPT: Final = PromptCreated(prompt_id="prompt", text="rain on a tin roof")
ALIVE: Final = WorkerAlive(worker_id="worker", model_id="model", state="ready")
WAITS: Final = {
    "kafka": ("The event log waits: Kafka (127.0.0.1:", "Start Kafka, or correct the address. Trying again in"),
    "mongo": ("The read store waits: MongoDB at 127.0.0.1:", "See that it runs; try again. Trying again in"),
    "s3": ("The object store waits: S3 at http://127.0.0.1:", "See that it runs; try again. Trying again in"),
}


@pytest.fixture
def there() -> Iterator[Servers]:
    running = servers()
    running.up()
    yield running
    running.up()


@pytest.fixture
async def place(there: Servers, tmp_path: Path) -> AsyncIterator[Studio]:
    async with studio(there.addresses, tmp_path) as made:
        yield made


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        yield client


async def ask(http: httpx.AsyncClient, method: str, url: str, **request: Any) -> httpx.Response:
    """The answer, once there is one that is no 503."""

    async def answer() -> httpx.Response | None:
        with suppress(httpx.TransportError):
            found = await http.request(method, url, **request)
            return None if found.status_code == 503 else found
        return None

    found = await eventually(answer, PATIENCE)
    assert found is not None
    return found


async def completed(http: httpx.AsyncClient, url: str, job_id: str) -> dict[str, Any]:
    async def job() -> dict[str, Any] | None:
        found: dict[str, Any] = (await ask(http, "GET", f"{url}/jobs/{job_id}")).json()
        assert found["status"] in {"queued", "processing", "completed"}, found
        return found if found["status"] == "completed" else None

    found = await eventually(job, PATIENCE)
    assert found is not None
    return found


async def submit(http: httpx.AsyncClient, url: str, request: dict[str, Any]) -> str:
    answer = await ask(http, "POST", f"{url}/generate", json=request)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


async def ready(place: Studio, http: httpx.AsyncClient) -> tuple[Role, Role]:
    """An API and a worker that have begun to read."""
    roles = api, work = place.role("api"), place.role("work")
    for role in roles:
        await role.start()

    async def are_ready() -> bool:
        return len((await ask(http, "GET", f"{api.url}/health/ready")).json()["workers"]) == 1

    await eventually(are_ready, PATIENCE)
    return api, work


async def test_roles_that_start_before_the_servers_say_whom_they_wait_for_and_then_work(
    there: Servers, place: Studio, http: httpx.AsyncClient
) -> None:
    for name in NAMES:
        await asyncio.to_thread(there.kill, name)
    roles = api, project, work = [place.role("api"), place.role("project"), place.role("work")]
    for role in roles:
        await role.start()
    for name in NAMES:
        for role in (api, work) if name == "s3" else roles:
            for part in WAITS[name]:
                await role.says(part)
        await asyncio.to_thread(there.start, name)
    assert (await completed(http, api.url, await submit(http, api.url, SHORT)))["attempt"] == 1
    assert [await role.stop() for role in (work, project, api)] == [0, 0, 0]
    assert not [role.said for role in roles if "Traceback" in role.said]


async def test_wrong_credentials_are_named_but_not_shown(place: Studio) -> None:
    secret = "not-the-secret"  # noqa: S105
    locked = place.environment["TEXT2SONG_STORE"].replace("mongodb://", f"mongodb://somebody:{secret}@")
    refused = {
        place.role("api", TEXT2SONG_S3_SECRET_KEY=secret): "refuses the access key 'text2song' with its secret",
        place.role("project", TEXT2SONG_STORE=locked): "refuses this user and password",
        place.role("work", TEXT2SONG_STORE=locked): "refuses this user and password",
    }
    for role in refused:
        await role.start()
    for role, line in refused.items():
        # To wait for a server that has answered would be for nothing.
        assert await role.ending(PATIENCE) == 1, role.said
        assert line in role.said
        assert secret not in role.said
        assert "Traceback" not in role.said


async def test_roles_refuse_a_topic_that_would_lose_records_in_one_sentence(there: Servers, place: Studio) -> None:
    topic, access = f"{place.prefix}jobs", KafkaAccess(servers=there.addresses.kafka)
    await create(access, topic, TOPICS["jobs"].partitions, {"retention.ms": "604800000"})
    for role in (place.role("api"), place.role("project"), place.role("work")):
        await role.start()
        assert await role.ending(PATIENCE) == 1, role.said
        [sentence] = [line for line in role.said.splitlines() if not line.startswith(HELLO)]
        assert sentence.startswith(f"text2song: Kafka's topic '{topic}' has retention.ms=604800000; it must be -1")


@pytest.mark.parametrize("event", [PROMPT, SUBMITTED, ALIVE], ids=lambda event: event.topic)
async def test_an_event_of_a_newer_version_ends_each_of_its_readers_with_one_sentence(
    place: Studio, http: httpx.AsyncClient, event: Event
) -> None:
    api, work = await ready(place, http)
    message = encode(event, event_id="event", time=TIME)
    newer = message.headers["ce_type"].replace(".v1", ".v2")
    async with place.adapters() as (log, _, _):
        [at] = await log.append([replace(message, headers={**message.headers, "ce_type": newer})])
    readers = [api] if event.topic == "prompts" else [api, work]
    for role in readers:
        assert await role.ending(PATIENCE) == 1, role.said
        [sentence] = [line for line in role.said.splitlines() if not line.startswith(HELLO)]
        assert sentence.startswith(f"text2song: {at} holds a {type(event).__name__} of type {newer!r}")
    assert [await role.stop() for role in (api, work) if role not in readers] == [0] * (2 - len(readers))


async def test_records_that_are_no_events_stop_nobody(place: Studio, http: httpx.AsyncClient) -> None:
    api, work = await ready(place, http)
    job_id = await submit(http, api.url, SHORT)
    await completed(http, api.url, job_id)
    headers = encode(ALIVE, event_id="event", time=TIME).headers
    odd = [Message(topic, job_id, value, headers) for topic in READ for value in ODD]
    async with place.adapters() as (log, _, _):
        placed = [str(at) for at in await log.append(odd) if at.topic != "progress"]
    read = await ask(http, "GET", f"{api.url}/jobs/{job_id}", headers={"If-Event-Position": ", ".join(placed)})
    assert (read.status_code, read.json()["suspect"]) == (200, True)
    await completed(http, api.url, await submit(http, api.url, SHORT))
    assert [await role.stop() for role in (work, api)] == [0, 0]


async def test_while_a_server_is_away_the_api_answers_503_and_the_worker_keeps_its_job(
    there: Servers, place: Studio, http: httpx.AsyncClient
) -> None:
    roles = api, project, work = [place.role("api"), place.role("project"), place.role("work")]
    for role in roles:
        await role.start()
    done = await completed(http, api.url, await submit(http, api.url, LONG))
    needing: dict[str, tuple[str, str, dict[str, Any]]] = {
        "kafka": ("POST", "/generate", {"json": SHORT}),
        "mongo": ("GET", "/jobs", {}),
        "s3": ("GET", f"/audio/{done['sample_ids'][0]}/stream?format=wav", {}),
    }
    waiting = {
        "kafka": (work, "waits: Kafka may not have taken the append"),
        "mongo": (project, "The views' host waits: MongoDB at"),
        "s3": (work, "waits: S3 at"),
    }
    for name in NAMES:
        job_id = await submit(http, api.url, LONG)
        await asyncio.to_thread(there.kill, name)
        method, path, request = needing[name]
        answer = await http.request(method, api.url + path, **request)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1"), answer.text
        assert answer.json()["code"] in {"unavailable", "outcome_unknown"}
        role, line = waiting[name]
        await role.says(line)
        await asyncio.to_thread(there.start, name)
        assert (await completed(http, api.url, job_id))["attempt"] == 1
        assert (await ask(http, method, api.url + path, **request)).is_success
    assert not [role.said for role in roles if "Traceback" in role.said or role.said.count("\n") > READABLE]


async def test_roles_stop_within_seconds_with_a_job_in_hand_and_every_server_away(
    there: Servers, place: Studio, http: httpx.AsyncClient
) -> None:
    roles = api, *_ = [place.role("api"), place.role("project"), place.role("work")]
    for role in roles:
        await role.start()
    job_id = await submit(http, api.url, LONG)

    async def is_processing() -> bool:
        return bool((await ask(http, "GET", f"{api.url}/jobs/{job_id}")).json()["status"] == "processing")

    await eventually(is_processing, PATIENCE)
    for name in NAMES:
        await asyncio.to_thread(there.kill, name)
    assert await asyncio.gather(*(role.stop() for role in roles)) == [0, 0, 0]
    for role in roles:
        assert "Traceback" not in role.said


async def test_two_workers_carry_out_each_job_once(place: Studio, http: httpx.AsyncClient) -> None:
    roles = api, *_ = [place.role("api"), place.role("project"), place.role("work"), place.role("work")]
    for role in roles:
        await role.start()

    async def are_ready() -> bool:
        return len((await ask(http, "GET", f"{api.url}/health/ready")).json()["workers"]) == 2

    await eventually(are_ready, PATIENCE)
    ordered = [await submit(http, api.url, SHORT) for _ in range(5)]
    for job_id in ordered:
        await completed(http, api.url, job_id)
    assert [await role.stop() for role in roles] == [0] * len(roles)
    async with place.adapters() as (log, _, _):
        made = [json.loads(record.value or b"") for record in await audit.records(log, "jobs")]
        folded = await audit.jobs(log)
    generated = Counter((event["job_id"], event["index"]) for event in made if event["type"] == "SampleGenerated")
    assert generated == Counter({(job_id, index): 1 for job_id in ordered for index in range(2)})
    assert {job_id: holding.count("JobStarted") for job_id, (_, holding) in folded.items()} == dict.fromkeys(ordered, 1)


async def test_what_one_api_process_wrote_another_one_shows(place: Studio, http: httpx.AsyncClient) -> None:
    apis = [place.role("api"), place.role("api")]
    for role in (*apis, place.role("project"), place.role("project")):
        await role.start()
    numbers = iter(range(READS))

    async def check(api: Role, prompt_id: str, text: str, position: str) -> None:
        headers = {"If-Event-Position": position}
        read = await ask(http, "GET", f"{api.url}/prompts/{prompt_id}", headers=headers)
        assert (read.status_code, read.json().get("text")) == (200, text), read.text

    async def check_list(api: Role, prompt_id: str, position: str) -> None:
        listed = await ask(http, "GET", f"{api.url}/prompts", headers={"If-Event-Position": position})
        assert prompt_id in [item["id"] for item in listed.json()["items"]], listed.text

    async def write_and_read(log: EventLog) -> None:
        for number in numbers:
            writer, reader = apis[number % 2], apis[1 - number % 2]
            text = f"rain on a tin roof, take {number}"
            written = await ask(http, "POST", f"{writer.url}/prompts", json={"text": text})
            prompt_id, position = written.json()["id"], written.headers["X-Event-Position"]
            await check(reader, prompt_id, text, position)
            await check_list(reader, prompt_id, position)
            # The API had waited for its own views; this writer waits for nobody.
            created = PromptCreated(prompt_id=f"prompt-{number}", text=text)
            [appended] = await log.append([encode(created, event_id=f"event-{number}", time=TIME)])
            await check(reader, created.prompt_id, text, str(appended))

    async with place.adapters() as (log, _, _):
        await asyncio.gather(*(write_and_read(log) for _ in range(AT_ONCE)))
        ends = await log.ends("prompts")
    for api in apis:
        for path in ("prompts", "prompts/prompt-0"):
            headers = {"If-Event-Position": f"prompts/0/{ends[0] + 1_000_000}"}
            ahead = await http.get(f"{api.url}/{path}", headers=headers)
            assert (ahead.status_code, "the next there will be prompts/0/" in ahead.text) == (400, True)
    assert [await role.stop() for role in place.roles] == [0] * 4


async def test_jobs_are_shown_and_cancelled_while_nobody_folds_the_views(
    place: Studio, http: httpx.AsyncClient
) -> None:
    one, other = place.role("api"), place.role("api")
    for role in (one, other):
        await role.start()
    submitted = await ask(http, "POST", f"{one.url}/generate", json=SHORT)
    job_id, headers = submitted.json()["job_id"], {"If-Event-Position": submitted.headers["X-Event-Position"]}
    shown = await ask(http, "GET", f"{other.url}/jobs/{job_id}", headers=headers)
    assert (shown.status_code, shown.json()["status"]) == (200, "queued")
    listed = await http.get(f"{other.url}/jobs", headers=headers)
    assert (listed.status_code, listed.headers["Retry-After"]) == (503, "1")
    cancelled = await ask(http, "DELETE", f"{other.url}/generate/{job_id}")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    headers = {"If-Event-Position": cancelled.headers["X-Event-Position"]}
    assert (await ask(http, "GET", f"{one.url}/jobs/{job_id}", headers=headers)).json()["status"] == "cancelled"
    await place.role("project").start()
    listed = await ask(http, "GET", f"{one.url}/jobs", headers=headers)
    assert [(item["id"], item["status"]) for item in listed.json()["items"]] == [(job_id, "cancelled")]
    assert [await role.stop() for role in place.roles] == [0] * 3


async def test_views_are_rebuilt_by_the_command_while_jobs_are_submitted_and_read(
    place: Studio, http: httpx.AsyncClient
) -> None:
    async with place.adapters() as (log, _, _):
        await log.append(list(history(OLD_JOBS, life)))
    roles = api, *_ = [place.role("api"), place.role("project"), place.role("work")]
    for role in roles:
        await role.start()
    submitted = [await submit(http, api.url, SHORT)]
    await completed(http, api.url, submitted[0])

    async def read(path: str) -> dict[str, Any]:
        answer = await http.get(api.url + path)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    rebuilding = await place.command("rebuild", "jobs")
    told = asyncio.create_task(rebuilding.communicate())
    while not told.done():
        job, *_ = [await read(path) for path in (f"/jobs/{submitted[-1]}", "/jobs", "/jobs/stats")]
        if job["status"] == "completed":
            submitted.append(await submit(http, api.url, SHORT))
    said = (await told)[0].decode()
    assert rebuilding.returncode == 0, said
    [(folded, total)] = re.findall(r"(\d+)/(\d+)", said)
    assert int(folded) == int(total) > 5 * OLD_JOBS
    differing = dict(re.findall(r"^│ (\w+) +│ [\d,]+ +│ (\d+) ", said, re.MULTILINE))
    assert differing == {view.name: "0" for view in FOLDED_FROM["jobs"]}
    assert said.endswith("The rebuilt views serve now.\n")
    assert len(submitted) > 1
    for job_id in submitted:
        await completed(http, api.url, job_id)

    async def all_are_listed() -> bool:
        return bool((await read("/jobs?status=completed"))["total"] == OLD_JOBS + len(submitted))

    await eventually(all_are_listed, PATIENCE)
