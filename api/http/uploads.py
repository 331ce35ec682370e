"""Files that a form carries, written to a folder as they come in, each held to its limit."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from litestar import Request
from msgspec import Struct
from multipart import MultipartError, MultipartSegment, PushMultipartParser

from domain.errors import Fault, InvalidError, TooLargeError, UnavailableError

MAX_TEXT: Final = 100_000  # bytes of a field that is no file
MAX_PARTS: Final = 30
FORM: Final = "multipart/form-data"


class Slot(Struct, frozen=True):
    """The file that a field's content becomes, and how many bytes it may have."""

    file_name: str
    limit: int


async def receive(request: Request[Any, Any, Any], folder: Path, slots: Mapping[str, Slot]) -> dict[str, str]:
    """The other fields, by name. Raises InvalidError for what is no such form, and TooLargeError, as soon as that is
    known, for one over its limits.
    """
    limit = sum(slot.limit for slot in slots.values()) + MAX_PARTS * MAX_TEXT
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise TooLargeError(f"The body has {int(announced[:20]):,} bytes; the limit is {limit:,}.")
    boundary = request.content_type[1].get("boundary")
    if boundary is None:
        raise _unreadable("its Content-Type names no boundary")
    form = _Form(boundary, folder, slots)
    try:
        async for chunk in request.stream():
            if chunk:
                await asyncio.to_thread(form.feed, chunk)
        await asyncio.to_thread(form.end)
    except MultipartError as error:
        raise _unreadable(str(error)) from None
    except OSError as error:
        raise UnavailableError(f"The upload cannot be kept: {error}. See to the disk's space, then repeat.") from error
    finally:
        form.close()
    return form.texts


class _Form:
    def __init__(self, boundary: str, folder: Path, slots: Mapping[str, Slot]) -> None:
        self.texts: dict[str, str] = {}
        self._folder = folder
        self._slots = slots
        self._parser = PushMultipartParser(boundary, max_segment_count=MAX_PARTS)
        self._name = ""
        self._file: BinaryIO | None = None
        self._text = bytearray()
        self._size = 0
        self._seen: set[str] = set()

    def feed(self, chunk: bytes) -> None:
        for part in self._parser.parse(chunk):
            if isinstance(part, MultipartSegment):
                self._begin(part.name)
            elif part:
                self._add(part)
            else:
                self._finish()

    def end(self) -> None:
        if not self._parser.closed:
            self.feed(b"")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self, name: str) -> None:
        if name in self._seen:
            raise InvalidError([Fault(f"/{name[:100]}", f"The form has {name[:100]!r} twice; send each field once.")])
        self._seen.add(name)
        self._name, self._size, self._text = name, 0, bytearray()
        if slot := self._slots.get(name):
            self._file = (self._folder / slot.file_name).open("wb")

    def _add(self, content: bytes | bytearray | memoryview) -> None:
        self._size += len(content)
        limit = self._slots[self._name].limit if self._file else MAX_TEXT
        if self._size > limit:
            raise TooLargeError(f"The field {self._name[:100]} is over its limit of {limit:,} bytes.")
        if self._file:
            self._file.write(content)
        else:
            self._text += content

    def _finish(self) -> None:
        if self._file:
            self.close()
            return
        try:
            self.texts[self._name] = self._text.decode()
        except UnicodeDecodeError:
            detail = f"The field {self._name[:100]} is not UTF-8; send texts in UTF-8."
            raise InvalidError([Fault(f"/{self._name[:100]}", detail)]) from None


def _unreadable(why: str) -> InvalidError:
    return InvalidError(
        [Fault("", f"The form cannot be read: {why.rstrip('.')}. Send {FORM} as browsers and curl do.")]
    )
