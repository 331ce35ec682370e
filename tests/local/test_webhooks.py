"""Webhooks at a studio with a real receiver: what is sent, when it is sent again, and where nothing is sent."""

import asyncio
import contextlib
import json
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from standardwebhooks import Webhook, WebhookVerificationError

from domain.errors import UnavailableError
from domain.events import Event
from domain.events.jobs import JobCancelRequested, JobFailed, JobStarted
from domain.models import NOISE
from domain.webhooks import Delivery
from infra import roles
from infra.settings import Settings, load
from tests.conditions import eventually, eventually_sync
from tests.local.conftest import Running
from tests.local.parts import Parts, open_parts, stop
from tests.local.test_cli import text2song
from tests.receiver import Heard, Receiver, receiving
from workers import claims
from workers.outgoing import LookUps, Receivers
from workers.reactions import Reactions
from workers.trade import BrokenError, Run
from workers.webhook_secrets import WebhookSecrets
from workers.webhooks import QueueingOfWebhooks, Sending, worker


class Hooks:
    """A studio that sends webhooks, without an engine: jobs end because somebody says so."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.count = 0

    async def job(self, url: str, *, events: Sequence[str] = (), user_id: str | None = None) -> str:
        """The id of a job that has failed."""
        self.count += 1
        job_id = f"job-{self.count}"
        asked: dict[str, Any] = {"webhook_url": url, "webhook_events": tuple(events), "user_id": user_id}
        await self.parts.submit(job_id, **asked, campaign_id="spring")
        await self.parts.journal.append(JobStarted(job_id=job_id, attempt=1, worker_id="w"))
        await self.parts.journal.append(JobFailed(job_id=job_id, attempt=1, error="out of tune"))
        # The API reads what it has not appended itself a moment later.
        assert await self.parts.host.caught_up(30)
        return job_id

    async def deliveries(self, job_id: str) -> list[dict[str, Any]]:
        found = (await self.parts.http.get(f"/jobs/{job_id}/webhooks")).json()
        items: list[dict[str, Any]] = found["items"]
        return items

    async def delivery(self, job_id: str, status: str, attempts: int = 0) -> dict[str, Any]:
        """The job's one delivery, once it has that status and so many attempts behind it."""

        async def there() -> dict[str, Any] | None:
            found = await self.deliveries(job_id)
            is_there = found and found[0]["status"] == status and len(found[0]["attempts"]) >= attempts
            return found[0] if is_there else None

        found = await eventually(there)
        assert found is not None
        return found


@contextlib.asynccontextmanager
async def sending(parts: Parts, *, senders: int = 1, **options: Any) -> AsyncIterator[Hooks]:
    receivers = options.pop("receivers", Receivers(loopback=True))
    options = {"lease": 0.6, "waits": (0.05,) * 3, "deadline": 5.0, **options}
    running = [
        asyncio.create_task(
            Reactions(parts.journal, parts.store, parts.host, [QueueingOfWebhooks(parts.journal, parts.store)]).run()
        )
    ]
    running += [
        asyncio.create_task(worker(parts.journal, parts.store, parts.objects, receivers, **options).run())
        for _ in range(senders)
    ]
    try:
        yield Hooks(parts)
    finally:
        await stop(*running)


@pytest.fixture
async def hooks(parts: Parts) -> AsyncIterator[Hooks]:
    async with sending(parts) as found:
        yield found


async def heard(receiver: Receiver, count: int = 1) -> list[Heard]:
    async def enough() -> bool:
        return len(receiver.heard) >= count

    await eventually(enough)
    return receiver.heard


async def secret(parts: Parts) -> str:
    return str((await parts.http.get("/webhooks/secret")).json()["secret"])


async def test_a_message_is_signed_so_that_the_standard_library_verifies_it(hooks: Hooks) -> None:
    with receiving() as receiver:
        job_id = await hooks.job(receiver.url)
        [message] = await heard(receiver)
        told = Webhook(await secret(hooks.parts)).verify(message.body, message.headers)
        assert (told["type"], told["data"]["job_id"]) == ("job.failed", job_id)
        assert (told["data"]["error"], told["data"]["campaign_id"]) == ("out of tune", "spring")
        with pytest.raises(WebhookVerificationError):
            Webhook(await secret(hooks.parts)).verify(message.body + b" ", message.headers)
        shown = await hooks.delivery(job_id, "delivered")
        assert shown["body"] == message.body.decode()
        assert (shown["message_id"], shown["event"]) == (message.id, "job.failed")
        assert [attempt["status_code"] for attempt in shown["attempts"]] == [204]


