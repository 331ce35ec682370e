"""What one API process counts of its own work: requests, and what happens to jobs."""

import time
from typing import Any, Final

from litestar.types import HTTPScope, Message, Send
from prometheus_client import CollectorRegistry, Counter, Histogram

from domain.events.jobs import (
    JobAttemptFailed,
    JobCancelled,
    JobCompleted,
    JobDeleted,
    JobFailed,
    JobStarted,
    JobSubmitted,
)

# A request for what no route answers, or for a method that nobody knows: labels are never what a stranger wrote.
OTHER: Final = "other"
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
JOB_EVENTS: Final[dict[type, str]] = {
    JobSubmitted: "submitted",
    JobStarted: "claimed",
    JobAttemptFailed: "attempt_failed",
    JobCompleted: "completed",
    JobFailed: "failed",
    JobCancelled: "cancelled",
    JobDeleted: "deleted",
}
REMEMBERED: Final = 10_000


class Meter:
    """Since the process began. Each has a registry of its own, so that several may stand in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Histogram(
            "text2song_http_request_duration_seconds",
            "Time until an answer begins, by the route's template.",
            ["method", "route", "status"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._jobs = Counter(
            "text2song_job_events",
            "Events of jobs that this process has read from the log since it began.",
            ["event"],
            registry=self.registry,
        )
        self._takeovers = Counter(
            "text2song_takeovers",
            "Jobs that a worker took over from one that fell silent, since this process began.",
            registry=self.registry,
        )
        for event in (*JOB_EVENTS.values(), "released"):
            self._jobs.labels(event)
        # The attempt that each job is in.
        self._running: dict[str, int] = {}

    def timed(self, method: str, scope: HTTPScope, send: Send) -> Send:
        """A stream counts once, by when it begins."""
        begun = time.perf_counter()
        method = method if method in METHODS else OTHER

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                found: Any = scope
                route = found.get("path_template") or OTHER
                self._requests.labels(method, route, message["status"]).observe(time.perf_counter() - begun)
            await send(message)

        return counted

    def take(self, event: object) -> None:
        if (name := JOB_EVENTS.get(type(event))) is None:
            return
        is_released = isinstance(event, JobAttemptFailed) and event.released
        self._jobs.labels("released" if is_released else name).inc()
        match event:
            case JobStarted(job_id=job_id, attempt=attempt):
                before = self._running.pop(job_id, attempt)
                self._running[job_id] = max(attempt, before)
                if attempt > before:
                    self._takeovers.inc()
                if len(self._running) > REMEMBERED:
                    del self._running[next(iter(self._running))]
            case JobAttemptFailed() | JobCompleted() | JobFailed() | JobCancelled() | JobDeleted():
                self._running.pop(event.job_id, None)
