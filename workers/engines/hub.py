"""Downloads models from the model hub: what they are, under which licence, and whether every file arrived whole."""

import glob
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import file_digest, sha1
from pathlib import Path
from typing import Any, Final

import httpx2
import huggingface_hub
import msgspec
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from msgspec import Struct

from domain.models import KNOWN
from workers.engine import EngineError
from workers.engines import pipelines, weight_files
from workers.engines.checkpoints import BUILT_IN, HUB_NAME, Checkpoint, find_folder, read_config, resolve
from workers.engines.weight_files import brief

ANSWER_SECONDS: Final = 8.0
CONFIG: Final = "config.json"
# Their terms ask nothing of whoever makes music with a model.
FREE: Final = frozenset({"apache-2.0", "mit", "bsd-3-clause", "cc0-1.0"})
DESCRIBES: Final = re.compile(r"[^/]+\.(json|model|txt)")


class Stored(Struct, frozen=True):
    """A file on the hub: `sha256` where it is a large one, else `blob`, git's SHA-1."""

    name: str
    size: int
    sha256: str | None
    blob: str | None


class Offer(Struct, frozen=True, kw_only=True):
    """A model as the hub has it at one commit, with the files of it that are used here."""

    name: str
    commit: str
    license: str
    license_url: str
    files: list[Stored]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def is_free(self) -> bool:
        return self.license.lower() in FREE


def look(name: str) -> Offer | None:
    """What there is to download, None for a model that is built in and for one in a folder.

    Raises EngineError, within seconds if the hub does not answer.
    """
    if any(name == checkpoint.model.id for checkpoint in BUILT_IN) or find_folder(name) is not None:
        return None
    if not HUB_NAME.fullmatch(name):
        resolve(name)
    with _answers(name):
        info = huggingface_hub.HfApi().model_info(name, files_metadata=True)
        found = {each.rfilename: each for each in info.siblings or []}
        wanted = _wanted(name, list(found))
        return Offer(
            name=name,
            commit=info.sha or "",
            license=_license(name, info),
            license_url=_license_url(name, info),
            files=[_stored(found[each]) for each in wanted],
        )


