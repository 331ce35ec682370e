"""The two formats of the log, and what users' text can do in them."""

import json
import logging
from datetime import datetime

import pytest

from domain.correlation import Correlation, correlated
from infra.logs import Json, Text

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FORGED = "x\n2026-01-31 12:00:00,000 ERROR infra: forged\r\x1b[2J\x85\u2028{}"


def record(text: str, *, fails: bool = False) -> logging.LogRecord:
    error = ValueError(text)
    info = (ValueError, error, error.__traceback__) if fails else None
    return logging.LogRecord("workers.claims", logging.WARNING, "file", 1, "It says %s", (text,), info)


def test_json_has_everything_that_is_known() -> None:
    with correlated(Correlation("mine", TRACE), "job-1"):
        told = json.loads(Json("work").format(record("a", fails=True)))
    assert datetime.fromisoformat(told.pop("time")).utcoffset() is not None
    assert "ValueError: a" in told.pop("exception")
    assert told == {
        "level": "warning",
        "logger": "workers.claims",
        "message": "It says a",
        "role": "work",
        "correlation_id": "mine",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "job_id": "job-1",
    }


@pytest.mark.parametrize("fails", [False, True])
def test_no_text_begins_a_line_of_json(fails: bool) -> None:
    line = Json("work").format(record(FORGED, fails=fails))
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == f"It says {FORGED}"


@pytest.mark.parametrize("fails", [False, True])
def test_no_text_begins_a_line_of_the_other_format(fails: bool) -> None:
    with correlated(Correlation("mine")):
        first, *others = Text().format(record(FORGED, fails=fails)).splitlines()
    assert "ERROR infra: forged" in first
    assert first.endswith("[mine]")
    assert bool(others) == fails
    assert all(line.startswith("  ") for line in others)
    assert all(line.isprintable() for line in (first, *others))
