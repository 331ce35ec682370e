"""What changes under somebody's eyes on the page, and what must not: focus, what is being written, and the place."""

import re
import signal
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from infra.servers import ports
from tests.conditions import eventually_sync
from tests.local.browser import browser, window
from tests.local.conftest import Running

expect.set_options(timeout=180_000)


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("lists") / "data", port=next(ports.free()))
    running.wait_until_ready()
    for prompt in ("harp and whistle", "brass in the rain", "solo cello"):
        ended(running, prompt)
    yield running
    assert running.stop() == 0, running.errors()


@pytest.fixture
def page(opened: Browser, room: Running) -> Iterator[Page]:
    with window(opened, room.url) as found:
        yield found


def ended(room: Running, prompt: str) -> str:
    asked = {"prompt": prompt, "duration": 0.5, "num_samples": 2}
    job_id: str = room.http.post("/generate", json=asked).json()["job_id"]
    eventually_sync(lambda: room.http.get(f"/jobs/{job_id}").json()["status"] == "completed")
    return job_id


def rate(room: Running, job_id: str, **said: object) -> None:
    sample = room.http.get(f"/jobs/{job_id}").json()["sample_ids"][0]
    answer = room.http.post("/feedback", json={"audio_id": sample, **said})
    assert answer.status_code == 201, answer.text


def violations(page: Page) -> list[str]:
    found = Axe().run(page)
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found.response["violations"]]


def test_a_selection_is_one_archive_and_its_deletion_says_what_goes(page: Page, room: Running) -> None:
    for prompt in ("first to go", "second to go"):
        rate(room, ended(room, prompt), rating=4)
    page.goto("/studio#/gallery")
    for prompt in ("first to go", "second to go"):
        page.get_by_role("checkbox", name=f"Select {prompt}").check()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as ZIP").click()
    with ZipFile(saved.value.path()) as archive:
        assert len(archive.namelist()) == 4
        assert archive.testzip() is None
    page.get_by_role("group", name="Selection").get_by_role("button", name="Delete").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("4 samples for good")
    expect(dialog).to_contain_text("2 judgements")
    dialog.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("link", name="first to go")).to_have_count(0)
    expect(page.get_by_role("link", name="second to go")).to_have_count(0)


def test_the_gallery_shows_those_with_feedback_alone(page: Page, room: Running) -> None:
    rate(room, ended(room, "one that was rated"), rating=5)
    page.goto("/studio#/gallery")
    expect(page.get_by_role("link", name="solo cello")).to_be_visible()
    page.get_by_label("Feedback").select_option("without")
    expect(page.get_by_role("link", name="one that was rated")).to_have_count(0)
    expect(page.get_by_role("link", name="solo cello")).to_be_visible()
    page.get_by_label("Feedback").select_option("with")
    expect(page.get_by_role("link", name="one that was rated")).to_be_visible()
    expect(page.get_by_role("link", name="solo cello")).to_have_count(0)
    rate(room, ended(room, "one that is rated now"), rating=2)
    expect(page.get_by_role("link", name="one that is rated now")).to_be_visible()


def test_the_archive_of_several_jobs_refuses_what_it_cannot_hold(room: Running) -> None:
    job_id = ended(room, "in an archive")
    answer = room.http.get("/jobs/audio.zip", params={"ids": f"{job_id}", "format": "mp3"})
    assert [name[-4:] for name in ZipFile(BytesIO(answer.content)).namelist()] == [".mp3", ".mp3"]
    again = room.http.get(
        "/jobs/audio.zip",
        params={"ids": job_id, "format": "mp3"},
        headers={"If-None-Match": answer.headers["ETag"]},
    )
    assert (again.status_code, again.content) == (304, b"")
    for ids, status in ((f"{job_id},nobody", 404), (f"{job_id},{job_id}", 400), (",".join("abcdefghi" * 6), 400)):
        assert room.http.get("/jobs/audio.zip", params={"ids": ids}).status_code == status


