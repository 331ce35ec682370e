"""Clips for new music to follow the tones of: uploaded, looked up, erased."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import FromPath
from litestar.status_codes import HTTP_201_CREATED, HTTP_204_NO_CONTENT
from msgspec.structs import asdict

from api.audio import find_sample
from api.http.services import Injected, Services
from api.http.uploads import FORM, Slot, receive
from domain import melodies
from domain.errors import DamagedError, Fault, InvalidError, NotFoundError
from domain.events.jobs import Melody
from domain.melodies import MAX_BYTES, PREFIX, Upload
from workers import melody_files

FIELD: Final = "file"
KIND: Final = "uploaded melody"


@dataclass
class Form(Operation):
    """The form that an upload is, for the OpenAPI document."""

    def __post_init__(self) -> None:
        file = Schema(
            type=OpenAPIType.STRING, content_media_type="application/octet-stream", description=melody_files.FORMATS
        )
        form = Schema(type=OpenAPIType.OBJECT, required=[FIELD], properties={FIELD: file}, additional_properties=False)
        self.request_body = RequestBody(required=True, content={FORM: OpenAPIMediaType(schema=form)})


@post(
    "/melodies",
    operation_id="uploadMelody",
    opt={"media_types": (FORM,)},
    operation_class=Form,
    request_max_body_size=None,
    status_code=HTTP_201_CREATED,
    tags=["melodies"],
)
async def upload_melody(request: Request[Any, Any, Any], services: Injected) -> Response[Upload]:
    """Stores a clip of 1 s to 300 s and up to 50 MB as mono FLAC, for `melody_from` of requests. The same clip twice is
    one.
    """
    with tempfile.TemporaryDirectory(prefix="text2song-melody-", ignore_cleanup_errors=True) as name:
        stored = await _stored(request, services, Path(name))
    return Response(stored, status_code=HTTP_201_CREATED, headers={"Location": f"/melodies/{stored.id}"})


@get("/melodies/{melody_id:str}", operation_id="getMelody", tags=["melodies"])
async def get_melody(services: Injected, melody_id: FromPath[str]) -> Upload:
    return await _existing(services, melody_id)


@delete("/melodies/{melody_id:str}", operation_id="eraseMelody", status_code=HTTP_204_NO_CONTENT, tags=["melodies"])
async def erase_melody(services: Injected, melody_id: FromPath[str]) -> None:
    """Nothing is left of it but its id in the jobs that follow it; of those, the ones that still wait will fail."""
    await services.objects.delete(melodies.folder((await _existing(services, melody_id)).id))


ROUTES: Final = (upload_melody, get_melody, erase_melody)


async def find_melody(services: Services, id_: str) -> Melody | None:
    """A sample or an uploaded clip, None where the caller has no such one."""
    if (upload := await _find(services, id_)) is not None:
        return Melody(id=id_, storage_path=melodies.audio(id_), sha256=upload.sha256)
    if (sample := await find_sample(services, id_)) is not None:
        return Melody(id=id_, storage_path=sample.storage_path, sha256=sample.sha256)
    return None


async def _stored(request: Request[Any, Any, Any], services: Services, folder: Path) -> Upload:
    sent, kept = folder / "sent", folder / "melody.flac"
    if unknown := sorted(await receive(request, folder, {FIELD: Slot(sent.name, MAX_BYTES)})):
        raise InvalidError([Fault(f"/{unknown[0]}", f"{unknown[0]} is no field of an upload; it takes {FIELD}.")])
    if not sent.exists():
        raise InvalidError([Fault(f"/{FIELD}", f"{FIELD} is missing; send the clip as the form's field {FIELD}.")])
    found = await asyncio.to_thread(melody_files.keep, sent, kept)
    id_ = melodies.upload_id(services.caller.idempotency_owner, found.sha256)
    upload = Upload(id=id_, created_at=services.journal.now(), user_id=services.caller.owner, **asdict(found))
    with await asyncio.to_thread(kept.open, "rb") as file:
        await services.objects.put_file(melodies.audio(id_), file, replace=False)
    # Second, as who finds it takes the audio to be there.
    await services.objects.put(melodies.description(id_), msgspec.json.encode(upload), replace=False)
    return await _existing(services, id_)


async def _existing(services: Services, id_: str) -> Upload:
    if (upload := await _find(services, id_)) is None:
        raise NotFoundError(KIND, id_)
    return upload


async def _find(services: Services, id_: str) -> Upload | None:
    """None for what is not there, and for what is another owner's."""
    if not id_.startswith(PREFIX):
        return None
    key, caller = melodies.description(id_), services.caller
    try:
        content = b"".join([chunk async for chunk in services.objects.read(key)])
    except (NotFoundError, ValueError):  # or an id that no object can have
        return None
    try:
        upload = msgspec.json.decode(content, type=Upload)
    except msgspec.MsgspecError:
        raise DamagedError(f"The description {key!r} is damaged. Put a sound copy in its place.") from None
    return None if caller.is_restricted and upload.user_id != caller.owner else upload
