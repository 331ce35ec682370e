"""The log of a process on standard error: lines for people, or JSON objects for programs.

In either format a record cannot begin a line of its own making: what users wrote may hold line breaks.
"""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

from domain.correlation import current, current_job
from domain.events import timestamp

Format: TypeAlias = Literal["text", "json"]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]

LAYOUT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Whose records the level is for. Libraries say at most their warnings: some write whole addresses, keys in them too.
OURS: Final = ("domain", "commands", "projections", "workers", "api", "infra", "text2song")
# C0 and C1 controls, and the line and paragraph separators: what ends a line or commands a terminal.
UNPRINTABLE: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
REQUEST: Final = ("method", "path", "status", "duration_ms")


def configure(role: str, form: Format, level: Level) -> None:
    """Of the whole process, whose handlers stay, if it has any."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.StreamHandler())
    formatter = Json(role) if form == "json" else Text()
    for handler in root.handlers:
        handler.setFormatter(formatter)
    root.setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())


class Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(LAYOUT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- its name is logging's
        now = current()
        return UNPRINTABLE.sub(_escaped, super().formatMessage(record)) + (f" [{now.id}]" if now else "")

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


class Json(logging.Formatter):
    """One object a line, in ASCII."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        now, job_id = current(), current_job()
        told: dict[str, Any] = {
            "time": timestamp(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "role": self._role,
            "correlation_id": now.id if now else None,
            "trace_id": now.trace_id if now else None,
            "job_id": job_id,
            **{name: getattr(record, name, None) for name in REQUEST},
            "exception": self.formatException(record.exc_info) if record.exc_info else record.exc_text,
            "stack": record.stack_info,
        }
        return json.dumps({name: value for name, value in told.items() if value is not None}, default=str)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _indented(text: str) -> str:
    """So that no line of it looks like the first of a record."""
    return "\n".join(f"  {UNPRINTABLE.sub(_escaped, line)}" for line in text.split("\n"))