def test_a_waiting_job_says_how_many_are_before_it_and_its_button_keeps_the_focus(page: Page, room: Running) -> None:
    page.goto("/studio")
    asked = {"duration": 300, "num_samples": 16}
    jobs = []
    try:
        for number in range(6):
            answer = room.http.post("/generate", json={"prompt": f"queued {number}", **asked})
            jobs.append(answer.json()["job_id"])
        last = page.get_by_role("article", name="queued 5")
        expect(last).to_contain_text(re.compile("before it|next"))
        stop = last.get_by_role("button", name="Stop")
        stop.focus()
        for job_id in jobs[:-1]:
            room.http.delete(f"/generate/{job_id}")
        expect(last).to_contain_text("%")
        expect(stop).to_be_focused()
        page.keyboard.press("Enter")
        expect(last).to_contain_text("Stopped")
    finally:
        # They would keep the studio of the other tests busy for an hour.
        for job_id in jobs:
            room.http.delete(f"/generate/{job_id}")


def test_what_is_being_written_outlives_what_happens_meanwhile(page: Page, room: Running) -> None:
    page.goto("/studio#/learn")
    form = page.get_by_role("form", name="New dataset")
    form.get_by_label("Name").fill("half a na")
    form.get_by_label("Tags").fill("warm, calm")
    form.get_by_label("Name").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    rate(room, ended(room, "rated meanwhile"), tags=["warm"])
    rate(room, ended(room, "rated meanwhile too"), tags=["calm"])
    expect(form.get_by_text("1 warm, 1 calm")).to_be_visible()
    body = {"name": "of somebody else", "type": "supervised", "filter_query": {}}
    assert room.http.post("/datasets", json=body).status_code == 202
    expect(page.get_by_role("article", name="of somebody else")).to_be_visible()
    page.keyboard.insert_text("m")
    expect(form.get_by_label("Name")).to_have_value("half a nma")
    expect(form.get_by_label("Name")).to_be_focused()


def test_a_jobs_moments_stand_in_order(page: Page, room: Running) -> None:
    job_id = ended(room, "with a history")
    rate(room, job_id, rating=3, user_id="ann")
    page.goto(f"/studio#/job/{job_id}")
    moments = page.get_by_role("region", name="What happened").get_by_role("listitem")
    expect(moments).to_have_count(6)
    text = " ".join(moments.all_text_contents())
    assert re.search("Asked for.*Begun.*Sample A.*Sample B.*Completed.*A was rated 3 by ann", text)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dialogs_tests_and_trials_are_accessible(opened: Browser, room: Running, scheme: str) -> None:
    body = {"name": f"in the {scheme}", "prompts": ["slow"], "pairs_per_prompt": 1, "duration": 0.5}
    test_id = room.http.post("/ab-tests", json=body).json()["id"]
    eventually_sync(lambda: room.http.get(f"/ab-tests/{test_id}").json()["status"] == "ready")
    with window(opened, room.url, scheme="dark" if scheme == "dark" else "light") as page:
        found = {}
        page.goto(f"/studio#/tests/{test_id}")
        expect(page.get_by_role("link", name="Listen and vote")).to_be_visible()
        page.get_by_text("The verdict so far").click()
        found["test"] = violations(page)
        page.goto(f"/studio#/tests/{test_id}/listen")
        expect(page.get_by_text("1 to go")).to_be_visible()
        found["trial"] = violations(page)
        page.goto("/studio#/learn")
        expect(page.get_by_role("form", name="New dataset")).to_be_visible()
        found["learn"] = violations(page)
        page.goto("/studio#/gallery")
        page.get_by_role("checkbox", name=re.compile("^Select")).first.check()
        found["selection"] = violations(page)
        page.get_by_role("group", name="Selection").get_by_role("button", name="Delete").click()
        expect(page.get_by_role("dialog")).to_be_visible()
        found["dialog"] = violations(page)
        page.get_by_role("button", name="Keep it").click()
        assert {view: each for view, each in found.items() if each} == {}


