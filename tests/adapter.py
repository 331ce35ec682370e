"""Adapters as PEFT saves them, made without it."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from domain.events.adapters import AdapterFile
from domain.events.jobs import AdapterSnapshot
from domain.lora import CONFIG, PROJECTIONS, WEIGHTS
from domain.models import NOISE, Decoder
from domain.ports import ObjectStore
from workers.adapter_files import listing_digest

assert NOISE.decoder is not None
DECODER = NOISE.decoder
PREFIX = "base_model.model.decoder.model.decoder.layers"
TARGETS = (*PROJECTIONS, "fc1", "fc2")


def config(**changes: Any) -> dict[str, Any]:
    """As PEFT 0.21 writes it."""
    nothing = (
        "auto_mapping exclude_modules modules_to_save layers_to_transform layers_pattern megatron_config eva_config "
        "trainable_token_indices corda_config lora_ga_config velora_config alora_invocation_tokens monteclora_config "
        "layer_replication target_parameters use_bdlora arrow_config kasa_config revision task_type"
    )
    switched_off = "fan_in_fan_out use_rslora use_dora use_qalora lora_bias ensure_weight_tying"
    return {
        **dict.fromkeys(nothing.split()),
        **dict.fromkeys(switched_off.split(), False),
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "base_model_name_or_path": NOISE.id,
        "inference_mode": True,
        "r": 2,
        "target_modules": [*TARGETS],
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "megatron_core": "megatron.core",
        "loftq_config": {},
        "qalora_group_size": 16,
        **changes,
    }


def modules(decoder: Decoder = DECODER, targets: Sequence[str] = TARGETS) -> dict[str, tuple[int, int]]:
    """In and out of each module that is adapted, by its path."""
    hidden, inner = decoder.hidden, decoder.inner
    widths = {"fc1": (hidden, inner), "fc2": (inner, hidden)}
    attention = [f"{part}.{name}" for part in ("self_attn", "encoder_attn") for name in PROJECTIONS]
    return {
        f"{PREFIX}.{layer}.{module}": widths.get(module, (hidden, hidden))
        for layer in range(decoder.layers)
        for module in (*attention, "fc1", "fc2")
        if module.rpartition(".")[2] in targets
    }


def weights(rank: int = 2, seed: int = 0, **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    dice = np.random.default_rng(seed)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for path, (inputs, outputs) in modules(**options).items():
        found[f"{path}.lora_A.weight"] = dice.normal(0, 0.1, (rank, inputs)).astype(np.float32)
        found[f"{path}.lora_B.weight"] = dice.normal(0, 0.1, (outputs, rank)).astype(np.float32)
    return found


def packed(tensors: Mapping[str, np.ndarray[Any, Any]], **entries: Any) -> bytes:
    """A safetensors file; `entries` are laid over those of its header, by name."""
    kinds = {"float32": "F32", "float16": "F16", "int64": "I64", "uint16": "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        content = tensor.tobytes()
        header[name] = {
            "dtype": kinds[str(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    header.update(entries)
    return framed(json.dumps(header).encode(), data)


def framed(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def write(folder: Path, content: bytes | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(packed(weights()) if content is None else content)
    (folder / CONFIG).write_text(json.dumps(config(**changes)))
    return folder


def form(seed: int = 0, name: str = "jazz", version: str = "1.0.0", **fields: Any) -> dict[str, Any]:
    """The arguments of a POST that registers an adapter. `weights` and `config` may be the files' content."""
    content = fields.pop("weights", None)
    written = fields.pop("config", None)
    return {
        "data": {"name": name, "version": version, **fields},
        "files": {
            "weights": (WEIGHTS, packed(weights(seed=seed)) if content is None else content),
            "config": (CONFIG, json.dumps(config()).encode() if written is None else written),
        },
    }


FILES = {CONFIG: json.dumps(config()).encode(), WEIGHTS: packed(weights())}
DIGEST = listing_digest(
    [AdapterFile(name=name, size=len(content), sha256=sha256(content).hexdigest()) for name, content in FILES.items()]
)


async def store(objects: ObjectStore, adapter: AdapterSnapshot) -> None:
    """The files of an adapter that has DIGEST, without a registration."""
    assert adapter.sha256 == DIGEST
    for name, content in FILES.items():
        await objects.put(f"{adapter.storage_path}/{name}", content)
