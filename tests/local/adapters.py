"""LoRA adapters with random weights, those of the noise model as PEFT saves them."""

from pathlib import Path
from typing import Any, Final

import torch
from peft import LoraConfig, get_peft_model

from workers.engine import Adapter
from workers.engines import noise

MODULES: Final = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def lora(folder: Path, seed: int, *, rank: int, channels: int = 1, scale: float = 1.0, **config: Any) -> Adapter:
    adapted(folder, seed, rank=rank, channels=channels, **config)
    return Adapter(sha256=f"{seed:064}", folder=str(folder), scale=scale)


def adapted(folder: Path, seed: int, *, rank: int, channels: int = 1, **config: Any) -> Any:
    """The noise model with the adapter in PEFT's hands, after saving the adapter alone."""
    network: Any = noise.build(channels=channels)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=config.pop("targets", MODULES), **config)
        wrapped: Any = get_peft_model(network.decoder, options)
        fill(wrapped, 0.05)
    wrapped.save_pretrained(folder)
    network.decoder = wrapped.merge_and_unload()
    return network


def fill(network: torch.nn.Module, spread: float) -> None:
    """PEFT begins with zeros, with which an adapter changes nothing."""
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, spread)
