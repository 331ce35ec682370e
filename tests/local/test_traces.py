"""One request followed through the log, the worker and the webhook: by its id, in log lines and in a trace."""

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from domain.errors import UnavailableError
from infra import tracing
from tests import audit
from tests.collector import Span, collecting
from tests.conditions import eventually_sync
from tests.local.conftest import Running
from tests.local.parts import Parts
from tests.local.test_training import SMALL
from tests.receiver import Heard, receiving

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
ROLES = """
import asyncio, json, sys
from infra import roles, tracing
from infra.settings import load

def found():
    return sorted(name for name in sys.modules if name.startswith("opentelemetry"))

async def main():
    settings = load({}, data=sys.argv[1], model="text2song/wiring-noise", port=0)
    with tracing.exporting("react", settings.otlp_endpoint):
        reacting = asyncio.create_task(roles.react(settings))
        while not (settings.folder / "views.db").exists():
            await asyncio.sleep(0.01)
        of_react = found()
        async with roles.api(settings):
            print(json.dumps([of_react, found()]))
        reacting.cancel()
        await asyncio.wait({reacting})

asyncio.run(main())
"""


class Followed(NamedTuple):
    job_id: str
    lines: list[dict[str, Any]]
    spans: list[Span]
    message: Heard


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    """A job from its request to its webhook, at a studio that logs JSON and sends its traces to a collector."""
    with collecting() as collector, receiving() as receiver:
        studio = Running(
            tmp_path_factory.mktemp("traces") / "data",
            TEXT2SONG_LOG_FORMAT="json",
            TEXT2SONG_LOG_LEVEL="info",
            TEXT2SONG_WEBHOOK_LOOPBACK="true",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        )
        studio.wait_until_ready()
        studio.http.get("/jobs/a%0Ab?key=s3cret")
        job_id = studio.http.post(
            "/generate",
            json={"prompt": "rain", "duration": 1, "num_samples": 1, "webhook_url": receiver.url},
            headers={"traceparent": f"00-{TRACE_ID}-{CALLER}-01", "X-Request-ID": "request-7"},
        ).json()["job_id"]
        eventually_sync(lambda: receiver.heard)
        assert studio.stop() == 0
        lines = [json.loads(line) for line in studio.errors().splitlines()]
        yield Followed(job_id, lines, collector.spans, receiver.heard[0])


def test_the_id_of_the_request_is_in_the_log_of_the_api_and_the_worker_and_at_the_receiver(followed: Followed) -> None:
    told = [line for line in followed.lines if line.get("correlation_id") == "request-7"]
    assert {line["trace_id"] for line in told} == {TRACE_ID}
    [request] = [line for line in told if line["logger"] == "api.http.access_log"]
    assert (request["method"], request["path"], request["status"]) == ("POST", "/generate", 202)
    attempts = [line["message"] for line in told if line.get("job_id") == followed.job_id]
    assert f"Attempt 1 of jobs {followed.job_id} begins." in attempts
    assert f"Attempt 1 of jobs {followed.job_id} ends with JobCompleted." in attempts
    assert followed.message.headers["x-correlation-id"] == "request-7"


def test_no_query_is_logged_and_no_path_breaks_a_line(followed: Followed) -> None:
    assert any(line.get("path") == "/jobs/a%0Ab" for line in followed.lines)
    assert "s3cret" not in json.dumps(followed.lines)
    assert "s3cret" not in str(followed.spans)


def test_a_job_is_one_trace_from_the_request_to_the_webhook(followed: Followed) -> None:
    trace = [span for span in followed.spans if span.trace_id == TRACE_ID]

    def only(name: str, **attributes: str) -> Span:
        [found] = [span for span in trace if span.name == name and attributes.items() <= span.attributes.items()]
        return found

    request = only("POST", **{"url.path": "/generate"})
    generate, webhook = only("generate"), only("send webhook")
    appended = {span.id: span for span in trace if span.name == "append jobs"}
    submission = appended[generate.parent_id]
    assert (request.parent_id, submission.parent_id) == (CALLER, request.id)
    assert webhook.parent_id == submission.id
    assert any(span.parent_id == generate.id for span in appended.values()), (
        "the sample's append is part of the attempt"
    )
    assert followed.message.headers["traceparent"] == f"00-{TRACE_ID}-{webhook.id}-01"
    assert {span.service for span in trace} == {"text2song-up"}
    assert {span.attributes.get("text2song.correlation_id") for span in trace} == {"request-7"}


