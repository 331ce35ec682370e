"""What a LoRA adapter in PEFT's format must be like: its configuration, and the names and shapes of its weights.

Nothing is taken that the engine would have to leave out: an adapter sounds as it was trained, or is refused. Of
MusicGen, names and sizes are known beforehand; of other models, an engine finds out whether the weights fit.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from math import isfinite
from typing import Any, Final, TypeAlias

from msgspec import Struct

from domain.errors import Fault
from domain.models import Decoder, Model

WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
PIPELINE_WEIGHTS: Final = "pytorch_lora_weights.safetensors"  # what diffusers writes, without a configuration
PREFERENCE: Final = ("preference.json", "preference.safetensors")
MAX_PREFERENCE: Final = 1_000_000  # bytes of each
CHANCE: Final = 0.05  # how often guesses may pass for a taste
MAX_WEIGHTS: Final = 512_000_000  # bytes
MAX_CONFIG: Final = 100_000
MAX_RANK: Final = 128
MAX_ALPHA: Final = 100_000
MAX_WIDTH: Final = 2**20
MAX_FAULTS: Final = 5
SHOWN: Final = 80
DTYPES: Final = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of a number
PROJECTIONS: Final = ("q_proj", "k_proj", "v_proj", "out_proj")
MODULES: Final = (*PROJECTIONS, "fc1", "fc2")
PATH: Final = re.compile(r"\w+(\.\w+)*", re.ASCII)
TENSOR: Final = re.compile(
    r"base_model\.model\.(?:decoder\.)?"
    r"(?P<path>model\.decoder\.layers\.(?:0|[1-9][0-9]{0,3})\."
    rf"(?:(?:self_attn|encoder_attn)\.(?:{'|'.join(PROJECTIONS)})|fc1|fc2))\.lora_(?P<half>A|B)\.weight"
)
ANY_TENSOR: Final = re.compile(rf"base_model\.model\.(?P<path>{PATH.pattern})\.lora_(?P<half>A|B)\.weight", re.ASCII)
TENSOR_FORM: Final = "base_model.model.decoder.model.decoder.layers.0.self_attn.q_proj.lora_A.weight"
ANY_FORM: Final = "base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight"

Config: TypeAlias = Mapping[str, Any]


class Tensor(Struct, frozen=True, kw_only=True):
    """As a file's header tells of it. `start` and `end` are in bytes, behind the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def config_faults(config: Config, model: Model | None) -> Iterator[Fault]:
    """Of what PEFT writes as adapter_config.json. A base model that is not known is taken for a MusicGen."""
    yield from islice(_config_faults(config, _is_musicgen(model)), MAX_FAULTS)


def weight_faults(config: Config, tensors: Sequence[Tensor], model: Model | None) -> Iterator[Fault]:
    """Of weights of a configuration without faults. Where the base model's sizes are not known, they have to fit each
    other.
    """
    yield from islice(_weight_faults(config, tensors, model), MAX_FAULTS)


def rank(config: Config) -> int:
    """The largest of the adapter's matrices."""
    ranks: list[int] = [config["r"], *(config.get("rank_pattern") or {}).values()]
    return max(ranks)


def _is_musicgen(model: Model | None) -> bool:
    return model is None or model.family == "musicgen"


def _config_faults(config: Config, is_musicgen: bool) -> Iterator[Fault]:
    rules = RULES if is_musicgen else {**RULES, "target_modules": ANY_TARGETS}
    for name in ("peft_type", "r", "lora_alpha", "target_modules"):
        if name not in config:
            yield Fault(f"/config/{name}", f"{CONFIG} lacks {name}; save the adapter with PEFT's save_pretrained.")
    for name, value in config.items():
        pointer = "/config/" + name.replace("~", "~0").replace("/", "~1")
        if rule := rules.get(name):
            is_right, wanted = rule
            if not is_right(value):
                yield Fault(pointer[:200], f"{CONFIG} has {_quoted(name)} of {_quoted(value)}; it must be {wanted}.")
        elif value is not None and value is not False and value not in ({}, []):
            detail = f"{CONFIG} has {_quoted(name)} of {_quoted(value)}, which the studio cannot run; train without it."
            yield Fault(pointer[:200], detail)


