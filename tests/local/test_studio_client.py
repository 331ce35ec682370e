"""`text2song.client`: a studio from a program, with and without an event loop."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import soundfile

from tests.local.conftest import Running
from tests.proxy import Proxy
from text2song.client import AsyncStudio, ClientError, RefusedError, Studio, UnreachableError


def test_a_program_submits_waits_rates_and_compares(studio: Running, tmp_path: Path) -> None:
    seen = []
    with Studio(studio.url) as there:
        asked = there.generate("slow ballad, violin", num_samples=2, duration=1, seed=7)
        assert (asked.status, asked.is_over) != ("completed", True)
        job = there.wait(asked.id, lambda update: seen.append(update.name))
        assert (job.status, job.is_over, len(job.sample_ids), job.prompt) == (
            "completed",
            True,
            2,
            "slow ballad, violin",
        )
        assert seen[-1] == "completed"
        assert seen.count("sample") == 2
        first, second = job.sample_ids
        assert there.sample(first).generation_params["seed"] == 7
        there.download(first, tmp_path / "first.flac")
        there.download(second, str(tmp_path / "second"))
        melody = there.upload_melody(tmp_path / "first.flac")
        assert melody.duration_seconds == there.sample(first).duration_seconds
        there.erase_melody(melody.id)
        with pytest.raises(RefusedError, match="no uploaded melody"):
            there.erase_melody(melody.id)
        with pytest.raises(ClientError, match=r"none\.wav cannot be read"):
            there.upload_melody(tmp_path / "none.wav")
        said = there.rate(first, 4.5, preferred_over=second, tags=["warm"], notes="good")
        assert (said.rating, said.preferred_over, said.verdict, said.tags) == (4.5, second, "preferred", ["warm"])
        assert there.job(job.id).feedback is not None
        found = there.compare(second, first)
        assert ([sample.id for sample in found.samples], found.same_prompt) == ([second, first], True)
        [seeds] = [difference.values for difference in found.differences if difference.parameter == "seed"]
        assert seeds == {first: 7, second: 8}
        there.delete(job.id)
        with pytest.raises(RefusedError, match="no audio sample") as refused:
            there.sample(first)
        assert refused.value.status == 404
    assert soundfile.info(tmp_path / "first.flac").format == "FLAC"
    assert soundfile.info(tmp_path / "second").format == "WAV"


async def test_a_studio_that_was_restored_meanwhile_is_gone_on_with(studio: Running) -> None:
    async with AsyncStudio(studio.url) as there:
        job = await there.generate("pads", duration=1)
        there._http.headers["If-Event-Position"] = f"jobs/0/{10**9}"
        assert (await there.job(job.id)).id == job.id
        there._http.headers["If-Event-Position"] = f"jobs/0/{10**9}"
        assert [update.name async for update in there.follow(job.id)][-1] in {"completed", "snapshot"}


def test_the_environment_names_the_studio(studio: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXT2SONG_URL", studio.url)
    with Studio() as there:
        assert there.generate("pads", duration=1).prompt == "pads"
    with Studio("http://127.0.0.1:9") as nowhere, pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9 "):
        nowhere.job("x")
    monkeypatch.setenv("TEXT2SONG_URL", "")
    assert AsyncStudio().address("/jobs") == "http://127.0.0.1:8000/jobs"


async def test_asyncio_has_the_same(studio: Running) -> None:
    async with AsyncStudio(studio.url) as there:
        job = await there.generate("pads", duration=1)
        names = [update.name async for update in there.follow(job.id)]
        assert names[-1] == "completed"
        other = await there.generate("pads", duration=30, num_samples=16)
        await there.cancel(other.id)
        assert (await there.wait(other.id)).status == "cancelled"


async def test_a_program_without_a_loop_runs_where_one_runs_already(studio: Running) -> None:
    """As in a notebook."""
    with Studio(studio.url) as there:
        job = there.generate("pads", duration=1)
        assert [update.name for update in there.follow(job.id)][-1] == "completed"
        # One that is left before its end leaves nothing running.
        updates = there.follow(there.generate("pads", duration=1).id)
        next(updates)
        updates.close()  # type: ignore[attr-defined]  # it is a generator


async def test_a_lost_answer_makes_nothing_twice(studio: Running) -> None:
    proxy = await Proxy.to(urlsplit(studio.url).netloc)
    try:
        async with AsyncStudio(f"http://{proxy.address}") as there:
            await there.index()
            before = (await there.get("/jobs"))["total"]
            proxy.lost_answers = 2
            job = await there.generate("pads", duration=1)
            assert proxy.lost_answers == 0
            assert (await there.get("/jobs"))["total"] == before + 1
            [sample_id] = (await there.wait(job.id)).sample_ids
            proxy.lost_answers = 1
            await there.rate(sample_id, 4)
            assert (await there.get(f"/jobs/{job.id}/feedback"))["total"] == 1
            again = await there.generate("pads", key="mine", duration=1)
            assert (await there.generate("pads", key="mine", duration=1)).id == again.id
    finally:
        await proxy.close()


async def test_a_studio_that_was_there_is_waited_for_and_one_that_never_was_is_not(studio: Running) -> None:
    proxy = await Proxy.to(urlsplit(studio.url).netloc)
    url = f"http://{proxy.address}"
    async with AsyncStudio(url) as there, AsyncStudio(url, patience=0.2) as impatient:
        await there.index()
        await impatient.index()
        proxy.down = True
        proxy.cut()
        waiting = asyncio.create_task(there.get("/jobs/stats"))
        with pytest.raises(UnreachableError, match="No studio answers"):
            await impatient.get("/jobs/stats")
        assert not waiting.done()
        proxy.down = False
        assert "counts" in await waiting
        await proxy.close()
        async with AsyncStudio(url) as nobody:
            with pytest.raises(UnreachableError, match="Start one with `text2song up`"):
                await nobody.index()


def test_bad_input_is_named(studio: Running, tmp_path: Path) -> None:
    with Studio(studio.url) as there:
        with pytest.raises(RefusedError, match="duration") as refused:
            there.generate("pads", duration=-1)
        assert refused.value.status in {400, 422}
        with pytest.raises(RefusedError, match="There is no job 'nobody'"):
            there.job("nobody")
        with pytest.raises(RefusedError):
            there.download("nothing", tmp_path / "file.mp3")
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(ClientError, match="is no URL of a studio"):
        Studio("ftp://127.0.0.1").__enter__()


def test_the_client_imports_neither_torch_nor_the_studios_own_parts() -> None:
    code = (
        "import sys, text2song.client; "
        "print(sorted({'torch', 'litestar', 'aiokafka', 'api', 'commands', 'workers', 'projections'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_lines_of_the_readme_do_what_they_say(
    studio: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [lines] = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEXT2SONG_URL", studio.url)
    exec(lines, {})  # noqa: S102
    assert soundfile.info("ballad.mp3").format == "MP3"
    assert "name='completed'" in (said := capsys.readouterr().out)
    assert re.search(r"^seed \{'[\w-]+': 7, '[\w-]+': 8\}$", said, re.MULTILINE)