def fetch(offer: Offer, folder: Path | None = None) -> Checkpoint:
    """Downloads the files into the local cache, checks each, and copies them into the folder, which has nothing in it.

    Shows a progress bar. Raises EngineError; a damaged file is taken out of the cache, that it is fetched anew.
    """
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EngineError(f"{folder} is there already. Give a folder that is not, or that has nothing in it.")
    with _answers(offer.name):
        exactly = [glob.escape(file.name) for file in offer.files]
        place = Path(huggingface_hub.snapshot_download(offer.name, allow_patterns=exactly))
        if place.name != offer.commit:
            raise EngineError(f"{offer.name} was changed on the hub meanwhile; pull it again.")
        for file in offer.files:
            _check(offer.name, place, file)
        if folder is not None:
            for file in offer.files:
                (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(place / file.name, folder / file.name)
    return resolve(offer.name if folder is None else str(folder))


@contextmanager
def _answers(name: str) -> Iterator[None]:
    """Around requests to the hub. Raises EngineError for what they raise."""
    # The hub's client sets no timeout, so it would wait forever for a server that does not answer.
    hooks = huggingface_hub.get_session().event_hooks["request"]
    if _lose_patience not in hooks:
        hooks.append(_lose_patience)
    try:
        yield
    except GatedRepoError as error:
        raise EngineError(
            f"{name} is gated: accept its terms at {constants.ENDPOINT}/{name}, "
            "log in with `hf auth login`, and try again."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise EngineError(f"The Hugging Face hub has no public model {name}; check the spelling.") from error
    except OfflineModeIsEnabled as error:
        raise EngineError(
            f"{name} cannot be downloaded while HF_HUB_OFFLINE is set; unset it and try again."
        ) from error
    except EntryNotFoundError as error:
        raise EngineError(f"The hub lists a file of {name} that it does not have ({brief(error)}).") from error
    except (httpx2.HTTPError, HfHubHTTPError, LocalEntryNotFoundError, ValueError) as error:
        raise EngineError(
            f"{name} could not be downloaded from {constants.ENDPOINT} ({brief(error)}); "
            "check the connection and try again, or give the folder of a checkpoint."
        ) from error
    except OSError as error:
        raise EngineError(f"{name} could not be stored: {brief(error)}.") from error


def _lose_patience(request: httpx2.Request) -> None:
    request.extensions["timeout"] = httpx2.Timeout(ANSWER_SECONDS).as_dict()


def _wanted(name: str, files: Sequence[str]) -> list[str]:
    """Those that describe the model, and one kind of its weights: many repositories have them several times over."""
    if pipelines.INDEX in files:
        path = Path(huggingface_hub.hf_hub_download(name, pipelines.INDEX))
        index = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        family = pipelines.FAMILIES.get(str(index.get("_class_name")))
        if family is None:
            raise EngineError(
                f"{name} is a {index.get('_class_name')} of diffusers; those that can be run are "
                f"{', '.join(sorted(pipelines.FAMILIES))}."
            )
        spared = pipelines.SPARED.get(family, ())
        parts = [part for part, source in index.items() if isinstance(source, list) and part not in spared]
        found = [pipelines.INDEX]
        for part in parts:
            found += _of_folder(files, f"{part}/", pipelines.STEMS)
        return found
    if CONFIG not in files:
        detail = f"it has neither {CONFIG} nor {pipelines.INDEX}"
        raise EngineError(f"{name} is neither a MusicGen checkpoint nor a pipeline of diffusers: {detail}.")
    read_config(name, Path(huggingface_hub.hf_hub_download(name, CONFIG)), "")
    return _of_folder(files, "", weight_files.STEMS)


def _of_folder(files: Sequence[str], folder: str, stems: Sequence[str]) -> list[str]:
    inside = [file.removeprefix(folder) for file in files if file.startswith(folder)]
    found = [file for file in inside if DESCRIBES.fullmatch(file) and not file.endswith(".index.json")]
    for stem in stems:
        base, _, ending = stem.rpartition(".")
        weights = re.compile(rf"{re.escape(base)}(-\d+-of-\d+)?\.{ending}(\.index\.json)?")
        if own := [file for file in inside if weights.fullmatch(file)]:
            return [f"{folder}{file}" for file in (*found, *own)]
    return [f"{folder}{file}" for file in found]


def _license(name: str, info: huggingface_hub.ModelInfo) -> str:
    card = info.card_data
    said = str((card and card.get("license")) or "")
    tagged = next((tag.removeprefix("license:") for tag in info.tags or [] if tag.startswith("license:")), "")
    known = next((model.license for model in KNOWN if model.id == name), "unknown")
    if said in {"", "other"} and card and card.get("license_name"):
        return str(card.get("license_name"))
    return next(each for each in (said, tagged, known) if each and (each != "other" or known == "unknown"))


def _license_url(name: str, info: huggingface_hub.ModelInfo) -> str:
    link = str((info.card_data and info.card_data.get("license_link")) or "")
    return link if link.startswith("https://") else f"{constants.ENDPOINT}/{name}"


def _stored(file: Any) -> Stored:
    lfs = file.lfs
    return Stored(file.rfilename, file.size or 0, lfs.sha256 if lfs else None, file.blob_id)


def _check(name: str, place: Path, file: Stored) -> None:
    path = place / file.name
    if file.sha256 is not None:
        with path.open("rb") as content:
            told, found = f"SHA-256 {file.sha256}", f"SHA-256 {file_digest(content, 'sha256').hexdigest()}"
    elif file.blob is not None and re.fullmatch("[0-9a-f]{40}", file.blob):
        whole = path.read_bytes()
        # A name of git, which nobody relies on to be safe.
        made = sha1(b"blob %d\0" % len(whole) + whole, usedforsecurity=False)
        told, found = f"git's {file.blob}", f"git's {made.hexdigest()}"
    else:
        return
    if told != found:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise EngineError(f"{file.name} of {name} arrived damaged: it is {found}, not {told}. Pull it again.")
