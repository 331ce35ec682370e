"""LoRA files of diffusers' pipelines: saved by diffusers, loaded by diffusers, and by the studio to the same effect."""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from domain.errors import InvalidError
from domain.lora import CONFIG, PIPELINE_WEIGHTS, WEIGHTS
from tests import diffusion
from tests.local.adapters import fill
from workers import adapter_files
from workers.diffusers_lora import SAID, rewrite
from workers.engine import Adapter
from workers.engines.checkpoints import resolve
from workers.engines.diffusion.adapters import Adapters
from workers.engines.pipelines import DENOISERS

pytestmark = pytest.mark.usefixtures("one_thread")

# By family, layers that are adapted; the second has a rank of its own.
TARGETS: Final = {"ace_step": ("to_q", "down_proj"), "riffusion": ("to_v", "to_out.0")}
Tensors = Mapping[str, torch.Tensor]


class Saved:
    """A pipeline's folder, and a LoRA that its pipeline has saved."""

    def __init__(self, family: str, folder: Path) -> None:
        diffusion.saved(getattr(diffusion, family)(), folder / "model")
        self.model = resolve(str(folder / "model")).model
        self.part = DENOISERS[self.model.family]
        self.folder = folder
        pipeline = self.pipeline()
        network = getattr(pipeline, self.part)
        first, second = TARGETS[family]
        config = peft.LoraConfig(
            r=3, lora_alpha=9, target_modules=[first, second], rank_pattern={second: 5}, alpha_pattern={second: 2}
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            network.add_adapter(config)
            fill(network, 0.3)
        layers = peft.get_peft_model_state_dict(network)
        if self.part == "unet":
            # As the training scripts of Stable Diffusion do, which gives lora.down and lora.up.
            layers = import_module("diffusers.utils").convert_state_dict_to_diffusers(layers)
        told = {f"{self.part}_lora_adapter_metadata": network.peft_config["default"].to_dict()}
        for name, metadata in (("told", told), ("untold", {})):
            pipeline.save_lora_weights(folder / name, **{f"{self.part}_lora_layers": layers}, **metadata)
        self.tensors = load_file(folder / "untold" / PIPELINE_WEIGHTS)

    def pipeline(self) -> Any:
        return diffusion.pipeline(self.folder / "model")

    def assert_alike(self, source: Path, tmp_path: Path, scale: float = 1.0) -> None:
        """Every layer computes what it computes after `load_lora_weights`."""
        pipeline = self.pipeline()
        pipeline.load_lora_weights(source.parent, weight_name=source.name)
        theirs, network = getattr(pipeline, self.part), getattr(self.pipeline(), self.part)
        folder = taken(source, tmp_path / "taken")
        adapter_files.check(folder, self.model)
        Adapters(network).use(Adapter(sha256="a", folder=str(folder), scale=scale))
        changed = 0
        for path, layer in theirs.named_modules():
            if hasattr(layer, "lora_A"):
                layer.set_scale(layer.active_adapters[0], scale)
                asked = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(changed))
                with torch.no_grad():
                    found = network.get_submodule(path)(asked)
                    torch.testing.assert_close(found, layer(asked), rtol=0, atol=1e-6)
                    assert not torch.allclose(found, layer.base_layer(asked), atol=1e-3)
                changed += 1
        assert changed == len([name for name in load_file(folder / WEIGHTS) if "lora_A" in name]) > 1


def taken(source: Path, folder: Path) -> Path:
    """As it is when the file has come in."""
    folder.mkdir()
    (folder / WEIGHTS).write_bytes(source.read_bytes())
    rewrite(folder)
    return folder