def test_datasets_and_trainings_are_traces_from_the_request_to_the_worker(tmp_path: Path) -> None:
    traces = {name: f"{number:032x}" for number, name in enumerate(("datasets", "export", "trainings"), start=1)}
    sent = {name: {"traceparent": f"00-{trace}-{CALLER}-01", "X-Request-ID": name} for name, trace in traces.items()}
    with collecting() as collector:
        studio = Running(tmp_path / "data", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        try:
            studio.wait_until_ready()
            job = {"prompt": "rain", "duration": 1, "num_samples": 2}
            job_ids = [studio.http.post("/generate", json=job | {"prompt": text}).json()["job_id"] for text in "abcd"]
            eventually_sync(lambda: studio.http.get("/jobs?status=completed").json()["total"] == 4)
            for job_id in job_ids:
                for sample in studio.http.get(f"/jobs/{job_id}").json()["sample_ids"]:
                    studio.http.post("/feedback", json={"audio_id": sample, "rating": 5}).raise_for_status()
            asked = {"name": "all", "type": "supervised"}
            dataset_id = studio.http.post("/datasets", json=asked, headers=sent["datasets"]).json()["id"]
            eventually_sync(lambda: studio.http.get(f"/datasets/{dataset_id}").json()["status"] == "built")
            studio.http.post(f"/datasets/{dataset_id}/export", json={"format": "supervised"}, headers=sent["export"])
            asked = {"dataset_id": dataset_id, "method": "sft", "adapter_name": "a", "adapter_version": "1.0.0"}
            answer = studio.http.post("/trainings", json=asked | {"config": SMALL}, headers=sent["trainings"])
            training = f"/trainings/{answer.json()['training_id']}"
            eventually_sync(lambda: studio.http.get(training).json()["status"] in {"completed", "failed"}, 900)
            assert studio.http.get(training).json()["error"] is None
        finally:
            code = studio.stop()
        assert code == 0

    def only(trace_id: str, name: str) -> Span:
        [found] = [span for span in collector.spans if (span.trace_id, span.name) == (trace_id, name)]
        return found

    for name, topic, work in (
        ("datasets", "datasets", "build dataset"),
        ("export", "datasets", "export dataset"),
        ("trainings", "trainings", "train"),
    ):
        done, request = only(traces[name], work), only(traces[name], "POST")
        appended = {span.id: span for span in collector.spans if span.name == f"append {topic}"}
        assert (request.parent_id, appended[done.parent_id].parent_id) == (CALLER, request.id)
        assert done.attributes["text2song.correlation_id"] == name
    # What the attempt itself appends, such as the adapter at the end, is of the same trace.
    trained = only(traces["trainings"], "train")
    assert only(traces["trainings"], "append adapters").parent_id == trained.id


def test_without_a_collector_no_role_imports_opentelemetry(tmp_path: Path) -> None:
    """Litestar itself imports OpenTelemetry's interface where that is installed, with nothing behind it."""
    command = [sys.executable, "-c", ROLES, str(tmp_path / "data")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    of_react, of_api = json.loads(ran.stdout or ran.stderr)
    assert of_react == []
    assert not [name for name in of_api if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]


def test_a_missing_extra_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with (
        pytest.raises(UnavailableError, match=r"make install, or without make: pip install '\.\[tracing\]'"),
        tracing.exporting("api", "http://127.0.0.1:4318"),
    ):
        pass


def test_a_collector_that_is_away_is_said_to_be_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from infra.telemetry import Traces  # noqa: PLC0415 -- the other tests do without it

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.2")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    traces = Traces("api", f"http://user:s3cret@127.0.0.1:{port}")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with traces.span("GET", "server", {}):
                pass
            traces.flush()
        with traces.span("GET", "server", {}):
            pass
        traces.close()
    [said] = caplog.messages
    assert "takes no traces" in said
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("headers", "ident", "trace_id"),
    [
        ({"traceparent": f"00-{TRACE_ID}-{CALLER}-00"}, TRACE_ID, TRACE_ID),
        ({"traceparent": f"00-{TRACE_ID}-{CALLER}-00", "X-Request-ID": "mine"}, "mine", TRACE_ID),
        ({"traceparent": "00-malformed", "X-Request-ID": "mine"}, "mine", None),
        ({"traceparent": "00-malformed", "X-Request-ID": "a b"}, None, None),
        ({"X-Request-ID": 201 * "x"}, None, None),
        ({}, None, None),
    ],
)
async def test_what_is_malformed_is_made_anew(
    parts: Parts, headers: dict[str, str], ident: str | None, trace_id: str | None
) -> None:
    answer = await parts.http.post("/generate", json={"prompt": "rain", "duration": 1}, headers=headers)
    [written] = [each.headers for each in await audit.records(parts.log, "jobs")]
    made = written["ce_traceparent"].split("-")[1]
    assert answer.status_code == 202
    assert made == trace_id or (trace_id is None and len(made) == 32)
    assert written["ce_correlationid"] == (ident or made)
    job = await parts.job(answer.json()["job_id"])
    assert job is not None
    assert job.correlation is not None
    assert (job.correlation.id, job.correlation.trace_id) == (ident or made, made)
