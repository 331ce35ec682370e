import json
from pathlib import Path

from domain.ports import Message
from tests.cluster.consumer import Contract
from tests.local.conftest import Running
from tests.local.parts import Parts

PUBLISHED = Path(__file__).parents[1] / "golden" / "contract"


def test_asyncapi_json_is_the_published_document_and_has_its_operation(studio: Running) -> None:
    answer = studio.http.get(studio.http.get("/").json()["asyncapi"])
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json() == json.loads((PUBLISHED / "asyncapi.json").read_bytes())
    paths = studio.http.get("/schema/openapi.json").json()["paths"]
    assert paths["/asyncapi.json"]["get"]["operationId"] == "getAsyncApi"


async def test_the_contract_needs_no_log_and_no_views(parts: Parts, tmp_path: Path) -> None:
    fresh = Parts(tmp_path, parts.log, parts.store, parts.objects)
    assert not fresh.services.folded.ready
    assert (await fresh.http.get("/asyncapi.json")).status_code == 200
    await fresh.http.aclose()


async def test_a_dead_letter_has_the_published_headers(parts: Parts) -> None:
    (position,) = await parts.log.append([Message("jobs", "j1", b"{", {"ce_id": "broken"})])
    await parts.submit("j1")
    await parts.when("j1", "queued")
    (buried,) = await parts.log.read("deadletter", 0, 0)
    assert buried.key == str(position)
    headers = Contract(PUBLISHED).validator("/components/messages/DeadLetter/headers")
    assert headers.is_valid(buried.headers)
    assert not headers.is_valid({"ce_id": "broken"})
