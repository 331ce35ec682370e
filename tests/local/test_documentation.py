import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.local.parts import Parts

JSON = "application/vnd.oai.openapi+json"
YAML = "application/vnd.oai.openapi"
SERVED = {"/schema/openapi.json": JSON, "/schema/openapi.yaml": YAML, "/asyncapi.json": "application/json"}


class References(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found = set(re.findall(r"\burl\(['\"]?([^'\")]+)", page))
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.found |= {value or "" for name, value in attrs if name in {"src", "srcset", "href", "data", "action"}}


@pytest.mark.parametrize("path", ["", "/", "/redoc", "/swagger", "/elements", "/rapidoc", "/oauth2-redirect.html"])
async def test_no_page_names_another_host(parts: Parts, path: str) -> None:
    page = (await parts.http.get(f"/schema{path}")).text
    assert not re.findall(r"(?:https?|wss?)://|sourceMappingURL|@import", page)
    assert not [reference for reference in References(page).found if reference.startswith("//")]


async def test_the_page_is_there_and_so_is_everything_it_names(parts: Parts) -> None:
    answer = await parts.http.get("/schema")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    named = {reference for reference in References(answer.text).found if not reference.startswith("data:")}
    assert named <= set(SERVED)
    for path, media_type in SERVED.items():
        assert path.rsplit("/", 1)[1] in answer.text
        served = await parts.http.get(path)
        assert (served.status_code, served.headers["Content-Type"]) == (200, media_type)


async def test_the_browser_is_told_to_ask_no_other_host(parts: Parts) -> None:
    policy = (await parts.http.get("/schema")).headers["Content-Security-Policy"]
    directives = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert set(directives.values()) <= {"'none'", "'self'", "'unsafe-inline'", "data:", "blob:"}


async def test_an_old_page_is_never_shown_after_an_upgrade(parts: Parts) -> None:
    for path in ("/schema", "/schema/openapi.json"):
        assert (await parts.http.get(path)).headers["Cache-Control"] == "no-cache"


async def test_both_formats_hold_the_same_document(parts: Parts) -> None:
    document = (await parts.http.get("/schema/openapi.json")).json()
    lines = (await parts.http.get("/schema/openapi.yaml")).text.splitlines()
    assert document["openapi"].startswith("3.1")
    assert f"openapi: {document['openapi']}" in lines
    assert [line[2:-1] for line in lines if re.match(r"  /\S*:$", line)] == sorted(document["paths"])


async def test_every_choice_says_what_it_is(parts: Parts) -> None:
    document = (await parts.http.get("/schema/openapi.json")).json()
    choices = list(_choices(document))
    assert len(choices) > 50
    assert not [path for path, choice in choices if {} in choice]


async def test_every_choice_among_texts_says_that_they_are_texts(parts: Parts) -> None:
    schemas = (await parts.http.get("/schema/openapi.json")).json()["components"]["schemas"]
    assert schemas["JobBody"]["properties"]["output_format"] == {
        "type": "string",
        "enum": ["flac", "mp3", "ogg", "wav"],
    }
    assert schemas["GenerationRequest"]["properties"]["webhook_events"]["anyOf"][0]["items"]["type"] == "string"


async def test_the_answer_of_every_route_that_answers_json_is_described(parts: Parts) -> None:
    document = (await parts.http.get("/schema/openapi.json")).json()
    described = [
        (operation["operationId"], status, response["content"]["application/json"]["schema"])
        for methods in document["paths"].values()
        for operation in methods.values()
        for status, response in operation["responses"].items()
        if "application/json" in response.get("content", {})
    ]
    assert len(described) > 50
    assert not [each for each in described if not each[2]]


async def test_a_prompt_with_instruments_is_as_documented(parts: Parts) -> None:
    document = (await parts.http.get("/schema/openapi.json")).json()
    sent = {"text": "slow blues", "attributes": {"instrumentation": ["piano", "double bass"], "tempo": "slow"}}
    made = (await parts.http.post("/prompts", json=sent)).json()
    listed = (await parts.http.get("/prompts")).json()
    for path, method, status, answer in (("/prompts", "post", "201", made), ("/prompts", "get", "200", listed)):
        schema = document["paths"][path][method]["responses"][status]["content"]["application/json"]["schema"]
        validator = Draft202012Validator({**schema, "components": document["components"]})
        validator.validate(answer)
    described = document["components"]["schemas"]["PromptAttributes"]["properties"]["instrumentation"]["items"]
    assert described == {"type": "string", "maxLength": 200}


def _choices(node: Any, path: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Every oneOf and anyOf, and where it stands."""
    for name, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if name in {"oneOf", "anyOf"}:
            yield f"{path}/{name}", inner
        yield from _choices(inner, f"{path}/{name}")
