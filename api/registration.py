"""How an adapter comes in: received or fetched into a folder of its own, checked, stored, registered."""

import asyncio
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from litestar import Request
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from msgspec import Meta

from api.http.services import Services
from api.http.uploads import FORM, Slot, receive
from commands import adapters as commands
from commands.transact import Receipt
from domain import adapters
from domain.adapters import AdapterRequest
from domain.errors import Fault, InvalidError, NotFoundError, UnavailableError
from domain.events.adapters import AdapterRegistered
from domain.lora import CONFIG, MAX_CONFIG, MAX_WEIGHTS, PIPELINE_WEIGHTS, WEIGHTS
from domain.ports import ObjectStore, check_key
from workers import adapter_files, diffusers_lora
from workers.adapter_files import Checked

FILES: Final = {"weights": Slot(WEIGHTS, MAX_WEIGHTS), "config": Slot(CONFIG, MAX_CONFIG)}
JSON_FIELDS: Final = ("training_config", "metrics")
PLACES: Final = ("uploads/", "adapters/")

logger: Final = logging.getLogger(__name__)


class StoredAdapter(AdapterRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """As in the form, with the folder of the object store that holds the files."""

    storage_path: Annotated[str, Meta(examples=["uploads/jazz"])]


async def registered(request: Request[Any, Any, Any], services: Services) -> Receipt:
    """Raises InvalidError for whatever is wrong with the request or the files, and ConflictError."""
    with tempfile.TemporaryDirectory(prefix="text2song-adapter-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if request.content_type[0] == FORM:
            asked = await _received(request, folder)
        else:
            asked = await _fetched(request, services.objects, folder)
        # One at a time: the weights are in memory while they are stored.
        asked = services.caller.signed(asked)
        async with services.registering:
            return await _register(services, asked, folder)


async def _received(request: Request[Any, Any, Any], folder: Path) -> AdapterRequest:
    fields: dict[str, Any] = await receive(request, folder, FILES)
    if not (folder / WEIGHTS).exists():
        raise InvalidError([Fault("/weights", f"weights is missing; send {WEIGHTS} as the form's field weights.")])
    for name in JSON_FIELDS & fields.keys():
        try:
            fields[name] = msgspec.json.decode(fields[name])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InvalidError([Fault(f"/{name}", f"{name} is no JSON: {error}. Send a JSON object.")]) from None
    asked: AdapterRequest = _converted(fields, AdapterRequest)
    adapters.check(asked)
    return asked


async def _fetched(request: Request[Any, Any, Any], objects: ObjectStore, folder: Path) -> AdapterRequest:
    asked: StoredAdapter = _converted(await request.json(), StoredAdapter)
    adapters.check(asked)
    place = asked.storage_path.rstrip("/")
    try:
        check_key(place)
    except ValueError as error:
        raise InvalidError([Fault("/storage_path", str(error))]) from None
    if not place.startswith(PLACES):
        detail = f"storage_path is {place!r}; name a folder of the object store below {' or '.join(PLACES)}."
        raise InvalidError([Fault("/storage_path", detail)])
    if await objects.stat(f"{place}/{PIPELINE_WEIGHTS}") and not await objects.stat(f"{place}/{CONFIG}"):
        await _fetch(objects, f"{place}/{PIPELINE_WEIGHTS}", folder / WEIGHTS, MAX_WEIGHTS)
    else:
        for slot in FILES.values():
            await _fetch(objects, f"{place}/{slot.file_name}", folder / slot.file_name, slot.limit)
    kept = {name: getattr(asked, name) for name in AdapterRequest.__struct_fields__}
    return AdapterRequest(**kept)


async def _fetch(objects: ObjectStore, key: str, path: Path, limit: int) -> None:
    stored = await objects.stat(key)
    if stored is None:
        detail = (
            f"There is no object {key!r}; put both {WEIGHTS} and {CONFIG} there, or {PIPELINE_WEIGHTS} of diffusers "
            "alone, or send them in a form."
        )
        raise InvalidError([Fault("/storage_path", detail)])
    if stored.size > limit:
        raise InvalidError([Fault("/storage_path", f"{key!r} has {stored.size:,} bytes; the limit is {limit:,}.")])
    try:
        with await asyncio.to_thread(path.open, "wb") as file:
            async for chunk in objects.read(key):
                await asyncio.to_thread(file.write, chunk)
    except NotFoundError as error:
        raise InvalidError([Fault("/storage_path", str(error))]) from None


async def _register(services: Services, asked: AdapterRequest, folder: Path) -> Receipt:
    registry = await services.models()
    is_pipelines = not (folder / CONFIG).exists() and await asyncio.to_thread(diffusers_lora.rewrite, folder)
    config = await asyncio.to_thread(adapter_files.read_config, folder / CONFIG)
    base_model, base_revision = adapters.base(asked, config, [model.id for model in registry.models])
    model = registry.find(base_model)
    if is_pipelines and (model is None or model.family == "musicgen"):
        what = "a MusicGen" if model else "no model that this studio knows"
        detail = (
            f"The file is a LoRA of a diffusion model, and {base_model!r} is {what}. Name one that GET /models shows."
        )
        raise InvalidError([Fault("/base_model", detail)])
    checked = await asyncio.to_thread(adapter_files.check, folder, model)
    registration = _registration(asked, base_model, base_revision, checked)
    place = registration.storage_path

    async def store() -> None:
        for file in checked.files:
            content = await asyncio.to_thread((folder / file.name).read_bytes)
            await services.objects.put(f"{place}/{file.name}", content, replace=False)

    async def discard() -> None:
        try:
            await services.objects.delete(place)
        except UnavailableError as error:
            logger.warning("Files of an adapter that was refused stay below %s: %s", place, error)

    return await commands.register(services.journal, services.views, registration, store, discard)


def _registration(
    asked: AdapterRequest, base_model: str, base_revision: str | None, checked: Checked
) -> AdapterRegistered:
    id_ = adapters.adapter_id(asked.name, asked.version)
    return AdapterRegistered(
        adapter_id=id_,
        adapter_name=asked.name,
        adapter_version=asked.version,
        base_model=base_model,
        base_revision=base_revision,
        rank=checked.rank,
        storage_path=adapters.folder(checked.sha256, id_),
        size=checked.size,
        sha256=checked.sha256,
        files=checked.files,
        description=asked.description,
        training_dataset_id=asked.training_dataset_id,
        training_id=asked.training_id,
        training_config=asked.training_config,
        metrics=asked.metrics,
        user_id=asked.user_id,
    )


def _converted(fields: Any, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        pointer = place.rstrip("`").partition("[")[0].replace(".", "/")
        known = ", ".join(
            (*FILES, *AdapterRequest.__struct_fields__) if kind is AdapterRequest else kind.__struct_fields__
        )
        said = f"{pointer.removeprefix('/').replace('/', '.') or 'The request'}: {message}. It takes {known}."
        raise InvalidError([Fault(pointer, said)]) from None


@dataclass
class Registration(Operation):
    """Both bodies that registering takes, for the OpenAPI document."""

    def __post_init__(self) -> None:
        _, components = msgspec.json.schema_components([StoredAdapter], ref_template="#/$defs/{name}")
        described: dict[str, Any] = components["StoredAdapter"]
        json_body = Schema(
            type=OpenAPIType.OBJECT,
            required=described["required"],
            properties={name: _schema(inner) for name, inner in described["properties"].items()},
            additional_properties=False,
        )
        form = Schema(
            type=OpenAPIType.OBJECT,
            required=["weights", "name", "version"],
            properties={
                "weights": Schema(
                    type=OpenAPIType.STRING,
                    content_media_type="application/octet-stream",
                    description=f"{WEIGHTS}, or {PIPELINE_WEIGHTS} of diffusers",
                ),
                "config": Schema(
                    type=OpenAPIType.STRING,
                    content_media_type="application/json",
                    description=f"{CONFIG}, which a file of diffusers does without",
                ),
                **{
                    name: Schema(type=OpenAPIType.STRING, description="JSON" if name in JSON_FIELDS else None)
                    for name in AdapterRequest.__struct_fields__
                },
            },
            additional_properties=False,
        )
        self.request_body = RequestBody(
            required=True,
            content={FORM: OpenAPIMediaType(schema=form), "application/json": OpenAPIMediaType(schema=json_body)},
        )


def _schema(of: Mapping[str, Any]) -> Schema:
    if choices := of.get("anyOf"):
        return Schema(any_of=[_schema(choice) for choice in choices])
    inner = of.get("additionalProperties")
    return Schema(
        type=OpenAPIType(of["type"]), additional_properties=_schema(inner) if isinstance(inner, dict) else None
    )
