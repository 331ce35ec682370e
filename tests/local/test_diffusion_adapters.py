"""LoRA adapters of diffusion models: PEFT's own result, as much of it as is asked for, and nothing left of it after."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np
import peft
import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from domain.errors import InvalidError
from domain.events.jobs import Sampling
from domain.lora import CONFIG, PIPELINE_WEIGHTS, WEIGHTS
from domain.models import NANO
from tests import adapter as made
from tests import diffusion
from tests.local.adapters import fill
from tests.local.conftest import Running
from tests.local.engine import updates
from tests.local.test_cli import text2song
from tests.local.test_jobs import submit, when
from workers import adapter_files
from workers.diffusers_lora import SAID
from workers.engine import Adapter, Clip, Failure
from workers.engines.checkpoints import resolve
from workers.engines.diffusion.adapters import Adapters
from workers.engines.diffusion.engine import DiffusionEngine
from workers.engines.pipelines import DENOISERS
from workers.training.errors import TrainingError
from workers.training.network import Network

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES: Final = ("stable_audio", "stable_audio_3", "ace_step", "riffusion")
# By family, layers of the network that denoises.
TARGETS: Final = {
    "stable_audio": ["to_q", "attn1.to_v", "to_out.0"],
    "stable_audio_3": ["to_qkv", "to_out"],
    "ace_step": ["to_q", "to_v", "down_proj"],
    "riffusion": ["to_q", "to_k", "to_v", "to_out.0"],
}
# By family, what its pipeline is called with; the engine is asked for the same.
CALLS: Final[dict[str, dict[str, Any]]] = {
    "stable_audio": {"audio_end_in_s": 1.0, "guidance_scale": 3.0, "num_inference_steps": 3},
    "stable_audio_3": {"duration": 1.0, "guidance_scale": 3.0, "num_inference_steps": 3},
    "ace_step": {"audio_duration": 1.0, "guidance_scale": 3.0, "num_inference_steps": 3, "lyrics": ""},
}


class Loaded:
    """A tiny pipeline in both hands: the engine's and diffusers' own."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder / name
        diffusion.saved(getattr(diffusion, name)(), self.folder)
        self.model = resolve(str(self.folder)).model
        self.engine = DiffusionEngine.load(resolve(str(self.folder)), "cpu")

    def request(self, adapter: Adapter | None, *seeds: int) -> Any:
        steps = {"num_inference_steps": 3}
        sampling = Sampling(guidance_scale=3.0)
        return diffusion.request(*seeds, sampling=sampling, adapter=adapter, parameters=steps)

    def take(self, adapter: Adapter | None = None) -> Any:
        [pcm] = diffusion.sing(self.engine, self.request(adapter, 5))
        return pcm

    def refusal(self, adapter: Adapter) -> str:
        *_, last = updates(self.engine, self.request(adapter, 5))
        assert isinstance(last, Failure)
        return last.error

    def adapted(self, folder: Path, seed: int, **options: Any) -> Any:
        """The pipeline with an adapter in PEFT's hands, which is saved as well."""
        pipeline = diffusion.pipeline(self.folder)
        part = DENOISERS[self.model.family]
        options = {"r": 3, "lora_alpha": 9, "target_modules": TARGETS[self.name], **options}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            wrapped: Any = peft.get_peft_model(getattr(pipeline, part), peft.LoraConfig(**options))
            fill(wrapped, 0.3)
        wrapped.peft_config["default"].base_model_name_or_path = self.model.id
        wrapped.save_pretrained(folder, save_embedding_layers=False)
        return pipeline


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded(request.param, tmp_path_factory.mktemp("pipelines"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return Loaded("stable_audio", tmp_path_factory.mktemp("plain"))


def adapter(folder: Path, scale: float = 1.0) -> Adapter:
    return Adapter(sha256=str(folder), folder=str(folder), scale=scale)


def test_an_adapter_sounds_as_in_the_hands_of_peft_and_leaves_nothing_behind(loaded: Loaded, tmp_path: Path) -> None:
    base = loaded.take()
    one, other = tmp_path / "one", tmp_path / "other"
    pipeline = loaded.adapted(one, 1)
    loaded.adapted(other, 2, use_rslora=True, rank_pattern={TARGETS[loaded.name][0]: 5})
    heard = loaded.take(adapter(one))
    assert np.abs(heard - base).max() > 0.001
    if loaded.name in CALLS:
        dice = torch.Generator("cpu").manual_seed(5)
        expected = pipeline("slow dub", generator=dice, **CALLS[loaded.name]).audios[0].numpy()
        # The adapter's weights stand at other addresses, and some processors then add up in another order.
        np.testing.assert_allclose(heard, diffusion.leveled(expected), atol=1e-5)
    assert not np.array_equal(loaded.take(adapter(other)), heard)
    assert np.array_equal(loaded.take(adapter(one)), heard)
    assert np.array_equal(loaded.take(adapter(one, 0.0)), base)
    half = loaded.take(adapter(one, 0.5))
    assert not np.array_equal(half, heard)
    assert not np.array_equal(half, base)
    assert np.array_equal(loaded.take(), base)


def test_every_layer_of_a_network_computes_what_peft_computes(loaded: Loaded, tmp_path: Path) -> None:
    part = DENOISERS[loaded.model.family]
    options = {
        "use_rslora": True,
        "rank_pattern": {TARGETS[loaded.name][0]: 5},
        "alpha_pattern": {TARGETS[loaded.name][-1]: 2.0},
    }
    theirs = getattr(loaded.adapted(tmp_path, 3, **options), part)
    network = getattr(diffusion.pipeline(loaded.folder), part)
    Adapters(network).use(adapter(tmp_path, 0.7))
    changed = 0
    for path, layer in theirs.named_modules():
        if hasattr(layer, "lora_A"):
            layer.set_scale("default", 0.7)
            asked = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(changed))
            with torch.no_grad():
                found = network.get_submodule(path)(asked)
                torch.testing.assert_close(found, layer(asked), rtol=0, atol=1e-6)
                assert not torch.equal(found, layer.base_layer(asked))
            changed += 1
    assert changed >= 2


def test_adapters_of_requests_that_follow_each_other_are_not_mixed_up(plain: Loaded, tmp_path: Path) -> None:
    plain.adapted(tmp_path, 1)
    alone = {None: plain.take(), tmp_path: plain.take(adapter(tmp_path))}
    for number, folder in enumerate((tmp_path, None, tmp_path)):
        asked = plain.request(adapter(folder) if folder else None, 5)
        plain.engine.admit(replace(asked, id=str(number)))
    clips: list[Clip] = []
    while len(clips) < 3:
        clips += [update for update in plain.engine.advance() if isinstance(update, Clip)]
    for clip, folder in zip(clips, (tmp_path, None, tmp_path), strict=True):
        assert np.array_equal(clip.pcm, alone[folder])


def test_what_does_not_fit_ends_its_request_alone_and_by_name(plain: Loaded, tmp_path: Path) -> None:
    base = plain.take()
    plain.adapted(tmp_path / "sound", 1)
    tensors = load_file(tmp_path / "sound" / WEIGHTS)
    first = next(iter(tensors))
    cases = {
        "narrow": ({**tensors, first: tensors[first][:, 1:].contiguous()}, "does not fit the model: .* is expected"),
        "elsewhere": (
            {f"base_model.model.nowhere.to_q.{first[-13:]}": tensors[first]},
            "no linear layer for .*nowhere",
        ),
        "half": ({name: tensor for name, tensor in tensors.items() if "lora_A" in name}, "has lora_A only"),
        "empty": ({}, "is empty"),
        "damaged": ({**tensors, first: tensors[first] * torch.nan}, "not finite"),
    }
    for name, (changed, said) in cases.items():
        folder = tmp_path / name
        shutil.copytree(tmp_path / "sound", folder)
        save_file(changed, folder / WEIGHTS)
        with pytest.raises(AssertionError, match=said):
            diffusion.sing(plain.engine, plain.request(adapter(folder), 5))
        assert np.array_equal(plain.take(), base), name
    assert "cannot be read" in plain.refusal(adapter(tmp_path / "nothing"))


def test_what_peft_saves_is_taken_and_what_fits_no_such_model_is_refused(plain: Loaded, tmp_path: Path) -> None:
    plain.adapted(tmp_path / "sound", 1)
    assert adapter_files.check(tmp_path / "sound", plain.model).rank == 3
    tensors = load_file(tmp_path / "sound" / WEIGHTS)
    first = next(iter(tensors))
    cases: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
        "rank": ({}, {"r": 4}, "by the rank"),
        "names": (
            {**tensors, "unet.to_q.lora_A.weight": tensors[first].clone()},
            {},
            "only weights of the network that denois",
        ),
        "folded": ({**tensors, first: tensors[first][..., None, None]}, {}, "have two sizes over 0"),
        "half": ({name: tensor for name, tensor in tensors.items() if name != first}, {}, "has lora_B alone"),
        "unnamed": ({}, {"target_modules": ["nothing"]}, "does not name"),
        "pattern": ({}, {"target_modules": ".*to_q"}, "a list of names of modules"),
        "dora": ({}, {"use_dora": True}, "cannot run"),
    }
    for name, (changed, said, error) in cases.items():
        folder = tmp_path / name
        shutil.copytree(tmp_path / "sound", folder)
        save_file(changed or tensors, folder / WEIGHTS)
        config = json.loads((folder / CONFIG).read_bytes())
        (folder / CONFIG).write_text(json.dumps(config | said))
        with pytest.raises(InvalidError, match=error):
            adapter_files.check(folder, plain.model)


