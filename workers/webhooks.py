"""Webhooks: what a job's receiver is owed is queued as the job goes on, and sent until it is taken."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from importlib.metadata import version
from random import Random
from typing import Any, Final

import httpx
from standardwebhooks import Webhook

from domain import webhooks
from domain.attempts import MAX_LOST
from domain.correlation import current
from domain.errors import DamagedError, UnavailableError
from domain.events import MAX_ERROR, Event, Recorded, timestamp
from domain.events.jobs import (
    JobCancelled,
    JobCancelRequested,
    JobCompleted,
    JobDeleted,
    JobFailed,
    JobStarted,
    SampleGenerated,
)
from domain.events.progress import WorkerAlive
from domain.events.webhooks import WebhookAttempted
from domain.jobs import JOBS
from domain.journal import Journal, until_done
from domain.ports import ObjectStore, ReadStore
from domain.webhooks import WEBHOOKS, Delivery, deliveries
from workers.claims import Claims
from workers.outgoing import Answer, ForbiddenAddressError, Outgoing, Receivers
from workers.trade import BrokenError, Run
from workers.webhook_secrets import WebhookSecrets

AT_ONCE: Final = 64
SHARE: Final = 4  # of one host
DEADLINE_SECONDS: Final = 15.0
MINUTE: Final = 60.0
HOUR: Final = 60 * MINUTE
# Before each further attempt; they are lengthened or shortened by up to a fifth, so that those of one moment spread.
WAITS: Final = (5.0, 30.0, 2 * MINUTE, 10 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR, 8 * HOUR, 10 * HOUR)
LONGEST_WAIT: Final = 24 * HOUR
TELLING: Final = (
    JobStarted,
    SampleGenerated,
    JobCompleted,
    JobFailed,
    JobCancelRequested,
    JobCancelled,
    JobDeleted,
)
WHO: Final = "The sender of webhooks"
AGENT: Final = f"text2song-studio/{version('text2song-studio')}"


class QueueingOfWebhooks:
    """Queues what is owed for what a job has come to. The ids follow from it, so that a second try doubles nothing."""

    name = "webhooks"
    topics = (JOBS.name,)

    def __init__(self, journal: Journal, store: ReadStore) -> None:
        self._journal = journal
        self._store = store

    async def react(self, batch: Sequence[Recorded]) -> None:
        keys = {recorded.key for recorded in batch if isinstance(recorded.event, TELLING)}
        jobs = await self._store.get(JOBS, list(keys)) if keys else {}
        owed = [message for job in jobs.values() for message in deliveries(job)]
        there = await self._store.get(WEBHOOKS, [message.delivery_id for message in owed]) if owed else {}
        if missing := [(message.key, message) for message in owed if message.key not in there]:
            await self._journal.append_as(missing, [jobs[message.job_id].correlation for _, message in missing])


def worker(
    journal: Journal,
    store: ReadStore,
    objects: ObjectStore,
    receivers: Receivers,
    *,
    lease: float = 6.0,
    backoff: float = 1.0,
    deadline: float = DEADLINE_SECONDS,
    waits: Sequence[float] = WAITS,
) -> Claims[Delivery]:
    """One that sends. `deadline` is for one attempt, `waits` are those before further ones; all are in seconds."""
    trade = Sending(journal, objects, Outgoing(receivers, AT_ONCE), deadline=deadline, waits=waits)
    return Claims(
        journal,
        store,
        trade,
        capacity=AT_ONCE,
        lease=lease,
        backoff=backoff,
        turn=lambda delivery: (0, webhooks.receiver(delivery)),
        share=SHARE,
        longest_rest=2 * LONGEST_WAIT,
    )


class Sending:
    view = WEBHOOKS
    span = "send webhook"

    def __init__(
        self, journal: Journal, objects: ObjectStore, outgoing: Outgoing, *, deadline: float, waits: Sequence[float]
    ) -> None:
        self._journal = journal
        self._secrets = WebhookSecrets(objects, journal.now)
        self._outgoing = outgoing
        self._deadline = deadline
        self._waits = waits
        self._random = Random()

    def alive(self, worker_id: str, state: str) -> WorkerAlive:
        """It has no model, so that nobody takes it for one that generates."""
        return WorkerAlive(worker_id=worker_id, model_id="", state=state)

    def job_id(self, delivery: Delivery) -> str | None:
        return delivery.request.job_id

    def urgency(self, delivery: Delivery) -> Any:
        return delivery.created_at, delivery.id

    def size(self, delivery: Delivery) -> int:  # noqa: ARG002 -- each is one connection
        return 1

    def is_able(self, delivery: Delivery) -> bool:  # noqa: ARG002
        return True

    def start(self, delivery: Delivery, worker_id: str) -> Event:
        return webhooks.start(delivery, worker_id)

    def release(self, delivery: Delivery, now: str, why: str) -> Event:
        return webhooks.release(delivery, now, why)

    def give_up(self, delivery: Delivery) -> Event | None:
        if delivery.lost < MAX_LOST:
            return None
        error = f"The process that sent it vanished {MAX_LOST} times in a row. Replay it to have it sent again."
        return WebhookAttempted(delivery_id=delivery.id, attempt=delivery.attempt, error=error)

    def fail(self, delivery: Delivery, error: str, retry_at: str | None) -> Event:
        may_retry = delivery.failures < len(self._waits)
        return WebhookAttempted(
            delivery_id=delivery.id, attempt=delivery.attempt, error=error, retry_at=retry_at if may_retry else None
        )

    async def perform(self, run: Run[Delivery]) -> Event:
        delivery = run.claimed
        content = delivery.request.body
        answer, is_final, begin = None, False, time.monotonic()
        try:
            headers = await self._signed(delivery, content)
        except DamagedError as error:
            error_text: str | None = str(error)
        else:
            begin = time.monotonic()
            answer, error_text, is_final = await self._sent(delivery.request.url, content.encode(), headers)
        retry_at = None
        if error_text is not None and not is_final:
            retry_at = self._next(delivery, answer)
            if retry_at is None:
                error_text += f" It was tried {delivery.failures + 1} times; replay it to have it sent again."
        return WebhookAttempted(
            delivery_id=delivery.id,
            attempt=delivery.attempt,
            seconds=round(time.monotonic() - begin, 3),
            status_code=answer.status if answer else None,
            error=None if error_text is None else error_text[:MAX_ERROR],
            retry_at=retry_at,
        )

    async def check(self) -> None:
        try:
            # A secret that is damaged holds up those whom it is to sign for, and nobody else.
            with suppress(DamagedError):
                await self._secrets.get(None)
        except UnavailableError as error:
            raise BrokenError(str(error)) from error

    async def tidy(self, delivery: Delivery, attempt: int) -> None:
        """An attempt leaves nothing behind."""

    async def cancel(self, delivery: Delivery, worker_id: str) -> Event:
        raise NotImplementedError  # no delivery is ever stopping

    async def _signed(self, delivery: Delivery, content: str) -> dict[str, str]:
        """Standard Webhooks: one signature for each secret that holds. Waits out outages of the object store, and
        raises DamagedError.
        """
        secrets = await until_done(partial(self._secrets.get, delivery.request.user_id), WHO)
        moment = datetime.fromisoformat(self._journal.now())
        message_id = delivery.request.message_id
        signatures = [Webhook(secret.secret).sign(message_id, moment, content) for secret in secrets]
        return {
            **_correlating(),
            "Content-Type": "application/json",
            "User-Agent": AGENT,
            "webhook-id": message_id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": " ".join(signatures),
        }

    async def _sent(self, url: str, content: bytes, headers: dict[str, str]) -> tuple[Answer | None, str | None, bool]:
        """The answer, what is wrong, and whether another attempt cannot help."""
        try:
            async with asyncio.timeout(self._deadline):
                answer = await self._outgoing.post(url, content, headers)
        except TimeoutError:
            return None, f"The receiver did not answer within {self._deadline:g} s.", False
        except ForbiddenAddressError as error:
            return None, str(error), False
        except (httpx.HTTPError, OSError) as error:
            said = str(error) or type(error).__name__
            return None, f"The receiver could not be reached: {said}.", False
        except (httpx.InvalidURL, UnicodeError, ValueError) as error:
            return None, f"The address cannot be sent to: {error}.", True
        match answer.status:
            case 410:
                return answer, "The receiver answered 410: it wants no more of this.", True
            case status if 200 <= status < 300:
                return answer, None, False
            case status if 300 <= status < 400:
                way_out = "redirects are not followed. Give the address that it leads to"
                return answer, f"The receiver answered {status}; {way_out}.", False
            case status:
                return answer, f"The receiver answered {status}.", False

    def _next(self, delivery: Delivery, answer: Answer | None) -> str | None:
        """When the next attempt is due; None after the last."""
        if delivery.failures >= len(self._waits):
            return None
        wait = self._waits[delivery.failures] * self._random.uniform(0.8, 1.2)
        if answer is not None and answer.retry_after is not None:
            wait = max(wait, min(answer.retry_after, LONGEST_WAIT))
        return timestamp(datetime.fromisoformat(self._journal.now()) + timedelta(seconds=wait))


def _correlating() -> dict[str, str]:
    if (now := current()) is None:
        return {}
    trace = {} if now.traceparent is None else {"traceparent": now.traceparent}
    return {"X-Correlation-ID": now.id, **trace}