def test_listening_and_a_blind_test_go_on_through_a_restart(opened: Browser, tmp_path: Path) -> None:
    port = next(ports.free())
    running = Running(tmp_path / "data", port=port)
    running.wait_until_ready()
    body = {"name": "through a restart", "prompts": ["slow"], "pairs_per_prompt": 1, "duration": 0.5}
    test_id = running.http.post("/ab-tests", json=body).json()["id"]
    job_id = ended(running, "heard through a restart")
    eventually_sync(lambda: running.http.get(f"/ab-tests/{test_id}").json()["status"] == "ready")
    with window(opened, running.url, faults=False) as page, window(opened, running.url, faults=False) as other:
        page.goto(f"/studio#/job/{job_id}")
        page.get_by_role("button", name="Play sample A").click()
        player = page.get_by_role("region", name="Player")
        player.get_by_role("button", name="Loop").click()
        # On a slow machine the clip has ended by now.
        if (play := player.get_by_role("button", name="Play", exact=True)).is_visible():
            play.click()
        other.goto(f"/studio#/tests/{test_id}/listen")
        expect(other.get_by_text("1 to go")).to_be_visible()
        for key, side in (("1", "Left"), ("2", "Right")):
            other.keyboard.press(key)
            expect(other.get_by_role("button", name=re.compile(f"^{side}.*heard for"))).to_be_visible()
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        expect(page.get_by_text("trying again")).to_be_visible()
        expect(player.get_by_role("button", name="Pause")).to_be_visible()
        other.keyboard.press("t")
        running = Running(tmp_path / "data", port=port)
        expect(other.get_by_text("Your vote counts.")).to_be_visible()
        expect(page.get_by_text("Live")).to_be_visible()
        player.get_by_role("button", name="B", exact=True).click()
        expect(player.get_by_role("button", name="Pause")).to_be_visible()
        page.get_by_role("button", name="No difference").click()
        expect(page.get_by_role("button", name="No difference")).to_have_attribute("aria-pressed", "true")
        assert running.http.get(f"/ab-tests/{test_id}/results").json()["cast"] == 1
    assert running.stop() == 0


def test_an_adapter_tells_where_it_comes_from_and_is_put_away_and_taken_up_again(page: Page, room: Running) -> None:
    asked = {"prompt": "to be learnt", "duration": 0.5, "num_samples": 12}
    job_id = room.http.post("/generate", json=asked).json()["job_id"]
    eventually_sync(lambda: room.http.get(f"/jobs/{job_id}").json()["status"] == "completed")
    for sample in room.http.get(f"/jobs/{job_id}").json()["sample_ids"]:
        assert room.http.post("/feedback", json={"audio_id": sample, "rating": 5, "tags": ["kept"]}).status_code == 201
    liked = {"name": "what was kept", "type": "supervised", "filter_query": {"tags": ["kept"]}}
    dataset_id = room.http.post("/datasets", json=liked).json()["id"]
    eventually_sync(lambda: room.http.get(f"/datasets/{dataset_id}").json()["status"] == "built")
    config = {"steps": 4, "batch": 3, "rank": 2, "evaluate_every": 2, "warmup_steps": 1}
    wanted = {"dataset_id": dataset_id, "method": "sft", "adapter_name": "own", "adapter_version": "1.0.0"}
    assert room.http.post("/trainings", json={**wanted, "config": config}).status_code == 202
    page.goto("/studio#/learn")
    training = page.get_by_role("region", name="Trainings").get_by_role("article", name="own 1.0.0")
    expect(training).to_contain_text("completed")
    expect(training.get_by_role("button", name="After the training: ").first).to_be_visible()
    adapter = page.get_by_role("region", name="Adapters").get_by_role("article", name="own 1.0.0")
    # Whatever else was judged in this studio was looked at, too.
    judged = room.http.get(f"/datasets/{dataset_id}").json()["judgements"]
    lineage = f"Where it comes from: {judged} judgements, then what was kept, then sft, then own 1.0.0"
    expect(adapter.get_by_role("img", name=lineage)).to_be_visible()
    assert not violations(page)
    adapter.get_by_role("button", name="Deactivate").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Deactivate").press("Enter")
    expect(adapter).to_contain_text("(inactive)")
    expect(adapter.get_by_role("link", name="Make with it")).to_have_count(0)
    adapter.get_by_role("button", name="Activate").press("Enter")
    expect(adapter).not_to_contain_text("(inactive)")
    adapter.get_by_role("link", name="Make with it").press("Enter")
    expect(page.get_by_label("Adapter", exact=True)).to_have_value(re.compile(".+"))


