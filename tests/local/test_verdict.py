"""`text2song verdict`, and its report, against a studio's recorded answers."""

import asyncio
import contextlib
import io
import re
from collections.abc import AsyncIterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from rich.console import Console

from domain.verdicts import Results, Vote, results
from infra.cli import verdict_picture
from infra.cli.verdict import show, tell
from infra.cli.verdict_report import NARROW, WIDE, report
from infra.cli.verdict_words import Asked, Pair, amount, headline, reasons
from tests.local.parts import open_parts
from tests.local.test_ab_tests import ready, vote
from text2song.client import ClientError
from text2song.connection import NAME

HOSTILE = "<script>alert(1)</script> [bold]rain[/bold] & 'snow'"
ASKED = Asked(
    id="0198",
    name=f"Warm {HOSTILE}",
    status="ready",
    progress="2/2 pairs generated",
    pairs=[Pair(HOSTILE, "generated"), Pair("hail", "failed")],
    model_id="text2song/musicgen-nano",
    adapter_a=f"0199-{HOSTILE}",
)


def cast(count: int, choice: Any = "left", *, voter: str = "ann", left: Any = "A", **changes: Any) -> list[Vote]:
    fields = {"choice": choice, "voter": voter, "left": left, "time": "2026-01-01T00:00:00Z", **changes}
    return [Vote(pair=pair, **fields) for pair in range(count)]


def found(votes: Sequence[Vote]) -> Results:
    return results(votes, duration=10.0)


def printed(asked: Asked, result: Results, width: int = 100) -> str:
    terminal = Console(file=io.StringIO(), width=width)
    show(terminal, asked, result)
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


@contextlib.asynccontextmanager
async def studio(answers: dict[str, Any]) -> AsyncIterator[str]:
    """A server that answers a path with its JSON, and others with a problem."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        status, kind, body = 200, "application/json", answers.get(path)
        if body is None:
            status, kind, body = 404, "application/problem+json", {"detail": "There is no such A/B test."}
        data = msgspec.json.encode(body)
        head = (
            f"HTTP/1.1 {status} .\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + data)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_the_verdict_is_told_and_a_report_written(tmp_path: Path) -> None:
    file, terminal = tmp_path / "report.html", Console(file=io.StringIO(), width=300)
    answers = {"/": {"name": NAME, "notice": None}, "/ab-tests/0198": ASKED, "/ab-tests/0198/results": found(cast(12))}
    async with studio(answers) as url:
        await tell(terminal, url, "0198", file)
        with pytest.raises(ClientError, match=re.escape("There is no such A/B test.")):
            await tell(terminal, url, "../x?y", file)
        with pytest.raises(ClientError, match=r"cannot be written: Is a directory\. Choose another with --html"):
            await tell(terminal, url, "0198", tmp_path)
    assert isinstance(terminal.file, io.StringIO)
    assert "is better than B (the base model)." in terminal.file.getvalue()
    assert "<h1>Warm &lt;script&gt;" in file.read_text(encoding="utf-8")


async def test_a_real_studio_s_answers_are_told(tmp_path: Path) -> None:
    async with open_parts(tmp_path / "studio") as parts:
        test = await ready(parts)
        for pair in (0, 1):
            assert (await vote(parts, test["id"], pair=pair)).status_code == 201
        paths = ["/", f"/ab-tests/{test['id']}", f"/ab-tests/{test['id']}/results"]
        answers = {path: (await parts.http.get(path)).json() for path in paths}
    terminal = Console(file=io.StringIO(), width=100)
    async with studio(answers) as url:
        await tell(terminal, url, test["id"], tmp_path / "report.html")
    assert isinstance(terminal.file, io.StringIO)
    assert "base against base  (ready, 2/2 pairs generated)" in terminal.file.getvalue()
    assert "There is no verdict yet." in terminal.file.getvalue()
    assert "<li>slow blues</li>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_what_strangers_wrote_is_shown_as_they_wrote_it() -> None:
    text = printed(ASKED, found(cast(12)), width=300)
    assert f"Warm {HOSTILE}" in text
    assert f"A (adapter 0199-{HOSTILE}) is better" in text


def test_the_report_runs_nothing_and_loads_nothing() -> None:
    page = report(ASKED, found(cast(12)), "now")
    tags, addresses = list[str](), list[str]()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            addresses.extend(name for name, _ in attrs if name in {"src", "href"} or name.startswith("on"))

    Reader().feed(page)
    assert not {"script", "bold", "img", "link", "iframe"} & set(tags)
    assert not addresses
    assert "url(" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 4
    assert "1 pairs could not be made" in page


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("count", [1, 3, 40, 400])
def test_pictures_stay_within_their_frame(width: int, count: int) -> None:
    result = found([vote for n in range(3) for vote in cast(count, voter=f"voter {n}")])
    for draw in (verdict_picture.evidence, verdict_picture.win_rate):
        svg = ElementTree.fromstring(draw(result, width))  # noqa: S314 -- made here
        points = [point for shape in svg if (listed := shape.get("points")) for point in listed.split()]
        assert points
        for point in points:
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= verdict_picture.HEIGHT
        assert any("verdict" in (each.text or "") or "equivalent" in (each.text or "") for each in svg)


@pytest.mark.parametrize("most", [1, 3, 10, 99, 195, 1_000, 123_456])
def test_ticks_are_few_and_reach_far(most: int) -> None:
    for wanted in (4, 8):
        marks = verdict_picture.ticks(most, wanted)
        assert len(marks) <= wanted + 1
        assert marks[-1] > most / 2


@pytest.mark.parametrize(
    ("votes", "words"),
    [
        ([], "No vote counts so far."),
        (cast(12), "One person voted, so this is about what that person prefers."),
        (cast(3), "20 is needed"),
        (cast(60, "tie"), "are equivalent"),
        ([*cast(12), *cast(2, "tie", voter="bob")], "A verdict must not hang on a single voter"),
        ([vote for n in range(3) for vote in cast(20, voter=f"v{n}")], "It is about these 3 listeners"),
        ([vote for n in range(9) for vote in cast(20, voter=f"v{n}")], "The 9 listeners agree enough"),
    ],
)
def test_every_verdict_says_why(votes: list[Vote], words: str) -> None:
    result = found(votes)
    assert words in " ".join([headline(ASKED, result), *reasons(result)])
    assert words.split(maxsplit=1)[0] in printed(ASKED, result, width=300)
    assert all(part in report(ASKED, result, "now") for part in words.split())


def test_what_does_not_count_is_told() -> None:
    votes = [*cast(3), *cast(1), *cast(2, "tie", catch="B", voter="bob"), *cast(1, voter="eve", seconds_left=0.1)]
    text, page = printed(ASKED, found(votes), width=200), report(ASKED, found(votes), "now")
    for words in (
        "second votes of a voter on a pair: 1",
        "before both sides had been heard for 2 s: 1",
        "say nothing about the arms: 2",
    ):
        assert words in text
        assert words in page


def test_narrow_terminals_leave_out_remarks() -> None:
    lines = printed(ASKED, found(cast(12)), width=44).splitlines()
    assert all(len(line) <= 44 for line in lines)
    assert "interval" not in " ".join(lines)


def test_evidence_is_rounded_down() -> None:
    assert [amount(value) for value in (19.99, 0.0312, 1.0, 1234.9, 1e300)] == [
        "19.9",
        "0.03",
        "1",
        "1,234",
        "over a million",
    ]
