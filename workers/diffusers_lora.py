"""LoRA files as diffusers' pipelines save them: the weights alone, named after the pipeline's parts."""

import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from msgspec import Struct

from domain.errors import Fault, InvalidError
from domain.lora import CONFIG, PATH, WEIGHTS, Tensor
from workers.adapter_files import METADATA, chunks, read_header
from workers.engines.pipelines import DENOISERS

PARTS: Final = frozenset(DENOISERS.values())
SAID: Final = "lora_adapter_metadata"
NAME: Final = re.compile(rf"(?P<part>[a-z0-9_]+)\.(?P<path>{PATH.pattern})\.(?P<end>lora_[AB]\.weight)", re.ASCII)
KOHYA: Final = ("lora_unet_", "lora_te")
# How earlier versions of diffusers called the same weights.
EARLIER: Final = (
    (".processor.", "."),
    ("to_out_lora.", "to_out.0.lora."),
    ("_lora.", ".lora."),
    (".lora.down.", ".lora_A."),
    (".lora.up.", ".lora_B."),
)


class Named(Struct, frozen=True):
    """A tensor, and what it is of a pipeline's part. `end` is lora_A.weight or lora_B.weight; all are empty where the
    name is none of diffusers'.
    """

    tensor: Tensor
    part: str
    path: str
    end: str


def rewrite(folder: Path) -> bool:
    """Makes the folder's weights, if diffusers has named them, those that PEFT would have saved, and adds their
    configuration. The numbers stay as they are. Says whether it did.

    Raises InvalidError for a damaged file, for one of kohya's trainer, and for one that changes more than the network
    that denoises.
    """
    source, target = folder / WEIGHTS, folder / f"{WEIGHTS}.rewritten"
    with source.open("rb") as file:
        header = read_header(file)
        _refuse_kohya(header.tensors)
        named = [_named(tensor) for tensor in header.tensors]
        if not any(each.part in PARTS for each in named):
            return False
        _refuse_others(named)
        with target.open("wb") as output:
            _write(output, file, len(header.content), named)
    (folder / CONFIG).write_bytes(msgspec.json.encode(_config(header.metadata, named)))
    target.replace(source)
    return True


def _refuse_kohya(tensors: Sequence[Tensor]) -> None:
    """Its names have lost the dots between modules, and most of its files change convolutions and the text encoder."""
    if (name := next((tensor.name for tensor in tensors if tensor.name.startswith(KOHYA)), None)) is not None:
        detail = (
            f"{WEIGHTS} has {name[:200]!r}, a name as kohya's trainer writes it, which is not understood. Load the "
            "file into its pipeline with load_lora_weights, and send what the pipeline's save_lora_weights writes of "
            "the network that denoises."
        )
        raise InvalidError([Fault("/weights", detail)])


def _named(tensor: Tensor) -> Named:
    name = tensor.name
    for old, new in EARLIER:
        name = name.replace(old, new)
    found = NAME.fullmatch(name)
    return Named(tensor, found["part"], found["path"], found["end"]) if found else Named(tensor, "", "", "")


def _refuse_others(named: Sequence[Named]) -> None:
    first = next(each.part for each in named if each.part in PARTS)
    for each in named:
        if each.part != first:
            detail = (
                f"{WEIGHTS} has {each.tensor.name[:200]!r}; only LoRA weights of the network that denoises can be "
                f"adapted, with names such as {first}.….lora_A.weight. Save the file without the others."
            )
            raise InvalidError([Fault("/weights", detail)])


def _config(metadata: Mapping[str, str], named: Sequence[Named]) -> dict[str, Any]:
    """As diffusers understands such a file: by what it says of itself; or else each alpha is as large as the rank."""
    ranks = {each.path: each.tensor.shape[0] for each in named if each.end == "lora_A.weight" and each.tensor.shape}
    said = _said(metadata, named[0].part)
    if said is None:
        usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 0
        others = {path: rank for path, rank in ranks.items() if rank != usual}
        said = {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others}
    return said | {"peft_type": "LORA", "target_modules": sorted(ranks)}


def _said(metadata: Mapping[str, str], part: str) -> dict[str, Any] | None:
    """What PEFT's configuration was, which newer files have."""
    if SAID not in metadata:
        return None
    try:
        found = msgspec.json.decode(metadata[SAID], type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        detail = f"{SAID} in {WEIGHTS} is no JSON object: {error}. Save the file again, or without it."
        raise InvalidError([Fault("/weights", detail)]) from None
    own = f"{part}."
    return {name.removeprefix(own): value for name, value in found.items() if name.startswith(own)} or None


def _write(output: BinaryIO, file: BinaryIO, begin: int, named: Sequence[Named]) -> None:
    facts: dict[str, Any] = {METADATA: {"format": "pt"}}
    end = 0
    for each in named:
        start, end = end, end + each.tensor.end - each.tensor.start
        key = f"base_model.model.{each.path}.{each.end}"
        if key in facts:
            detail = f"{WEIGHTS} has {each.path}.{each.end} twice, under two of diffusers' names. Save it again."
            raise InvalidError([Fault("/weights", detail)])
        facts[key] = {"dtype": each.tensor.dtype, "shape": each.tensor.shape, "data_offsets": (start, end)}
    header = msgspec.json.encode(facts)
    header += b" " * (-len(header) % 8)
    output.write(struct.pack("<Q", len(header)) + header)
    for each in named:
        file.seek(begin + each.tensor.start)
        output.writelines(chunks(file, each.tensor.end - each.tensor.start))