def _weight_faults(config: Config, tensors: Sequence[Tensor], model: Model | None) -> Iterator[Fault]:
    if not tensors:
        yield Fault("/weights", f"{WEIGHTS} has no weights; save the adapter with PEFT's save_pretrained.")
        return
    is_musicgen = _is_musicgen(model)
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        found = (TENSOR if is_musicgen else ANY_TENSOR).fullmatch(tensor.name)
        if found is None:
            what, form = "weights of the network that denoises", ANY_FORM
            if is_musicgen:
                what, form = f"{', '.join(MODULES)} of the decoder's layers", TENSOR_FORM
            detail = f"only {what} can be adapted, with names such as {form}."
            yield Fault("/weights", f"{WEIGHTS} has {_quoted(tensor.name)}; {detail}")
        elif tensor.dtype not in DTYPES or tensor.dtype != tensors[0].dtype:
            wanted = tensors[0].dtype + ", as the first" if tensor.dtype in DTYPES else f"one of {', '.join(DTYPES)}"
            detail = f"{_quoted(tensor.name)} is {_quoted(tensor.dtype)}; it must be {wanted}."
            yield Fault("/weights", detail)
        elif len(tensor.shape) != 2 or not all(1 <= width <= MAX_WIDTH for width in tensor.shape):
            detail = f"{_quoted(tensor.name)} has the shape {[*tensor.shape]}; LoRA weights have two sizes over 0."
            yield Fault("/weights", detail)
        elif halves.setdefault(found["path"], {}).setdefault(found["half"], tensor) is not tensor:
            yield Fault("/weights", f"{WEIGHTS} has two lora_{found['half']} of {found['path']}; each module has one.")
    decoder = model.decoder if model else None
    sizes = decoder or (_inferred(halves) if is_musicgen else None)
    for path, half in halves.items():
        yield from _pair_faults(config, path, half, sizes, decoder)
    yield from _target_faults(config, halves)


def _pair_faults(
    config: Config, path: str, half: Mapping[str, Tensor], sizes: Decoder | None, decoder: Decoder | None
) -> Iterator[Fault]:
    if len(half) < 2:
        detail = f"{path} has lora_{min(half)} alone; both lora_A and lora_B are needed. The file may be cut."
        yield Fault("/weights", detail)
        return
    layer, _, module = path.rpartition(".layers.")[2].partition(".")
    if decoder is not None and int(layer) >= decoder.layers:
        detail = f"{path} is of layer {layer}, but the base model has {decoder.layers} layers, the first is layer 0."
        yield Fault("/weights", detail)
        return
    inputs, outputs = half["A"].shape[1], half["B"].shape[0]
    if sizes is not None:
        inputs, outputs = _widths(module, sizes)
    own = _at(config.get("rank_pattern") or {}, path, config["r"])
    whose = "the base model's" if decoder else "that of the other weights"
    for letter, wanted in (("A", (own, inputs)), ("B", (outputs, own))):
        if half[letter].shape != wanted:
            detail = (
                f"{half[letter].name} has the shape {[*half[letter].shape]}; by the rank in {CONFIG} and {whose} "
                f"width it must be {[*wanted]}."
            )
            yield Fault("/weights", detail)


def _target_faults(config: Config, halves: Mapping[str, object]) -> Iterator[Fault]:
    targets = config["target_modules"]
    for path in halves:
        if not any(_ends_in(path, target) for target in targets):
            detail = f"{WEIGHTS} has weights of {path}, which target_modules of {CONFIG} does not name."
            yield Fault("/weights", detail)
    named = [("target_modules", target) for target in targets]
    named += [(name, key) for name in ("rank_pattern", "alpha_pattern") for key in config.get(name) or {}]
    for name, key in named:
        if not any(_ends_in(path, key) for path in halves):
            detail = f"{CONFIG} names {_quoted(key)} in {name}, but {WEIGHTS} has no such weights. It may be cut."
            yield Fault(f"/config/{name}", detail)


