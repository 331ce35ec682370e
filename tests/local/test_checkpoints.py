import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from domain.models import NANO, NOISE
from infra.settings import load
from tests.contract.conftest import too_many_files
from tests.hub import COMMIT, Repository, serving
from workers.engine import EngineError
from workers.engines.checkpoints import resolve

CONFIG: dict[str, Any] = {
    "model_type": "musicgen",
    "audio_encoder": {"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4]},
    "decoder": {"num_codebooks": 8, "audio_channels": 2, "max_position_embeddings": 2048},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """The folder of facebook/musicgen-stereo-small in a cache of its own."""
    repository = tmp_path / "hub" / "models--facebook--musicgen-stereo-small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder.rename(repository / "snapshots" / COMMIT)


def refusal(name: str | Path) -> str:
    with pytest.raises(EngineError) as caught:
        resolve(str(name))
    assert str(name) in str(caught.value)
    return str(caught.value)


def test_noise_needs_no_files() -> None:
    checkpoint = resolve("text2song/wiring-noise")
    assert (checkpoint.model, checkpoint.folder) == (NOISE, None)


def test_the_default_model_comes_along_and_its_files_set_the_limits_that_it_is_known_by() -> None:
    checkpoint = resolve(load({}).model)
    assert checkpoint.model is NANO
    folder = checkpoint.folder
    assert folder is not None
    found = resolve(str(folder)).model
    for limit in ("family", "max_duration", "sample_rate", "channels", "capabilities"):
        assert getattr(found, limit) == getattr(NANO, limit)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20e6


def test_a_folder_is_named_after_itself_and_its_weights_and_sets_its_own_limits(folder: Path) -> None:
    checkpoint = resolve(str(folder))
    model = checkpoint.model
    assert (model.sample_rate, model.channels, model.max_duration) == (32000, 2, 30.0)
    assert model.revision is not None
    assert model.id == f"local/my-model@{model.revision[:12]}"
    assert checkpoint.folder == folder


def test_folders_of_one_name_are_one_model_only_if_they_hold_the_same(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / folder.name
    shutil.copytree(folder, other)
    before = resolve(str(folder)).model.id
    assert resolve(str(other)).model.id == before
    weights = other / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"1")
    assert resolve(str(other)).model.id != before


def test_a_short_position_table_shortens_the_longest_clip(folder: Path) -> None:
    """103 positions hold 100 frames, since the last of four codebooks is three steps late."""
    short = CONFIG | {"decoder": CONFIG["decoder"] | {"max_position_embeddings": 103}}
    (folder / "config.json").write_text(json.dumps(short))
    assert resolve(str(folder)).model.max_duration == 2.0


def test_a_cached_hub_model_is_known_with_its_commit(cached: Path) -> None:
    checkpoint = resolve("facebook/musicgen-stereo-small")
    assert (checkpoint.folder, checkpoint.model.revision) == (cached, COMMIT)
    assert (checkpoint.model.license, checkpoint.model.vram_gb) == ("CC-BY-NC-4.0", 4)


@pytest.mark.usefixtures("cached")
def test_a_hub_model_that_is_not_here_says_how_to_get_it() -> None:
    assert "text2song models pull facebook/musicgen-large" in refusal("facebook/musicgen-large")


def test_the_home_of_an_unknown_user_is_no_model() -> None:
    assert refusal("~nobody-here/model").startswith("There is no model ~nobody-here/model")


def test_a_model_that_the_disk_does_not_give_may_be_there_at_another_try(cached: Path) -> None:
    assert cached.is_dir()
    for name, is_whole in (("facebook/musicgen-stereo-small", True), ("facebook/musicgen-large", False)):
        with pytest.raises(EngineError) as caught, too_many_files():
            resolve(name)
        assert caught.value.transient is is_whole
    assert resolve("facebook/musicgen-stereo-small").folder == cached


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_half_downloaded_model_says_what_is_missing(cached: Path, missing: str) -> None:
    (cached / missing).unlink()
    message = refusal("facebook/musicgen-stereo-small")
    assert missing in message
    assert "text2song models pull facebook/musicgen-stereo-small" in message


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-2.safetensors is missing" in refusal(folder)
    (folder / "model-2.safetensors").write_bytes(b"weights")
    assert resolve(str(folder)).folder == folder


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "broken config.json"),
        ("[]", "broken config.json"),
        ('{"model_type": "musicgen", "audio_encoder": {"sampling_rate": 0}}', "broken config.json"),
        ('{"model_type": "bert"}', "of type bert; only musicgen"),
        ('{"model_type": "musicgen", "decoder": {"max_position_embeddings": 9}}', "clips of 0.08 s"),
    ],
)
def test_a_config_that_is_not_musicgens_is_refused(folder: Path, config: str, said: str) -> None:
    (folder / "config.json").write_text(config)
    assert said in refusal(folder)


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "give a folder that exists" in refusal(tmp_path / "nowhere")


def test_resolving_loads_neither_torch_nor_transformers() -> None:
    check = (
        "import sys, workers.engine_process; from workers.engines.checkpoints import resolve; "
        "resolve('text2song/wiring-noise'); sys.exit({'torch', 'transformers'} & set(sys.modules) != set())"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def pull(name: str, endpoint: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, since the hub's address is read once at import."""
    code = (
        "import sys; from workers.engine import EngineError; from workers.engines import hub\n"
        "hub.ANSWER_SECONDS = 2\n"
        "try: print(hub.fetch(hub.look(sys.argv[1])).folder)\n"
        "except EngineError as error: sys.exit(str(error))"
    )
    return subprocess.run(
        [sys.executable, "-c", code, name],
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_hub_that_never_answers_is_given_up_within_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        pulled = pull("facebook/musicgen-small", endpoint, tmp_path)
    assert time.monotonic() - started < 50
    assert "facebook/musicgen-small could not be downloaded from http://127.0.0.1" in pulled.stderr
    assert "Traceback" not in pulled.stderr


def test_an_unreachable_hub_is_a_sentence(tmp_path: Path) -> None:
    pulled = pull("facebook/musicgen-small", "http://127.0.0.1:1", tmp_path)
    assert "could not be downloaded" in pulled.stderr
    assert "Traceback" not in pulled.stderr


FILES: dict[str, bytes] = {
    "config.json": json.dumps(CONFIG).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same again",
    "state_dict.bin": b"the same in another layout",
}


@pytest.fixture
def hub() -> Iterator[str]:
    """One that has a MusicGen, and knows no other model."""
    with serving() as hub:
        hub.repositories["someone/song"] = Repository(FILES)
        yield hub.url


def test_pulling_fetches_the_safetensors_and_not_the_same_weights_again(hub: str, tmp_path: Path) -> None:
    pulled = pull("someone/song", hub, tmp_path)
    assert pulled.returncode == 0, pulled.stderr
    folder = Path(pulled.stdout.strip())
    assert folder.name == COMMIT
    assert {file.name for file in folder.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}


def test_pulling_what_the_hub_does_not_have_is_a_sentence(hub: str, tmp_path: Path) -> None:
    assert "no public model someone/else; check the spelling" in pull("someone/else", hub, tmp_path).stderr
