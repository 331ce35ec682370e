"""Reads a LoRA adapter's files to find out whether they are what they claim to be. Nothing in them is ever run."""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, NoReturn, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct

from domain.errors import Fault, InvalidError
from domain.events.adapters import AdapterFile
from domain.lora import (
    CONFIG,
    DTYPES,
    MAX_CONFIG,
    MAX_PREFERENCE,
    MAX_WEIGHTS,
    PREFERENCE,
    WEIGHTS,
    Config,
    Tensor,
    config_faults,
    rank,
    weight_faults,
)
from domain.models import Model

LENGTH: Final = 8  # bytes in front of the header, which say how long it is
MAX_HEADER: Final = 4_000_000
MAX_TENSORS: Final = 20_000
CHUNK: Final = 4 * 2**20
METADATA: Final = "__metadata__"
WAY_OUT: Final = "Save the adapter with PEFT's save_pretrained(…, safe_serialization=True)."
# What else adapters come in, by how it begins.
FOREIGN: Final = {
    b"PK": "a ZIP archive, as torch.save writes",
    b"\x80": "a pickle, which can run programs",
    b"\x1f\x8b": "compressed by gzip",
    b"\x89HDF": "HDF5",
    b"GGUF": "GGUF",
    b"version https://git-lfs": "a pointer of Git LFS instead of the file",
}


class Checked(Struct, frozen=True, kw_only=True):
    """`sha256` and `files` are as in AdapterRegistered; `config` is what was read of adapter_config.json."""

    config: Config
    rank: int
    files: tuple[AdapterFile, ...]
    sha256: str

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


Place: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]


class Facts(Struct):
    """What a header says of a tensor."""

    dtype: str
    shape: Annotated[list[Annotated[int, Meta(ge=0, le=2**40)]], Meta(max_length=8)]
    data_offsets: tuple[Place, Place]


class Header(Struct, frozen=True):
    """`content` are the bytes in front of the numbers."""

    content: bytes
    tensors: list[Tensor]
    metadata: dict[str, str]


def check(folder: Path, model: Model | None) -> Checked:
    """Reads both files of the folder, and writes the configuration as it was read: what is kept is what was checked.

    `model` is the base model, where it is known. Raises InvalidError for whatever is wrong.
    """
    config = read_config(folder / CONFIG)
    _refuse(config_faults(config, model))
    # What is null has its default, which every reader of the file knows.
    config = {name: value for name, value in config.items() if value is not None}
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")
    with (folder / WEIGHTS).open("rb") as file:
        header = read_header(file)
        _refuse(weight_faults(config, header.tensors, model))
        digest = sha256(header.content)
        for tensor in sorted(header.tensors, key=lambda tensor: tensor.start):
            for chunk in chunks(file, tensor.end - tensor.start):
                digest.update(chunk)
                if not _is_finite(chunk, tensor.dtype):
                    detail = f"{WEIGHTS} has numbers in {tensor.name} that are not finite; the training has diverged."
                    _refuse([Fault("/weights", detail)])
    files = (
        _described(folder / CONFIG),
        _file(WEIGHTS, (folder / WEIGHTS).stat().st_size, digest.hexdigest()),
        *_preference(folder),
    )
    return Checked(config=config, rank=rank(config), files=files, sha256=listing_digest(files))


def _preference(folder: Path) -> Iterator[AdapterFile]:
    """The files of a preference model, where one is kept with the adapter."""
    paths = [folder / name for name in PREFERENCE]
    if not all(path.is_file() for path in paths):
        return
    for path in paths:
        if (size := path.stat().st_size) > MAX_PREFERENCE:
            _refuse([Fault("/preference", f"{path.name} has {size:,} bytes; the limit is {MAX_PREFERENCE:,}.")])
        yield _described(path)


def listing_digest(files: Sequence[AdapterFile]) -> str:
    """As in AdapterRegistered."""
    lines = (f"{file.sha256}  {file.name}\n" for file in sorted(files, key=lambda file: file.name))
    return sha256("".join(lines).encode()).hexdigest()


def read_config(path: Path) -> Config:
    """Raises InvalidError for what is no JSON object."""
    try:
        if (size := path.stat().st_size) > MAX_CONFIG:
            _refuse([Fault("/config", f"{CONFIG} has {size:,} bytes; the limit is {MAX_CONFIG:,}.")])
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        detail = f"There is no {CONFIG}; send the file that PEFT writes beside the weights."
        raise InvalidError([Fault("/config", detail)]) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        detail = (
            f"{CONFIG} cannot be read: {str(error).rstrip('.')}. Send the file that PEFT writes beside the weights."
        )
        raise InvalidError([Fault("/config", detail)]) from None