def test_a_training_a_selection_and_a_test_in_the_making_go_on_through_a_restart(
    opened: Browser, tmp_path: Path
) -> None:
    port = next(ports.free())
    running = Running(tmp_path / "data", port=port)
    running.wait_until_ready()
    asked = {"prompt": "to learn from", "duration": 0.5, "num_samples": 12}
    job_id = running.http.post("/generate", json=asked).json()["job_id"]
    gone = ended(running, "to be deleted")
    eventually_sync(lambda: running.http.get(f"/jobs/{job_id}").json()["status"] == "completed")
    for sample in running.http.get(f"/jobs/{job_id}").json()["sample_ids"]:
        assert running.http.post("/feedback", json={"audio_id": sample, "rating": 5}).status_code == 201
    liked = {"name": "liked", "type": "supervised", "filter_query": {}}
    dataset_id = running.http.post("/datasets", json=liked).json()["id"]
    eventually_sync(lambda: running.http.get(f"/datasets/{dataset_id}").json()["status"] == "built")
    config = {"steps": 100_000, "batch": 3, "rank": 2, "evaluate_every": 2, "warmup_steps": 1}
    wanted = {"dataset_id": dataset_id, "method": "sft", "adapter_name": "mine", "adapter_version": "1.0.0"}
    assert running.http.post("/trainings", json={**wanted, "config": config}).status_code == 202
    with (
        window(opened, running.url, faults=False) as learn,
        window(opened, running.url, faults=False) as gallery,
        window(opened, running.url, faults=False) as test,
    ):
        learn.goto("/studio#/learn")
        card = learn.get_by_role("article", name="mine 1.0.0")
        expect(card).to_contain_text("processing")
        gallery.goto("/studio#/gallery")
        gallery.get_by_role("checkbox", name="Select to be deleted").check()
        made = {"name": "in the making", "prompts": ["slow", "fast"], "pairs_per_prompt": 1, "duration": 10}
        test_id = running.http.post("/ab-tests", json=made).json()["id"]
        test.goto(f"/studio#/tests/{test_id}")
        expect(test.get_by_text("/2 pairs generated")).to_be_visible()
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        for page in (learn, gallery, test):
            expect(page.get_by_text("trying again")).to_be_visible()
        # What was there is still there to be looked at.
        expect(card).to_contain_text("processing")
        running = Running(tmp_path / "data", port=port)
        for page in (learn, gallery, test):
            expect(page.get_by_text("Live")).to_be_visible()
        expect(gallery.get_by_role("checkbox", name="Select to be deleted")).to_be_checked()
        gallery.get_by_role("group", name="Selection").get_by_role("button", name="Delete").click()
        gallery.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(gallery.get_by_role("link", name="to be deleted")).to_have_count(0)
        assert running.http.get(f"/jobs/{gone}").status_code == 404
        expect(test.get_by_text("2/2 pairs generated")).to_be_visible()
        expect(card).to_contain_text("processing")
        card.get_by_role("button", name="Stop").click()
        expect(card).to_contain_text("cancelled")
        expect(card).to_have_count(1)
    assert running.stop() == 0, running.errors()
