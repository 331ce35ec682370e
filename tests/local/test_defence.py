"""What an attacker tries over HTTP, as far as no other test has it: api/README.md names a test for each defence."""

import asyncio
import csv
import hmac
import io
import re
from pathlib import Path
from typing import Any, Final

import pytest

from api.http.limits import REFUSED
from commands import keys as commands
from domain import keys
from domain.keys import KEYS, KeyRequest
from domain.ports import Position
from tests.local.parts import Parts
from tests.local.test_ab_tests import ready, vote
from tests.local.test_entrance import PLACES

ROOT: Final = Path(__file__).parents[2]
OUTSIDE: Final = (
    "..%2F..%2F..%2Fetc%2Fpasswd",
    "%2e%2e%2f%2e%2e%2fevents.db",
    "..%5C..%5Cevents.db",
    "%2Fetc%2Fpasswd",
    "....%2F%2Fsecrets",
    "..%00.flac",
    "%C0%AE%C0%AE%2Fsecrets",
    "%252e%252e%252fsecrets",
    "secrets%2Ftrials",
)
PAGES: Final = ("/studio", "/studio/index.html", "/schema")


async def key_of(parts: Parts, owner: str, *scopes: Any) -> str:
    key, made = await commands.create_on(parts.journal, KeyRequest(owner=owner, scopes=scopes))
    await parts.services.views.show([Position(KEYS.name, key.partition, key.position)])
    return made


async def test_an_unknown_key_costs_the_comparison_that_a_wrong_secret_does(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await key_of(parts, "ann", "read")
    found = keys.parts(made)
    assert found
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def noted(one: str, other: str) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    for sent in (keys.text("nobody", found[1]), keys.text(found[0], "wrong"), "no key", made):
        status = (await parts.http.get("/jobs", headers={"X-API-Key": sent})).status_code
        assert status == (200 if sent == made else 401)
    assert compared == [(64, 64)] * 4


async def test_keys_cannot_be_tried_without_end(parts: Parts) -> None:
    made = await key_of(parts, "ann", "read")
    for _ in range(REFUSED.quota):
        assert (await parts.http.get("/jobs", headers={"X-API-Key": "t2s_a_b"})).status_code == 401
    refused = await parts.http.get("/jobs", headers={"X-API-Key": "t2s_a_b"})
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
    assert 0 < int(refused.headers["Retry-After"]) <= REFUSED.seconds
    assert (await parts.http.get("/jobs", headers={"X-API-Key": made})).status_code == 200


async def test_no_address_leads_out_of_the_studio(parts: Parts) -> None:
    document = (await parts.http.get("/schema/openapi.json")).json()
    paths = [path for path, methods in document["paths"].items() if "get" in methods and "{" in path]
    assert len(paths) > 20
    for path in [*paths, "/studio/{name}"]:
        for name in re.findall(r"{(\w+)}", path):
            for outside in OUTSIDE:
                answer = await parts.http.get(path.format(**{**PLACES, name: outside}))
                assert answer.status_code in {400, 404}, (path, outside, answer.text)
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert str(parts.folder) not in answer.text


async def test_pages_load_nothing_of_others_and_stand_in_no_frame(parts: Parts) -> None:
    for path in PAGES:
        answer = await parts.http.get(path)
        policy = dict(each.strip().split(" ", 1) for each in answer.headers["Content-Security-Policy"].split(";"))
        assert answer.headers["Content-Type"].startswith("text/html")
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert not re.search(r"\*|https?:", answer.headers["Content-Security-Policy"])
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_no_cell_of_a_table_is_a_formula(parts: Parts) -> None:
    test = await ready(parts)
    voters = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", '=HYPERLINK("http://evil.example")', "ann,=1", 'bob"\n=1']
    answers = await asyncio.gather(*(vote(parts, test["id"], voter=voter, choice="left") for voter in voters))
    assert {answer.status_code for answer in answers} == {201}
    table = (await parts.http.get(f"/ab-tests/{test['id']}/results?format=csv")).text
    rows = list(csv.reader(io.StringIO(table, newline="")))
    assert len(rows) == 1 + len(voters)
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "@", "\t", "\r", "-"))]


def test_each_defence_names_a_test_that_there_is() -> None:
    _, _, section = (ROOT / "api/README.md").read_text().partition("\n## What is defended\n")
    rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 20
    for row in rows:
        file, found = "", 0
        for name in re.findall(r"`([\w./]+)`", row.rstrip("| ").rpartition("|")[2]):
            if name.endswith(".py"):
                file = (ROOT / "tests" / name).read_text()
            else:
                assert re.search(rf"^(async )?def {name}\(", file, re.MULTILINE), name
                found += 1
        assert found, row