def read_header(file: BinaryIO) -> Header:
    """The file then stands behind it. Raises InvalidError for what is no whole safetensors file."""
    size = file.seek(0, 2)
    file.seek(0)
    begin = file.read(max(map(len, FOREIGN)))
    for mark, kind in FOREIGN.items():
        if begin.startswith(mark) and begin[LENGTH : LENGTH + 1] != b"{":
            _say(f"{WEIGHTS} is {kind}, and no safetensors file. {WAY_OUT}")
    if size > MAX_WEIGHTS:
        _say(f"{WEIGHTS} has {size:,} bytes; the limit is {MAX_WEIGHTS:,}. Train with a lower rank or fewer modules.")
    if size < LENGTH + 2:
        _say(f"{WEIGHTS} has {size} bytes, which no safetensors file has; it is cut. Send it again.")
    length = int.from_bytes(begin[:LENGTH], "little")
    if length > MAX_HEADER:
        _say(f"{WEIGHTS} claims a header of {length:,} bytes; the limit is {MAX_HEADER:,}. {WAY_OUT}")
    if LENGTH + length > size:
        _say(f"{WEIGHTS} has {size:,} bytes, but its header alone claims {length:,}; it is cut. Send it again.")
    file.seek(0)
    content = file.read(LENGTH + length)
    entries, metadata = _entries(content[LENGTH:])
    tensors = [_tensor(name, facts) for name, facts in entries.items()]
    _lay_out(tensors, size - len(content))
    return Header(content, tensors, metadata)


def _entries(header: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    if not header.startswith(b"{"):
        _say(f"The header of {WEIGHTS} does not begin with {{, as that of a safetensors file does. {WAY_OUT}")
    try:
        found = json.loads(header.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        _say(f"The header of {WEIGHTS} is no JSON object that can be read: {error}. {WAY_OUT}")
    if len(found) > MAX_TENSORS:
        _say(f"{WEIGHTS} has {len(found):,} tensors; the limit is {MAX_TENSORS:,}.")
    metadata = found.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _say(f"{METADATA} of {WEIGHTS} is no object of texts. {WAY_OUT}")
    return found, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _tensor(name: str, facts: Any) -> Tensor:
    try:
        told = msgspec.convert(facts, Facts)
    except msgspec.ValidationError as error:
        _say(f"The header of {WEIGHTS} tells of {name[:200]!r} what no tensor has: {error}. {WAY_OUT}")
    start, end = told.data_offsets
    expected = prod(told.shape) * DTYPES.get(told.dtype, 0)
    if told.dtype in DTYPES and end - start != expected:
        _say(
            f"{name[:200]!r} takes {end - start:,} bytes of {WEIGHTS}, but its shape {told.shape} needs {expected:,} "
            f"in {told.dtype}. {WAY_OUT}"
        )
    return Tensor(name=name, dtype=told.dtype, shape=tuple(told.shape), start=start, end=end)


def _lay_out(tensors: Sequence[Tensor], size: int) -> None:
    """Each tensor begins where the one before ends, and the last one ends with the file."""
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != end or tensor.end < tensor.start:
            _say(f"{tensor.name[:200]!r} begins at byte {tensor.start:,} of the numbers, not at {end:,}. {WAY_OUT}")
        end = tensor.end
    if end != size:
        what = "it is cut" if end > size else "something else follows"
        _say(f"{WEIGHTS} has {size:,} bytes of numbers, but its header tells of {end:,}; {what}. Send it again.")


def chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    """Raises InvalidError where the file ends before."""
    while length:
        chunk = file.read(min(CHUNK, length))
        if not chunk:
            raise InvalidError([Fault("/weights", f"{WEIGHTS} has become shorter while it was read. Send it again.")])
        length -= len(chunk)
        yield chunk


def _is_finite(chunk: bytes, dtype: str) -> bool:
    if dtype == "BF16":
        # Its exponent, all ones, as NumPy has no such type.
        return bool(((np.frombuffer(chunk, "<u2") & 0x7F80) != 0x7F80).all())
    return bool(np.isfinite(np.frombuffer(chunk, "<f4" if dtype == "F32" else "<f2")).all())


def _described(path: Path) -> AdapterFile:
    content = path.read_bytes()
    return _file(path.name, len(content), sha256(content).hexdigest())


def _file(name: str, size: int, digest: str) -> AdapterFile:
    return AdapterFile(name=name, size=size, sha256=digest)


def _refuse(faults: Any) -> None:
    if found := list(faults):
        raise InvalidError(found)


def _say(detail: str) -> NoReturn:
    raise InvalidError([Fault("/weights", detail)])
