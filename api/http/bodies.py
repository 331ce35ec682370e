"""The JSON that a request carries."""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from math import isinf
from typing import Any, Final

from litestar import Request
from litestar.exceptions import ClientException, SerializationException

from api.http.faults import BODY, Path, pointer, spoken
from domain.errors import Fault, InvalidError

LONGEST: Final = 40  # characters of a number that is shown
SURROGATE: Final = re.compile("[\ud800-\udfff]")


class JsonRequest(Request[Any, Any, Any]):
    """Skips the byte order mark that some editors write before a text, as RFC 8259 allows."""

    async def body(self) -> bytes:
        return (await super().body()).removeprefix(BOM_UTF8)

    async def json(self) -> Any:
        """Raises InvalidError that names each number too large to be held, and each text that is none; and
        ClientException, which is 400, for what is no JSON.
        """
        try:
            content = await super().json()
        except SerializationException as error:
            if faults := list(_unreadable(await self.body())):
                raise InvalidError(faults) from None
            # Of a route's own arguments Litestar says so itself; a route may also read its body.
            raise ClientException(str(error)) from error
        self.scope["state"][BODY] = content
        return content


class Oversized(str):
    """A number as it was sent."""

    __slots__ = ()


def _unreadable(body: bytes) -> Iterator[Fault]:
    try:
        content = json.loads(body, parse_float=_number, parse_int=_number)
    except ValueError:
        return
    for path, value in _leaves(content, ()):
        match value:
            case Oversized():
                what = value if len(value) <= LONGEST else f"a number of {len(value):,} characters"
                yield Fault(pointer(path), f"{spoken(path)} is {what}; numbers go from -1.7e308 to 1.7e308.")
            case str() if half := SURROGATE.search(value):
                detail = f"{spoken(path)} has \\u{ord(half[0]):x}, half of a surrogate pair, which is no character."
                yield Fault(pointer(path), detail)


def _number(text: str) -> float | Oversized:
    value = float(text)
    return Oversized(text) if isinf(value) else value


def _leaves(content: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    match content:
        case dict():
            for name, inner in content.items():
                yield from _leaves(inner, (*path, name))
        case list():
            for index, inner in enumerate(content):
                yield from _leaves(inner, (*path, index))
        case _:
            yield path, content