async def test_the_events_that_were_asked_for_come_and_no_others(hooks: Hooks) -> None:
    with receiving() as receiver:
        await hooks.job(receiver.url, events=["job.started"])
        last = await hooks.job(receiver.url)
        await hooks.delivery(last, "delivered")
        assert sorted(json.loads(each.body)["type"] for each in receiver.heard) == ["job.failed", "job.started"]


async def test_a_job_that_is_cancelled_before_it_began_is_told_of(hooks: Hooks) -> None:
    with receiving() as receiver:
        await hooks.parts.submit("waiting", webhook_url=receiver.url)
        await hooks.parts.journal.append(JobCancelRequested(job_id="waiting"))
        [message] = await heard(receiver)
        assert json.loads(message.body)["type"] == "job.cancelled"


async def test_what_failed_is_sent_again_the_same(hooks: Hooks) -> None:
    with receiving(500, (302, {"Location": "http://127.0.0.1:1/"}), 200) as receiver:
        job_id = await hooks.job(receiver.url)
        shown = await hooks.delivery(job_id, "delivered")
        assert [attempt["status_code"] for attempt in shown["attempts"]] == [500, 302, 200]
        assert "redirects are not followed" in shown["attempts"][1]["error"]
        assert len({(message.id, message.body, message.path) for message in receiver.heard}) == 1


async def test_410_ends_it(hooks: Hooks) -> None:
    with receiving(410) as receiver:
        job_id = await hooks.job(receiver.url)
        shown = await hooks.delivery(job_id, "failed")
        assert shown["error"].startswith("The receiver answered 410")
        assert len(receiver.heard) == 1


async def test_after_the_last_try_it_fails_and_says_how_to_go_on(hooks: Hooks) -> None:
    with receiving(500, 500, 500, 500, 200) as receiver:
        job_id = await hooks.job(receiver.url)
        shown = await hooks.delivery(job_id, "failed")
        assert shown["error"] == "The receiver answered 500. It was tried 4 times; replay it to have it sent again."
        answer = await hooks.parts.http.post(f"/webhooks/{shown['id']}/replay", json={})
        replayed = answer.json()
        assert (answer.status_code, replayed["message_id"]) == (202, shown["message_id"])
        assert replayed["id"] != shown["id"]
        again = await hooks.delivery(job_id, "delivered")
        assert again["id"] == replayed["id"]
        assert len({message.id for message in receiver.heard}) == 1


async def test_one_that_waits_is_sent_at_once_when_somebody_says_so(parts: Parts) -> None:
    async with sending(parts, waits=(3600.0,)) as hooks:
        with receiving(503, 200) as receiver:
            job_id = await hooks.job(receiver.url)
            shown = await hooks.delivery(job_id, "queued", attempts=1)
            assert shown["next_attempt_at"] > shown["created_at"]
            answer = await parts.http.post(f"/webhooks/{shown['id']}/replay", json={})
            assert answer.json()["id"] == shown["id"]
            await hooks.delivery(job_id, "delivered")


async def test_retry_after_is_heeded(parts: Parts) -> None:
    async with sending(parts) as hooks:
        with receiving((429, {"Retry-After": "7200"})) as receiver:
            job_id = await hooks.job(receiver.url)
            shown = await hooks.delivery(job_id, "queued", attempts=1)
            assert shown["next_attempt_at"][11:13] != shown["created_at"][11:13]


async def test_a_receiver_that_does_not_answer_holds_nobody_else_up(parts: Parts) -> None:
    async with sending(parts, deadline=60.0) as hooks:
        with receiving() as slow, receiving() as fast:
            slow.may_answer.clear()
            for _ in range(10):
                await hooks.job(slow.url.replace("127.0.0.1", "localhost"))
            for _ in range(10):
                await hooks.job(fast.url)
            await heard(fast, 10)
            # No more than its share of the connections goes to one host.
            assert len(slow.heard) <= 4


async def test_a_receiver_that_is_too_slow_is_given_up_for_now(parts: Parts) -> None:
    async with sending(parts, deadline=0.2, waits=(3600.0,)) as hooks:
        with receiving() as receiver:
            receiver.may_answer.clear()
            shown = await hooks.delivery(await hooks.job(receiver.url), "queued", attempts=1)
            assert shown["attempts"][0]["error"] == "The receiver did not answer within 0.2 s."


