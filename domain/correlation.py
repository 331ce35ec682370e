"""Marks everything that follows from one request, in every process: an id for people, and a place in a trace (W3C
Trace Context).

A context variable holds both, and every event and log line written meanwhile carries them. They come from clients, so a
malformed or overlong value is ignored.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final, Literal, Protocol, TypeAlias

from msgspec import Struct

MAX_ID: Final = 200
ID_HEADER: Final = "ce_correlationid"
TRACE_HEADER: Final = "ce_traceparent"
ID: Final = re.compile(rf"[!-~]{{1,{MAX_ID}}}")
TRACEPARENT: Final = re.compile(
    r"(?P<version>(?!ff)[0-9a-f]{2})-(?P<place>(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2})(?P<rest>-[!-~]*)?"
)
MAX_TRACEPARENT: Final = 200

# OpenTelemetry's kinds of spans, those that there are here.
Kind: TypeAlias = Literal["server", "client", "producer", "consumer"]

# Adds attributes to a span that has begun.
Note: TypeAlias = Callable[[Mapping[str, str | int]], None]


class Correlation(Struct, frozen=True):
    """`traceparent` is of version 00, or None where only an id is known."""

    id: str
    traceparent: str | None = None

    @property
    def trace_id(self) -> str | None:
        return None if self.traceparent is None else self.traceparent.split("-")[1]


class Spans(Protocol):
    """Runs a block as a span of the current trace. Inside, the current correlation is the span's own."""

    def __call__(
        self, name: str, kind: Kind, attributes: Mapping[str, str | int], /
    ) -> AbstractContextManager[Note]: ...


_correlation: Final[ContextVar[Correlation | None]] = ContextVar("correlation", default=None)
_job_id: Final[ContextVar[str | None]] = ContextVar("job_id", default=None)


def untraced(_: str, __: Kind, ___: Mapping[str, str | int], /) -> AbstractContextManager[Note]:
    return nullcontext(_forgotten)


def _forgotten(_: Mapping[str, str | int]) -> None:
    pass


def current() -> Correlation | None:
    return _correlation.get()


def current_job() -> str | None:
    return _job_id.get()


@contextmanager
def correlated(correlation: Correlation | None, job_id: str | None = None) -> Iterator[None]:
    """Inside the block this is the current correlation, and log lines name the job. None stands for neither."""
    before, job_before = _correlation.set(correlation), _job_id.set(job_id)
    try:
        yield
    finally:
        _job_id.reset(job_before)
        _correlation.reset(before)


def traceparent(text: str) -> str | None:
    """The text as version 00, or None if it is malformed. Later versions may add fields at the end, which are cut."""
    found = TRACEPARENT.fullmatch(text) if len(text) <= MAX_TRACEPARENT else None
    if found is None or (found["version"] == "00" and found["rest"]):
        return None
    return f"00-{found['place']}"


def correlation_id(text: str) -> str | None:
    return text if ID.fullmatch(text) else None


def of_record(headers: Mapping[str, str], key: str) -> Correlation | None:
    """The correlation that the record's headers name; None if they name nothing but the record's own key."""
    trace = traceparent(headers.get(TRACE_HEADER, ""))
    ident = correlation_id(headers.get(ID_HEADER, ""))
    if trace is None and ident in {None, key}:
        return None
    return Correlation(ident or key, trace)
