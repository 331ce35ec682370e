"""What an operator reads: figures for Prometheus, and what is missing."""

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from domain.errors import UnavailableError
from domain.events.jobs import JobAttemptFailed, JobCompleted, JobStarted
from domain.events.progress import WorkerAlive
from domain.models import NOISE
from domain.ports import ObjectInfo, Query, View
from tests.conditions import eventually
from tests.local.engine import ScriptedEngine
from tests.local.parts import Parts

DEPLOY = Path(__file__).parents[2] / "infra" / "deploy"
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def figures(parts: Parts) -> Samples:
    answer = await parts.http.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def requests(found: Samples, method: str, route: str, status: str) -> float:
    name = "text2song_http_request_duration_seconds_count"
    return of(found, name, method=method, route=route, status=status)


def of(found: Samples, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


async def counted(parts: Parts, **events: int) -> bool:
    """Whether so many events of jobs are counted, which happens as they are heard of."""
    found = await figures(parts)
    return all(of(found, "text2song_job_events_total", event=name) == count for name, count in events.items())


async def test_requests_are_counted_by_route_and_never_by_what_a_stranger_wrote(parts: Parts) -> None:
    await parts.http.get("/jobs/first")
    before = await figures(parts)
    for number in range(300):
        await parts.http.get(f"/jobs/none-{number}")
        await parts.http.get(f"/nothing/{number}")
        await parts.http.request(f"METHOD{number}", "/jobs")
        alive = WorkerAlive(worker_id=f"w{number}", model_id=f"strange/{number}", state="ready")
        await parts.journal.append(alive)
    await parts.http.head("/jobs")
    after = await figures(parts)
    assert (
        of(after, "text2song_http_request_duration_seconds_count", method="GET", route="/jobs/{job_id}", status="404")
        == 301
    )
    assert of(after, "text2song_http_request_duration_seconds_count", method="GET", route="other", status="404") == 300
    assert of(after, "text2song_http_request_duration_seconds_count", method="HEAD", route="/jobs", status="200") == 1
    assert of(after, "text2song_workers", model="other", state="ready") > 0
    # Beside those: a method and a route for what is strange, the metrics themselves, and HEAD.
    assert len({key for key in after if key not in before and key[0].endswith("_count")}) < 8
    assert len({key for key in after if key[0] == "text2song_workers"}) <= 6


async def test_the_queue_is_shown_by_model_with_the_age_of_its_oldest_job(parts: Parts) -> None:
    for number in range(3):
        assert (await parts.http.post("/generate", json={"prompt": f"rain {number}"})).status_code == 202
    assert await parts.host.caught_up(10)
    waiting = await figures(parts)
    assert of(waiting, "text2song_queued_jobs", model=NOISE.id) == 3
    first = min(job["created_at"] for job in (await parts.http.get("/jobs")).json()["items"])
    age = datetime.now(UTC) - datetime.fromisoformat(first)
    assert timedelta(seconds=of(waiting, "text2song_oldest_queued_job_seconds", model=NOISE.id)) <= age
    await eventually(lambda: counted(parts, submitted=3))
    assert of(waiting, "text2song_unfolded_records", topic="jobs") == 0
    assert of(waiting, "text2song_up", source="log") == of(waiting, "text2song_up", source="views") == 1
    async with parts.working(ScriptedEngine()):
        for job in (await parts.http.get("/jobs")).json()["items"]:
            await parts.when(job["id"], "completed")
    assert await parts.services.tail.wait(await parts.journal.append(JobCompleted(job_id="none", attempt=1)), 10)
    done = await figures(parts)
    assert of(done, "text2song_queued_jobs", model=NOISE.id) == 0
    assert of(done, "text2song_job_events_total", event="completed") >= 3
    assert of(done, "text2song_takeovers_total") == 0


async def test_a_takeover_is_a_claim_of_a_job_whose_attempt_did_not_end(parts: Parts) -> None:
    await parts.submit("lost")
    await parts.submit("given")
    again = JobAttemptFailed(
        job_id="given", attempt=1, error="stopped", retry_at="2026-01-01T00:00:00.000000Z", released=True
    )
    positions = await parts.journal.append(
        JobStarted(job_id="lost", attempt=1, worker_id="a"),
        JobStarted(job_id="lost", attempt=1, worker_id="late"),
        JobStarted(job_id="lost", attempt=2, worker_id="b"),
        JobStarted(job_id="given", attempt=1, worker_id="a"),
        again,
        JobStarted(job_id="given", attempt=2, worker_id="b"),
    )
    assert await parts.services.tail.wait(positions, 10)
    found = await figures(parts)
    assert of(found, "text2song_takeovers_total") == 1
    assert of(found, "text2song_job_events_total", event="released") == 1


async def test_figures_of_a_server_that_is_away_are_left_out_and_the_others_are_there(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def count(view: View[Any], query: Query) -> int:
        raise UnavailableError(f"The store with {view.name} is away, and {query.limit} were asked for.")

    async def ends(topic: str) -> dict[int, int]:
        await asyncio.Event().wait()
        raise AssertionError(topic)

    monkeypatch.setattr(parts.store, "count", count)
    monkeypatch.setattr(parts.log, "ends", ends)
    monkeypatch.setattr("api.metrics.PATIENCE_SECONDS", 0.05)
    found = await figures(parts)
    assert of(found, "text2song_up", source="log") == of(found, "text2song_up", source="views") == 0
    assert of(found, "text2song_event_streams") == 0
    assert not [name for name, _ in found if name == "text2song_queued_jobs"]
    assert "There are no figures of the log: it did not answer in time." in caplog.messages


async def test_the_same_figures_are_given_as_openmetrics(parts: Parts) -> None:
    answer = await parts.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert "text2song_job_events" in {family.name for family in cast("Any", openmetrics)(answer.text)}


async def test_figures_need_a_key_that_may_see_everything(parts: Parts) -> None:
    made = await parts.http.post("/keys", json={"owner": "ann", "scopes": ["admin"]})
    admin = {"X-API-Key": made.json()["key"]}
    weak = await parts.http.post("/keys", json={"owner": "bob", "scopes": ["read"]}, headers=admin)
    answers = [
        await parts.http.get("/metrics", headers=headers) for headers in ({}, {"X-API-Key": weak.json()["key"]}, admin)
    ]
    assert [answer.status_code for answer in answers] == [401, 403, 200]


async def test_readiness_names_what_is_missing(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    found = (await parts.http.get("/health/ready")).json()
    assert found["missing"] == ["worker: none with a model is there; jobs are accepted, and wait."]

    async def stat(key: str) -> ObjectInfo | None:
        raise UnavailableError(f"S3 did not answer for {key}.")

    monkeypatch.setattr(parts.objects, "stat", stat)
    answer = await parts.http.get("/health/ready")
    # Everything but audio can be had.
    assert (answer.status_code, answer.json()["objects"]) == (200, False)
    assert answer.json()["missing"][0].startswith("objects: S3 did not answer for samples/none.")


async def test_the_dashboard_names_only_figures_that_there_are(parts: Parts) -> None:
    await parts.journal.append(WorkerAlive(worker_id="w", model_id=NOISE.id, state="ready"))
    assert await parts.services.tail.wait(
        await parts.journal.append(JobStarted(job_id="x", attempt=1, worker_id="w")), 10
    )
    await parts.http.get("/jobs")
    known = {name for name, _ in await figures(parts)}
    dashboard = json.loads((DEPLOY / "grafana" / "text2song.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(asked) > 10
    for expression in asked:
        named = set(re.findall(r"text2song_\w+", expression))
        assert named, expression
        assert named <= known, expression
    scraped = (DEPLOY / "prometheus.yml").read_text()
    assert "metrics_path: /metrics" in scraped
