"""Traces of this process for OpenTelemetry, which is imported only where a collector is named."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Final

from domain.correlation import Kind, Note, Spans, untraced
from domain.errors import UnavailableError

INSTALL: Final = "make install, or without make: pip install '.[tracing]'"
NEEDED: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
# A process has one, as it has one log: the last is the one in use.
_in_use: Final[list[Spans]] = [untraced]


def span(name: str, kind: Kind, attributes: Mapping[str, str | int], /) -> AbstractContextManager[Note]:
    """As Spans."""
    return _in_use[-1](name, kind, attributes)


@contextmanager
def exporting(role: str, endpoint: str | None) -> Iterator[None]:
    """Meanwhile spans go to the collector at that URL. Raises UnavailableError where packages are missing."""
    if endpoint is None:
        yield
        return
    if not all(map(_is_installed, NEEDED)):
        raise UnavailableError(
            f"Sending traces to {endpoint} takes further packages. Install them in the studio's folder: {INSTALL}"
        )
    from infra.telemetry import Traces  # noqa: PLC0415 -- see above

    traces = Traces(role, endpoint)
    _in_use.append(traces.span)
    try:
        yield
    finally:
        _in_use.pop()
        traces.close()


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