def _inferred(halves: Mapping[str, Mapping[str, Tensor]]) -> Decoder | None:
    """The widths that the first weights have."""
    hidden = inner = 0
    for path, half in halves.items():
        if len(half) == 2:
            inputs, outputs = half["A"].shape[1], half["B"].shape[0]
            module = path.rpartition(".")[2]
            hidden = hidden or (outputs if module == "fc2" else inputs)
            inner = inner or {"fc1": outputs, "fc2": inputs}.get(module, 0)
    return Decoder(layers=0, hidden=hidden, inner=inner) if hidden else None


def _widths(module: str, sizes: Decoder) -> tuple[int, int]:
    """In and out."""
    match module:
        case "fc1":
            return sizes.hidden, sizes.inner
        case "fc2":
            return sizes.inner, sizes.hidden
        case _:
            return sizes.hidden, sizes.hidden


def _at(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value of the first key that the module's path ends in, as PEFT looks it up."""
    return next((value for key, value in patterns.items() if _ends_in(path, key)), default)


def _ends_in(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_RANK


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and low <= value <= high


def _is_alpha(value: Any) -> bool:
    return _is_number(value, 0, MAX_ALPHA) and value > 0


def _is_text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= 1_000)


def _is_pattern(is_value: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def is_right(value: Any) -> bool:
        return value is None or (
            isinstance(value, dict) and all(PATH.fullmatch(name) and is_value(entry) for name, entry in value.items())
        )

    return is_right


def _is_targets(value: Any) -> bool:
    return _is_paths(value) and all(name.rpartition(".")[2] in MODULES for name in value)


def _is_paths(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(name, str) and PATH.fullmatch(name) for name in value)
    )


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_layers(value: Any) -> bool:
    return value is None or isinstance(value, int) or (isinstance(value, list) and all(map(_is_layers, value)))


def _is_initial(value: Any) -> bool:
    return isinstance(value, bool) or value in ("gaussian", "orthogonal", "eva")


ANY_TARGETS: Final = (_is_paths, "a list of names of modules")
# What decides how an adapter sounds, and what only says how it came about. Whatever else PEFT can do is not run here.
RULES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "peft_type": (lambda value: value == "LORA", "LORA"),
    "r": (_is_count, f"a whole number from 1 to {MAX_RANK}"),
    "lora_alpha": (_is_alpha, f"a number over 0 and at most {MAX_ALPHA:,}"),
    "target_modules": (_is_targets, f"a list of names that end in {', '.join(MODULES)}"),
    "use_rslora": (_is_flag, "true or false"),
    "rank_pattern": (_is_pattern(_is_count), f"an object of plain module names with ranks from 1 to {MAX_RANK}"),
    "alpha_pattern": (_is_pattern(_is_alpha), f"an object of plain module names with numbers up to {MAX_ALPHA:,}"),
    "bias": (lambda value: value == "none", "none, as biases cannot be swapped"),
    "lora_dropout": (lambda value: _is_number(value, 0, 1), "a number from 0 to 1"),
    "init_lora_weights": (_is_initial, "true, false, gaussian, orthogonal or eva, which leave the base model as it is"),
    "inference_mode": (_is_flag, "true or false"),
    "base_model_name_or_path": (_is_text, "a text or null"),
    "revision": (_is_text, "a text or null"),
    "task_type": (_is_text, "a text or null"),
    "peft_version": (_is_text, "a text or null"),
    "auto_mapping": (
        lambda value: value is None or (isinstance(value, dict) and all(map(_is_text, value.values()))),
        "null or an object of texts",
    ),
    "layers_to_transform": (_is_layers, "null, a number or a list of numbers"),
    "layers_pattern": (
        lambda value: _is_text(value) or (isinstance(value, list) and all(map(_is_text, value))),
        "null, a text or a list of texts",
    ),
    "megatron_core": (_is_text, "a text or null"),
    "qalora_group_size": (lambda value: isinstance(value, int), "a whole number"),
}


def _quoted(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