@pytest.fixture(scope="module", params=TARGETS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def unet(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved("riffusion", tmp_path_factory.mktemp("unet"))


@pytest.mark.parametrize("name", ["told", "untold"])
def test_a_file_sounds_as_in_the_hands_of_its_pipeline(saved: Saved, name: str, tmp_path: Path) -> None:
    saved.assert_alike(saved.folder / name / PIPELINE_WEIGHTS, tmp_path, scale=0.7)


def test_names_of_earlier_versions_are_understood(unet: Saved, tmp_path: Path) -> None:
    def earlier(name: str) -> str:
        above, _, own = name.partition(".to_")
        return f"{above}.processor.to_{own.replace('.lora.', '_lora.').replace('out.0', 'out')}"

    save_file({earlier(name): tensor for name, tensor in unet.tensors.items()}, tmp_path / "a.safetensors")
    assert any(".processor.to_out_lora.down.weight" in name for name in load_file(tmp_path / "a.safetensors"))
    rewritten = load_file(taken(tmp_path / "a.safetensors", tmp_path / "earlier") / WEIGHTS)
    plain = load_file(taken(unet.folder / "untold" / PIPELINE_WEIGHTS, tmp_path / "now") / WEIGHTS)
    assert rewritten.keys() == plain.keys()
    assert all(torch.equal(tensor, rewritten[name]) for name, tensor in plain.items())


def test_names_of_ace_steps_own_trainer_are_understood(tmp_path: Path) -> None:
    saved = Saved("ace_step", tmp_path / "saved")
    folder = taken(saved.folder / "told" / PIPELINE_WEIGHTS, tmp_path / "named")
    own = tmp_path / "own"
    own.mkdir()
    save_file(
        {name.replace(".to_q.", ".q_proj."): each for name, each in load_file(folder / WEIGHTS).items()}, own / WEIGHTS
    )
    config = json.loads((folder / CONFIG).read_bytes())
    targets = [path.replace(".to_q", ".q_proj") for path in config["target_modules"]]
    (own / CONFIG).write_text(json.dumps({**config, "target_modules": targets}))
    adapter_files.check(own, saved.model)
    networks = [saved.pipeline().transformer for _ in range(2)]
    for each, network in zip((folder, own), networks, strict=True):
        Adapters(network).use(Adapter(sha256="a", folder=str(each)))
    for path, layer in networks[0].named_modules():
        if path.endswith("to_q"):
            asked = torch.randn(2, layer.in_features)
            assert torch.equal(layer(asked), networks[1].get_submodule(path)(asked))
            assert not torch.equal(layer(asked), torch.nn.functional.linear(asked, layer.weight, layer.bias))


REFUSED: Final[Mapping[str, tuple[Tensors, dict[str, str], str]]] = {
    "another part": ({"text_encoder.a.lora_A.weight": torch.ones(1, 1)}, {}, "only LoRA weights of the network"),
    "no LoRA": ({"unet.conv_in.weight": torch.ones(1, 1)}, {}, "only LoRA weights of the network"),
    "an alpha": ({"unet.a.to_q.alpha": torch.ones(())}, {}, "only LoRA weights of the network"),
    "twice": (
        {"unet.a.to_q.lora.down.weight": torch.ones(3, 1), "unet.a.to_q.lora_A.weight": torch.ones(3, 1)},
        {},
        "twice, under two of diffusers' names",
    ),
    "kohya": (
        {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": torch.ones(1, 1, 1, 1)},
        {},
        "as kohya's trainer writes it.*save_lora_weights",
    ),
    "no object": ({}, {SAID: "[1]"}, "is no JSON object"),
    "deep": ({}, {SAID: "[" * 100_000}, "is no JSON object"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_as_it_was_trained_is_refused_by_name(unet: Saved, case: str, tmp_path: Path) -> None:
    others, metadata, said = REFUSED[case]
    save_file({**unet.tensors, **others}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(InvalidError, match=said):
        taken(tmp_path / "a.safetensors", tmp_path / "taken")


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"use_dora": True}, "cannot run"), ({"r": 4}, "by the rank"), ({"lora_alpha": "many"}, "must be a number")],
)
def test_what_the_file_says_of_itself_is_checked(
    unet: Saved, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    metadata = {"unet.r": 3, "unet.lora_alpha": 3, "text_encoder.r": 9}
    metadata |= {f"unet.{name}": value for name, value in changes.items()}
    save_file(unet.tensors, tmp_path / "a.safetensors", {SAID: json.dumps(metadata)})
    folder = taken(tmp_path / "a.safetensors", tmp_path / "taken")
    with pytest.raises(InvalidError, match=said):
        adapter_files.check(folder, unet.model)


def test_other_files_stay_as_they_are(tmp_path: Path) -> None:
    save_file({"base_model.model.a.lora_A.weight": torch.ones(1, 1)}, tmp_path / WEIGHTS)
    content = (tmp_path / WEIGHTS).read_bytes()
    rewrite(tmp_path)
    assert (tmp_path / WEIGHTS).read_bytes() == content
    assert not (tmp_path / CONFIG).exists()
    (tmp_path / WEIGHTS).write_bytes(content[:-1])
    with pytest.raises(InvalidError, match="it is cut"):
        rewrite(tmp_path)
