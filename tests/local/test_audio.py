import io
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile

from domain.models import NOISE
from tests.local.conftest import Running
from tests.local.test_jobs import submit, when

TYPES = {"flac": "audio/flac", "wav": "audio/wav", "mp3": "audio/mpeg", "ogg": "audio/ogg"}


@pytest.fixture(scope="module")
def sample(studio: Running) -> dict[str, Any]:
    job_id = submit(studio, prompt="rain — on a tin roof ♫", seed=11, duration=2, temperature=0.9, output_format="mp3")
    (sample_id,) = when(studio, job_id, "completed")["sample_ids"]
    return dict(studio.http.get(f"/audio/{sample_id}").json())


def stream(studio: Running, sample: dict[str, Any], output_format: str | None = "flac", **headers: str) -> Any:
    query = {} if output_format is None else {"format": output_format}
    return studio.http.get(sample["stream_url"], params=query, headers=headers)


def test_scenario_store_generated_audio(studio: Running, sample: dict[str, Any]) -> None:
    path = studio.data / "objects" / sample["storage_path"]
    assert re.fullmatch(rf"samples/{sample['job_id']}/1/[0-9]+/0\.flac", sample["storage_path"])
    with soundfile.SoundFile(path) as audio:
        assert audio.samplerate == sample["sample_rate"] == NOISE.sample_rate
        assert audio.channels == sample["channels"] == 1
        assert audio.frames / audio.samplerate == sample["duration_seconds"] == 2
        assert audio.title == "rain — on a tin roof ♫"
        assert audio.artist == NOISE.id
        comment = msgspec.json.decode(audio.comment)
        assert np.abs(audio.read()).max() > 0.01
    assert (comment["seed"], comment["job_id"], comment["sampling"]["temperature"]) == (11, sample["job_id"], 0.9)


def test_scenario_get_audio_metadata(sample: dict[str, Any]) -> None:
    assert sample["duration_seconds"] == 2
    assert sample["sample_rate"] == 32000
    assert sample["created_at"]
    assert sample["generation_params"] == {
        "seed": 11,
        "duration": 2,
        "temperature": 0.9,
        "top_k": 250,
        "top_p": 1.0,
        "guidance_scale": 3.0,
        "adapter_scale": 1.0,
        "continue_from": None,
        "melody_from": None,
        "continue_seconds": None,
        "parameters": {},
    }
    assert (sample["prompt"], sample["adapter_id"], sample["adapter"]) == ("rain — on a tin roof ♫", None, None)
    assert -60 < sample["loudness_lufs"] < 0
    assert "noise" in sample["notice"]


@pytest.mark.parametrize("output_format", TYPES)
def test_scenario_stream_audio_file(studio: Running, sample: dict[str, Any], output_format: str) -> None:
    whole = stream(studio, sample, output_format)
    assert whole.status_code == 200
    assert whole.headers["Content-Type"] == TYPES[output_format]
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert int(whole.headers["Content-Length"]) == len(whole.content)
    decoded, rate = soundfile.read(io.BytesIO(whole.content))
    assert rate == 32000
    assert len(decoded) / rate == pytest.approx(2, abs=0.1)
    assert np.abs(decoded).max() > 0.01
    half = len(whole.content) // 2
    first = stream(studio, sample, output_format, Range=f"bytes=0-{half - 1}")
    rest = stream(studio, sample, output_format, Range=f"bytes={half}-")
    assert first.status_code == rest.status_code == 206
    assert first.headers["Content-Range"] == f"bytes 0-{half - 1}/{len(whole.content)}"
    assert first.content + rest.content == whole.content
    tail = stream(studio, sample, output_format, Range="bytes=-10")
    assert tail.content == whole.content[-10:]


def test_the_format_asked_for_at_submission_is_the_default(studio: Running, sample: dict[str, Any]) -> None:
    assert stream(studio, sample, None).headers["Content-Type"] == "audio/mpeg"


def test_a_range_after_the_end_is_416_and_a_malformed_one_ignored(studio: Running, sample: dict[str, Any]) -> None:
    size = len(stream(studio, sample).content)
    beyond = stream(studio, sample, Range=f"bytes={size}-")
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
    assert beyond.headers["Content-Type"] == "application/problem+json"
    for header in ("bytes=9-2", "bytes=one-two", "frames=0-1"):
        assert len(stream(studio, sample, Range=header).content) == size


def test_validators_save_the_bytes(studio: Running, sample: dict[str, Any]) -> None:
    etag = stream(studio, sample).headers["ETag"]
    assert etag == f'"{sample["sha256"]}"'
    same = stream(studio, sample, **{"If-None-Match": etag, "Range": "bytes=0-0"})
    assert (same.status_code, same.content) == (304, b"")
    assert stream(studio, sample, **{"If-Range": etag, "Range": "bytes=0-0"}).status_code == 206
    assert stream(studio, sample, **{"If-Range": '"old"', "Range": "bytes=0-0"}).status_code == 200
    tags = {stream(studio, sample, output_format).headers["ETag"] for output_format in TYPES}
    assert len(tags) == len(TYPES)


@pytest.mark.parametrize("output_format", TYPES)
def test_head_tells_what_get_would(studio: Running, sample: dict[str, Any], output_format: str) -> None:
    head = studio.http.head(sample["stream_url"], params={"format": output_format})
    get = stream(studio, sample, output_format)
    assert head.status_code == 200
    assert head.content == b""
    for name in ("Content-Length", "Content-Type", "ETag", "Accept-Ranges"):
        assert head.headers[name] == get.headers[name]


def test_head_knows_no_ranges(studio: Running, sample: dict[str, Any]) -> None:
    head = studio.http.head(sample["stream_url"], headers={"Range": "bytes=0-0"})
    assert head.status_code == 200


def test_a_derived_format_is_made_once(studio: Running, sample: dict[str, Any]) -> None:
    stream(studio, sample, "ogg")
    place = sample["storage_path"].replace("samples/", "renditions/").replace(".flac", ".ogg")
    path: Path = studio.data / "objects" / place
    made = path.stat().st_mtime_ns
    stream(studio, sample, "ogg")
    assert path.stat().st_mtime_ns == made


def test_the_waveform_is_ready_for_a_player(studio: Running, sample: dict[str, Any]) -> None:
    waveform = studio.http.get(sample["waveform_url"]).json()
    assert (waveform["version"], waveform["bits"], waveform["sample_rate"]) == (2, 8, 32000)
    assert len(waveform["data"]) == 2 * waveform["length"] * waveform["channels"]
    assert max(waveform["data"]) > 0 > min(waveform["data"])
    assert waveform["length"] * waveform["samples_per_pixel"] >= 2 * 32000


@pytest.mark.parametrize("path", ["", "/stream", "/waveform"])
def test_an_unknown_sample_is_not_found(studio: Running, path: str) -> None:
    answer = studio.http.get(f"/audio/unknown{path}")
    assert (answer.status_code, answer.json()["detail"]) == (404, "There is no audio sample 'unknown'.")


def test_an_unknown_format_is_refused_by_name(studio: Running, sample: dict[str, Any]) -> None:
    answer = stream(studio, sample, "aiff")
    assert answer.status_code == 400
    assert "aiff" in answer.json()["detail"]
