"""What one more slice costs: a file of its name in each package, and its name in one list."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("domain", "commands", "projections", "workers", "api", "infra", "tests")
LIST: Final = "domain/aggregates.py"
SLICES: Final = (
    "prompts",
    "jobs",
    "feedback",
    "adapters",
    "models",
    "abtests",
    "datasets",
    "trainings",
    "webhooks",
    "keys",
)

FILES: Final = {
    "domain/events/cheers.py": """
        from typing import Final

        from domain.events import Event
        from domain.ports import Topic

        TOPIC: Final = Topic("cheers", partitions=2)


        class Cheered(Event, frozen=True, kw_only=True, tag="Cheered"):
            topic = TOPIC.name
            name = "cheer.given"
            cheer_id: str
            words: str

            @property
            def key(self) -> str:
                return self.cheer_id


        EVENTS: Final = (Cheered,)
    """,
    "domain/cheers.py": """
        from typing import Final

        from msgspec import Struct
        from msgspec.structs import replace

        from domain.events import Recorded
        from domain.events.cheers import Cheered
        from domain.ports import View


        class Cheer(Struct, frozen=True, kw_only=True):
            id: str
            words: str
            created_at: str
            partition: int
            position: int


        CHEERS: Final = View("cheers", Cheer)


        def give(cheer: Cheer | None, cheer_id: str, words: str) -> list[Cheered]:
            return [Cheered(cheer_id=cheer_id, words=words)] if cheer is None else []


        def evolve(cheer: Cheer | None, recorded: Recorded) -> Cheer | None:
            at = recorded.position
            match recorded.event:
                case Cheered(cheer_id=id_, words=words) if cheer is None:
                    return Cheer(
                        id=id_, words=words, created_at=recorded.time, partition=at.partition, position=at.offset
                    )
            return replace(cheer, position=at.offset) if cheer and at.offset > cheer.position else cheer
    """,
    "domain/contract/cheers.py": """
        from typing import Final

        from domain.contract import Published
        from domain.contract.records import record
        from domain.events.cheers import Cheered

        CHEERED: Final = Cheered(cheer_id="cheer-1", words="bravo")
        PUBLISHED: Final = Published(
            state=lambda cheer: {} if cheer is None else {"id": cheer.id, "words": cheer.words},
            fields={"id": "the aggregate's key", "words": "what was called"},
            facts=lambda cheer, _: {"exists": cheer is not None},
            conditions={"exists": "whether there is a state"},
            accepted=lambda cheer, recorded: cheer is not None and cheer.created_at == recorded.time,
            proposals=[CHEERED],
            outcomes=0,
            vectors={"a cheer is given": [record(0, CHEERED)]},
        )
    """,
    "commands/cheers.py": """
        from commands.transact import Receipt, Views, transact
        from domain import cheers
        from domain.cheers import CHEERS
        from domain.journal import Journal


        async def give(journal: Journal, views: Views, words: str) -> Receipt:
            cheer_id = journal.new_id()
            return await transact(journal, views, CHEERS, cheer_id, lambda cheer: cheers.give(cheer, cheer_id, words))
    """,
    "projections/cheers.py": """
        from collections.abc import Sequence
        from typing import Final

        from domain.cheers import CHEERS
        from domain.events import Recorded
        from domain.ports import Changes, Reader
        from projections.documents import fold_documents

        VIEWS: Final = (CHEERS,)


        async def fold(store: Reader, batch: Sequence[Recorded]) -> Changes:
            return await fold_documents(store, CHEERS, batch)
    """,
    "api/cheers.py": """
        from typing import Final

        from litestar import get, post
        from litestar.params import FromPath, JSONBody
        from msgspec import Struct, convert

        from api.http import pages
        from api.http.pages import Page
        from api.http.positions import CURRENT
        from api.http.services import Injected
        from commands import cheers as commands
        from commands.transact import load
        from domain.cheers import CHEERS, Cheer


        class CheerBody(Struct, frozen=True, kw_only=True):
            id: str
            words: str


        class CheerRequest(Struct, frozen=True, kw_only=True):
            words: str


        @post("/cheers", operation_id="giveCheer", opt=CURRENT)
        async def give_cheer(services: Injected, data: JSONBody[CheerRequest]) -> CheerBody:
            receipt = await commands.give(services.journal, services.views, data.words)
            return CheerBody(id=receipt.id, words=data.words)


        @get("/cheers/{cheer_id:str}", operation_id="getCheer", opt=CURRENT)
        async def get_cheer(services: Injected, cheer_id: FromPath[str]) -> CheerBody | None:
            cheer = await load(services.views, CHEERS, cheer_id)
            return _body(cheer) if cheer else None


        @get("/cheers", operation_id="listCheers")
        async def list_cheers(services: Injected) -> Page[CheerBody]:
            return await pages.page(services.views, CHEERS, pages.query(50, 0, None), _body)


        ROUTES: Final = (give_cheer, get_cheer, list_cheers)


        def _body(cheer: Cheer) -> CheerBody:
            return convert(cheer, CheerBody, from_attributes=True)
    """,
}

PROGRAM: Final = """
    import asyncio, json, sys
    from pathlib import Path

    import domain
    from domain.aggregates import TOPICS
    from domain.contract.document import files
    from domain.envelope import decode
    from infra.cli.rebuild import rebuild
    from projections.project import FOLDED_FROM
    from tests.local.parts import open_parts

    assert Path(domain.__file__).is_relative_to(Path.cwd()), domain.__file__


    async def main():
        async with open_parts(Path(sys.argv[1])) as parts:
            given = (await parts.http.post("/cheers", json={"words": "bravo"})).json()
            read = (await parts.http.get(f"/cheers/{given['id']}")).json()
            listed = (await parts.http.get("/cheers")).json()
            ends = await parts.log.ends("cheers")
            records = [record for at in ends for record in await parts.log.read("cheers", at, 0)]
            paths = (await parts.http.get("/schema/openapi.json")).json()["paths"]
        return {
            "topics": [*TOPICS],
            "decoded": [decode(record).type for record in records],
            "views": [view.name for view in FOLDED_FROM["cheers"]],
            "read": read == given,
            "listed": listed["items"] == [given],
            "contract": sorted(name for name in files() if "cheer" in name),
            "choices": rebuild.params[0].type.choices,
            "routes": sorted(path for path in paths if "cheers" in path),
        }


    print(json.dumps(asyncio.run(main())))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the project has, once the slice's files and its one line are in it."""
    copy = tmp_path_factory.mktemp("project")
    for package in PACKAGES:
        ignore = shutil.ignore_patterns("__pycache__", "checkpoint", "golden")
        shutil.copytree(ROOT / package, copy / package, ignore=ignore)
    for name, text in FILES.items():
        (copy / name).write_text(dedent(text))
    listed = (copy / LIST).read_text()
    with_cheers = listed.replace('    "keys",\n', '    "keys",\n    "cheers",\n')
    assert len(set(with_cheers.splitlines()) ^ set(listed.splitlines())) == 1, "one line is more"
    (copy / LIST).write_text(with_cheers)
    done = subprocess.run(
        [sys.executable, "-c", dedent(PROGRAM), str(tmp_path_factory.mktemp("studio"))],
        cwd=copy,
        env={"PYTHONPATH": str(copy), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (
            "topics",
            [*SLICES, "cheers", "progress", "deadletter"],
        ),
        ("decoded", ["Cheered"]),
        ("views", ["cheers"]),
        ("read", True),
        ("listed", True),
        (
            "contract",
            ["schemas/text2song.cheer.given.v1.json", "transitions/cheers.json", "vectors/cheers.json"],
        ),
        ("choices", [*SLICES, "cheers"]),
        ("routes", ["/cheers", "/cheers/{cheer_id}"]),
    ],
)
def test_one_line_and_a_file_a_package_make_a_slice(found: dict[str, Any], what: str, expected: object) -> None:
    assert found[what] == expected


def test_a_file_a_package_is_all_that_a_slice_adds() -> None:
    assert len(FILES) == len({Path(name).parent for name in FILES})