async def test_two_processes_send_each_message_once(parts: Parts) -> None:
    async with sending(parts, senders=2) as hooks:
        with receiving() as receiver:
            jobs = [await hooks.job(receiver.url) for _ in range(12)]
            for job_id in jobs:
                await hooks.delivery(job_id, "delivered")
            assert len(receiver.heard) == len({message.id for message in receiver.heard}) == 12


async def test_after_a_rotation_both_secrets_verify_for_a_day(hooks: Hooks) -> None:
    former = await secret(hooks.parts)
    rotated = (await hooks.parts.http.post("/webhooks/secret/rotate", json={})).json()
    assert rotated["secret"] != former
    assert [each["secret"] for each in rotated["former"]] == [former]
    with receiving() as receiver:
        await hooks.job(receiver.url)
        [message] = await heard(receiver)
        for either in (former, rotated["secret"]):
            Webhook(either).verify(message.body, message.headers)
        assert len(message.headers["webhook-signature"].split(" ")) == 2


async def test_the_jobs_of_a_user_are_signed_with_that_users_secret(hooks: Hooks) -> None:
    with receiving() as receiver:
        await hooks.job(receiver.url, user_id="ann")
        [message] = await heard(receiver)
    anns = (await hooks.parts.http.get("/webhooks/secret?user_id=ann")).json()["secret"]
    Webhook(anns).verify(message.body, message.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(await secret(hooks.parts)).verify(message.body, message.headers)


async def test_a_damaged_secret_holds_up_its_owner_alone(parts: Parts) -> None:
    secrets = WebhookSecrets(parts.objects, parts.journal.now)
    for owner in ("ann", None):
        await secrets.get(owner)
    for stored in await parts.objects.list("secrets/webhooks"):
        await parts.objects.put(stored.key, b"[")
    async with sending(parts, waits=(3600.0,)) as hooks:
        with receiving() as receiver:
            for owner in ("ann", None):
                held = await hooks.delivery(await hooks.job(receiver.url, user_id=owner), "queued", attempts=1)
                assert "which holds secrets of webhooks, is damaged" in held["attempts"][0]["error"]
                assert held["next_attempt_at"] > held["created_at"]
            await hooks.delivery(await hooks.job(receiver.url, user_id="bob"), "delivered")
            assert len(receiver.heard) == 1


async def test_an_object_store_that_is_away_is_waited_for(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    read, asked, is_back = parts.objects.read, list[str](), asyncio.Event()

    async def reading(key: str, *range_: Any) -> Any:
        if key.startswith("secrets/") and not is_back.is_set():
            asked.append(key)
            raise UnavailableError("The object store does not answer.")
        async for chunk in read(key, *range_):
            yield chunk

    monkeypatch.setattr(parts.objects, "read", reading)

    async def is_repeated() -> bool:
        return len(asked) > 2

    async with sending(parts, backoff=0.001) as hooks:
        with receiving() as receiver:
            job_id = await hooks.job(receiver.url)
            await eventually(is_repeated)
            is_back.set()
            shown = await hooks.delivery(job_id, "delivered")
    assert len(shown["attempts"]) == 1


@contextlib.asynccontextmanager
async def whole(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with roles.studio(settings) as url, httpx.AsyncClient(base_url=url, trust_env=False) as http:
        yield http


@contextlib.asynccontextmanager
async def reacting(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with open_parts(settings.folder, receivers=Receivers(loopback=True)) as parts:
        task = asyncio.create_task(roles.react(settings))
        try:
            yield parts.http
        finally:
            await stop(task)


@pytest.mark.parametrize("role", [whole, reacting])
async def test_a_sender_that_gives_up_takes_nobody_down_and_sends_later(
    role: Callable[[Settings], AbstractAsyncContextManager[httpx.AsyncClient]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    perform, faults = Sending.perform, [BrokenError("It is out of order.")] * 2

    async def performing(self: Sending, run: Run[Delivery]) -> Event:
        if faults:
            raise faults.pop()
        return await perform(self, run)

    monkeypatch.setattr(Sending, "perform", performing)
    monkeypatch.setattr(claims, "REPAIRS", 0)
    monkeypatch.setattr(roles, "REST_SECONDS", 0.01)
    settings = load({}, data=str(tmp_path), model=NOISE.id, port=0, webhook_loopback=True)
    with receiving() as receiver:
        async with role(settings) as http:
            asked = {"prompt": "rain", "webhook_url": receiver.url, "webhook_events": ["job.cancelled"]}
            job_id = (await http.post("/generate", json=asked)).json()["job_id"]
            await http.delete(f"/generate/{job_id}")
            await heard(receiver)
    assert faults == []


async def test_a_secret_stops_signing_when_its_day_is_over(parts: Parts) -> None:
    now = "2026-01-01T12:00:00.000000Z"
    secrets = WebhookSecrets(parts.objects, lambda: now)
    await secrets.get(None)
    await secrets.rotate(None)
    now = "2026-01-02T11:59:59.000000Z"
    assert len(await secrets.get(None)) == 2
    now = "2026-01-02T12:00:00.000000Z"
    assert len(await secrets.get(None)) == 1


async def test_each_owner_has_a_secret_of_their_own_which_strangers_to_the_studio_cannot_read(parts: Parts) -> None:
    secrets = WebhookSecrets(parts.objects, parts.journal.now)
    assert (await secrets.get("ann"))[0].secret != (await secrets.get("bob"))[0].secret
    stored = [path for path in (parts.folder / "objects" / "secrets").rglob("*") if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in stored} == {0o600}
    assert "no-store" in (await parts.http.get("/webhooks/secret")).headers["Cache-Control"]


ADDRESSES = [
    "http://127.0.0.1/",
    "http://localhost/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://0/",
    "http://[::1]/",
    "http://[::]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[fec0::1]/",
    "http://[fe80::1]/",
    "http://[fd00::1]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "http://10.0.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.64.0.1/",
    "http://192.0.0.8/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
]


async def test_an_address_that_leads_inside_is_refused(parts: Parts) -> None:
    for url in ADDRESSES:
        answer = await parts.http.post("/generate", json={"prompt": "rain", "webhook_url": url})
        problem = answer.json()
        assert (answer.status_code, problem["errors"][0]["pointer"]) == (400, "/webhook_url"), problem
        assert "not public" in problem["detail"] or "Invalid IPv4" in problem["detail"]
    assert (await parts.http.get("/jobs")).json()["total"] == 0


BAD_WEBHOOKS: list[tuple[dict[str, Any], str]] = [
    ({"webhook_url": "ftp://example.org/"}, "no http or https URL"),
    ({"webhook_url": "example.org"}, "no http or https URL"),
    ({"webhook_url": "http://"}, "no http or https URL"),
    ({"webhook_url": "https://example.org/a b"}, "no http or https URL"),
    ({"webhook_url": "https://example.org/\r\nX-Evil: 1"}, "no http or https URL"),
    ({"webhook_url": "https://exämple.org/"}, "is no host"),
    ({"webhook_url": "https://example.org/#top"}, "without a fragment"),
    ({"webhook_url": "https://ann:secret@example.org/"}, "a user's name or password"),
    ({"webhook_url": "https://example.org:99999/"}, "port 99999 is not from 1 to 65535"),
    ({"webhook_url": "https://[::1/"}, "is no host"),
    ({"webhook_url": f"https://example.org/{'a' * 2_000}"}, "the limit is 2,000"),
    ({"webhook_events": ["job.failed"]}, "there is no webhook_url"),
    ({"webhook_url": "https://8.8.8.8/", "webhook_events": []}, "webhook_events is empty"),
    ({"webhook_url": "https://8.8.8.8/", "webhook_events": ["job.praised"]}, "it is one of job.cancelled"),
]


async def test_a_webhook_that_cannot_be_is_refused_with_the_reason(parts: Parts) -> None:
    for body, words in BAD_WEBHOOKS:
        answer = await parts.http.post("/generate", json={"prompt": "rain", **body})
        assert answer.status_code == 400
        assert words in answer.json()["detail"]


async def test_a_name_that_leads_elsewhere_when_it_is_connected_to_is_refused_then(parts: Parts) -> None:
    """A name server may answer a public address first, and an inner one to the next question."""
    answers = [["8.8.8.8"], ["8.8.8.8", "127.0.0.1"]]

    async def resolve(_: str) -> Sequence[str]:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    receivers = Receivers(resolve=resolve)
    assert await receivers.check("http://rebinding.example/") == []
    with receiving() as receiver:
        async with sending(parts, receivers=receivers, waits=(3600.0,)) as hooks:
            job_id = await hooks.job(receiver.url.replace("127.0.0.1", "rebinding.example"))
            shown = await hooks.delivery(job_id, "queued", attempts=1)
        assert "leads to 127.0.0.1, which is not public" in shown["attempts"][0]["error"]
        assert receiver.heard == []


async def test_an_event_that_is_named_often_is_sent_once(parts: Parts) -> None:
    asked = {"prompt": "x", "webhook_url": "https://8.8.8.8/", "webhook_events": ["job.failed", "job.started"] * 11}
    answer = await parts.http.post("/generate", json=asked)
    assert answer.status_code == 202, answer.text
    job = await parts.http.get(f"/jobs/{answer.json()['job_id']}")
    assert job.json()["webhook_events"] == ["job.failed", "job.started"]


@pytest.mark.parametrize(
    ("error", "is_refused"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), True),
        (socket.gaierror(socket.EAI_AGAIN, "no name server answers"), False),
        (OSError("the network is down"), False),
        (UnicodeError("label too long"), True),
    ],
)
async def test_a_look_up_that_fails_is_held_against_no_name_that_may_be_right(
    error: Exception, is_refused: bool
) -> None:
    async def resolve(_: str) -> Sequence[str]:
        raise error

    assert bool(await Receivers(resolve=resolve).check("https://example.org/")) is is_refused


async def test_no_more_names_are_looked_up_at_once_than_there_is_room_for() -> None:
    assert await LookUps(at_once=1)("127.0.0.1") == ["127.0.0.1"]
    with pytest.raises(OSError, match="too many names"):
        await LookUps(at_once=0)("127.0.0.1")


async def test_the_address_that_was_looked_up_is_the_one_that_is_connected_to(parts: Parts) -> None:
    async def resolve(_: str) -> Sequence[str]:
        return ["127.0.0.1"]

    with receiving() as receiver:
        url = receiver.url.replace("127.0.0.1", "somewhere.example")
        async with sending(parts, receivers=Receivers(loopback=True, resolve=resolve)) as hooks:
            await hooks.delivery(await hooks.job(url), "delivered")
        assert receiver.heard[0].headers["host"].startswith("somewhere.example:")


async def test_a_receiver_whose_certificate_is_nobodys_is_sent_nothing(parts: Parts, tmp_path: Path) -> None:
    with receiving(tls=self_signed(tmp_path, "127.0.0.1")) as receiver:
        async with sending(parts, waits=(3600.0,)) as hooks:
            shown = await hooks.delivery(await hooks.job(receiver.url), "queued", attempts=1)
        assert "CERTIFICATE_VERIFY_FAILED" in shown["attempts"][0]["error"]
        assert receiver.heard == []


def self_signed(folder: Path, name: str) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(certificate.public_bytes(Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY", "http_proxy"])
async def test_no_proxy_of_the_environment_comes_between(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    with receiving() as receiver:
        async with sending(parts) as hooks:
            await hooks.delivery(await hooks.job(receiver.url), "delivered")


def test_a_process_that_is_killed_while_it_sends_sends_again_the_same(tmp_path: Path) -> None:
    allowed: dict[str, Any] = {"TEXT2SONG_WEBHOOK_LOOPBACK": "true"}
    with receiving() as receiver:
        receiver.may_answer.clear()
        first = Running(tmp_path / "data", **allowed)
        body = {"prompt": "rain", "duration": 1, "webhook_url": receiver.url, "webhook_events": ["job.cancelled"]}
        job_id = first.http.post("/generate", json=body).json()["job_id"]
        first.http.delete(f"/generate/{job_id}")
        eventually_sync(lambda: receiver.heard)
        first.stop(signal.SIGKILL)
        receiver.may_answer.set()
        second = Running(tmp_path / "data", **allowed)

        def delivered() -> bool:
            [shown] = second.http.get(f"/jobs/{job_id}/webhooks").json()["items"]
            return bool(shown["status"] == "delivered")

        eventually_sync(delivered)
        assert len({(message.id, message.body) for message in receiver.heard}) == 1
        assert len(receiver.heard) > 1
        assert second.stop() == 0


def test_the_command_line_tells_the_secret_and_what_is_not_there(studio: Running, tmp_path: Path) -> None:
    done = text2song("webhooks", "secret", "--url", studio.url, cwd=tmp_path)
    assert done.stdout.strip() == studio.http.get("/webhooks/secret").json()["secret"]
    done = text2song("webhooks", "replay", "nobody", "--url", studio.url, cwd=tmp_path)
    assert (done.returncode, "There is no webhook delivery 'nobody'" in done.stderr) == (1, True)
