"""Models from a hub, as a person at a terminal gets them; the checkpoint is the studio's own, and works."""

import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import diffusion
from tests.hub import COMMIT, Hub, Repository, serving
from tests.local.test_cli import text2song
from workers.engines.checkpoints import BUILT_IN, resolve

NANO = Path(str(BUILT_IN[0].folder))
TERMS = {"license": "cc-by-nc-4.0"}
FREE = {"license": "apache-2.0"}
NAME = "someone/song"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as hub:
        hub.repositories[NAME] = Repository.of(NANO, **TERMS)
        yield hub


def pull(hub: Hub, cwd: Path, *arguments: str, name: str = NAME) -> subprocess.CompletedProcess[str]:
    cwd.mkdir(exist_ok=True)
    return text2song("models", "pull", name, *arguments, cwd=cwd, **environment(hub, cwd))


def environment(hub: Hub, cwd: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(cwd / "cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TEXT2SONG_FOLDER": str(cwd / "data"),
    }


def stored(cwd: Path) -> Path:
    return cwd / "cache" / "models--someone--song" / "snapshots" / COMMIT


def test_a_licence_is_shown_and_nothing_is_fetched_before_it_is_accepted(hub: Hub, tmp_path: Path) -> None:
    refused = pull(hub, tmp_path)
    assert refused.returncode == 1
    assert f"someone/song: 5 files, 19.6 MB, licence cc-by-nc-4.0 ({hub.url}/someone/song)" in refused.stdout
    assert f"Read it at {hub.url}/someone/song, and accept it with --accept-license." in refused.stderr
    assert "model.safetensors" not in hub.repositories[NAME].sent
    accepted = pull(hub, tmp_path, "--accept-license")
    assert accepted.returncode == 0, accepted.stderr
    assert "someone/song is ready. Use it with TEXT2SONG_MODEL=someone/song text2song up" in accepted.stdout
    for file in NANO.iterdir():
        assert (stored(tmp_path) / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("answer", "is_taken"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_terminal_is_asked(hub: Hub, tmp_path: Path, answer: str, is_taken: bool) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "infra.cli", "models", "pull", NAME],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment(hub, tmp_path)},
    ) as process:
        said = b""
        while b"[y/N]" not in said:
            assert select.select([ours], [], [], 60)[0], said
            said += os.read(ours, 1000)
        os.write(ours, answer.encode())
        assert process.stdout is not None
        process.stdout.read()
        assert (process.wait(60) == 0) is is_taken
    os.close(ours)
    os.close(theirs)
    assert b"Do you accept the licence cc-by-nc-4.0 of someone/song?" in said
    assert (stored(tmp_path) / "model.safetensors").exists() is is_taken


def test_a_free_model_is_fetched_and_copied_into_a_folder_that_works(hub: Hub, tmp_path: Path) -> None:
    hub.repositories[NAME].card = FREE
    folder = tmp_path / "models" / "mine"
    done = pull(hub, tmp_path, "--folder", str(folder))
    assert done.returncode == 0, done.stderr
    assert "TEXT2SONG_MODEL=" + str(folder) in done.stdout
    assert "model.safetensors" in done.stderr or "Fetching" in done.stderr  # the progress
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in NANO.iterdir())
    assert resolve(str(folder)).model.family == "musicgen"
    again = pull(hub, tmp_path, "--folder", str(folder))
    assert (again.returncode, "is there already" in again.stderr) == (1, True)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_not_kept_and_the_next_try_fetches_it_anew(hub: Hub, tmp_path: Path, file: str) -> None:
    repository = hub.repositories[NAME]
    repository.damaged.add(file)
    done = pull(hub, tmp_path, "--accept-license")
    assert done.returncode == 1
    assert f"{file} of someone/song arrived damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (stored(tmp_path) / file).exists()
    repository.damaged.clear()
    repository.sent.clear()
    assert pull(hub, tmp_path, "--accept-license").returncode == 0
    assert repository.sent == [file]
    assert (stored(tmp_path) / file).read_bytes() == repository.files[file]


def test_a_gated_model_a_missing_file_and_one_that_nobody_has_are_sentences(hub: Hub, tmp_path: Path) -> None:
    repository = hub.repositories[NAME]
    repository.missing.add("tokenizer.json")
    lost = pull(hub, tmp_path, "--accept-license")
    assert "The hub lists a file of someone/song that it does not have" in lost.stderr
    repository.gated = True
    gated = pull(hub, tmp_path / "gated", "--accept-license")
    assert f"someone/song is gated: accept its terms at {hub.url}/someone/song, log in with `hf" in gated.stderr
    nobody = pull(hub, tmp_path, name="no/body")
    assert "The Hugging Face hub has no public model no/body; check the spelling." in nobody.stderr
    for done in (lost, gated, nobody):
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)


def test_what_is_no_model_is_refused_before_its_weights_are_fetched(hub: Hub, tmp_path: Path) -> None:
    weights = {"model.safetensors": b"weights"}
    for files, words in (
        ({"config.json": b'{"model_type": "bert"}'}, "is of type bert"),
        ({"model_index.json": b'{"_class_name": "FluxPipeline"}'}, "is a FluxPipeline of diffusers; those that can be"),
        ({"README.md": b"#"}, "has neither config.json nor model_index.json"),
    ):
        hub.repositories["some/thing"] = Repository(files | weights, **FREE)
        done = pull(hub, tmp_path / f"{len(words)}", name="some/thing")
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr
        assert "model.safetensors" not in hub.repositories["some/thing"].sent


def test_of_a_pipeline_one_kind_of_weights_of_each_part_is_fetched(hub: Hub, tmp_path: Path) -> None:
    folder = diffusion.saved(diffusion.stable_audio(), tmp_path / "stable")
    repository = Repository.of(folder, license="other", license_name="stable-audio-community")
    spare = {
        "vae/diffusion_pytorch_model.fp16.safetensors": b"half",
        "vae/diffusion_pytorch_model.bin": b"the same again",
        "model.ckpt": b"the same in another layout",
    }
    repository.files |= spare
    hub.repositories[NAME] = repository
    copied = tmp_path / "copied"
    done = pull(hub, tmp_path, "--accept-license", "--folder", str(copied))
    assert done.returncode == 0, done.stderr
    assert "licence stable-audio-community" in done.stdout
    assert {str(path.relative_to(copied)) for path in copied.rglob("*") if path.is_file()} == {
        *set(repository.files).difference(spare)
    }
    assert resolve(str(copied)).model.family == "stable-audio"