def test_a_training_of_a_diffusion_model_says_which_models_can_be_trained(plain: Loaded) -> None:
    with pytest.raises(TrainingError, match="cannot be trained here; a model of the family musicgen can"):
        Network(resolve(str(plain.folder)))


def test_a_studio_takes_an_adapter_of_a_diffusion_model(plain: Loaded, tmp_path: Path) -> None:
    plain.adapted(tmp_path / "adapter", 1)
    files = {
        field: (name, (tmp_path / "adapter" / name).read_bytes())
        for field, name in (("weights", WEIGHTS), ("config", CONFIG))
    }
    studio = Running(tmp_path / "data", TEXT2SONG_MODEL=str(plain.folder))
    try:
        studio.wait_until_ready()
        foreign = studio.http.post("/adapters", **made.form(base_model=plain.model.id, config=b'{"peft_type": "LORA"}'))
        assert foreign.status_code == 400, foreign.text
        registered = studio.http.post("/adapters", data={"name": "dub", "version": "1.0.0"}, files=files)
        assert registered.status_code == 201, registered.text
        assert registered.json()["base_model"] == plain.model.id
        [model] = [one for one in studio.http.get("/models").json()["items"] if one["is_active"]]
        assert "adapters" in model["capabilities"]

        def digest(**fields: Any) -> str:
            job = submit(studio, seed=5, parameters={"num_inference_steps": 3}, **fields)
            [sample] = when(studio, job, "completed")["sample_ids"]
            return str(studio.http.get(f"/audio/{sample}").json()["pcm_sha256"])

        base = digest()
        whole = digest(adapter_id=registered.json()["id"])
        assert base != whole
        assert digest(adapter_id=registered.json()["id"], adapter_scale=0) == base
        assert digest(adapter_id=registered.json()["id"]) == whole

        # The same, as a pipeline would have saved it: sent, put into the object store, and from a folder.
        renamed = {
            name.replace("base_model.model.", "transformer."): tensor
            for name, tensor in load_file(tmp_path / "adapter" / WEIGHTS).items()
        }
        told = {"transformer.r": 3, "transformer.lora_alpha": 9}
        save_file(renamed, tmp_path / PIPELINE_WEIGHTS, {SAID: json.dumps(told)})
        content = (tmp_path / PIPELINE_WEIGHTS).read_bytes()
        stored = tmp_path / "data" / "objects" / "uploads" / "dub" / PIPELINE_WEIGHTS
        stored.parent.mkdir(parents=True)
        stored.write_bytes(content)
        named = {"name": "dub", "base_model": plain.model.id}
        sent = studio.http.post("/adapters", data={**named, "version": "2.0.0"}, files={"weights": content})
        fetched = studio.http.post("/adapters", json={**named, "version": "3.0.0", "storage_path": "uploads/dub"})
        for answer in (sent, fetched):
            assert answer.status_code == 201, answer.text
            assert digest(adapter_id=answer.json()["id"]) == whole
        options = ("--name", "dub", "--version", "4.0.0", "--base-model", plain.model.id, "--url", studio.url)
        added = text2song("adapters", "add", ".", *options, cwd=tmp_path)
        assert added.returncode == 0, added.stderr
        assert "rank 3" in added.stdout
        for base, said in ((NANO.id, "is a MusicGen"), ("nobody/nothing", "is no model that this studio knows")):
            fields = {"name": "dub", "version": "5.0.0", "base_model": base}
            foreign = studio.http.post("/adapters", data=fields, files={"weights": content})
            assert (foreign.status_code, foreign.json()["errors"][0]["pointer"]) == (400, "/base_model")
            assert said in foreign.text
        unnamed = studio.http.post("/adapters", data={"name": "dub", "version": "5.0.0"}, files={"weights": content})
        assert unnamed.status_code == 400
        assert "base_model is missing, and the files name none." in unnamed.text
    finally:
        assert studio.stop() == 0, studio.errors()
