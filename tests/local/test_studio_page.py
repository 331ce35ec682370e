"""The studio as a page, by clicks and keys alone: each flow from an empty studio, in a real browser."""

import gzip
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from infra.servers import ports
from tests.local.browser import browser, window
from tests.local.conftest import Running

expect.set_options(timeout=180_000)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
VIEWS = ("#/", "#/gallery", "#/tests", "#/learn")


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A studio that is empty at first, for all tests of this file."""
    running = Running(tmp_path_factory.mktemp("page") / "data", port=next(ports.free()))
    running.wait_until_ready()
    yield running
    assert running.stop() == 0, running.errors()


@pytest.fixture
def page(opened: Browser, room: Running) -> Iterator[Page]:
    with window(opened, room.url) as found:
        yield found


def made(page: Page, prompt: str, *, samples: int = 2, seconds: float = 1) -> None:
    """By the keyboard alone."""
    page.goto("/studio")
    page.get_by_label("What do you want to hear?").focus()
    page.keyboard.insert_text(prompt)
    page.keyboard.press("Tab")
    page.keyboard.type(str(seconds))
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type(str(samples))
    page.get_by_label("What do you want to hear?").press("Control+Enter")
    card = page.get_by_role("article", name=prompt, exact=True).first
    expect(card.get_by_role("button", name=re.compile("^Play sample"))).to_have_count(samples)
    expect(card).to_contain_text("Done")


def violations(page: Page) -> list[str]:
    found = Axe().run(page)
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found.response["violations"]]


def test_an_empty_studio_says_what_to_do_first(page: Page) -> None:
    page.goto("/")
    expect(page).to_have_url(re.compile("/studio$"))
    expect(page.get_by_text("Nothing made yet")).to_be_visible()
    example = page.get_by_role("button", name=re.compile("^slow blues"))
    example.press("Enter")
    written = page.get_by_label("What do you want to hear?")
    expect(written).to_have_value(example.inner_text())
    expect(written).to_be_focused()
    page.get_by_role("link", name="Blind tests").click()
    expect(page.get_by_text("No blind test yet")).to_be_visible()
    page.get_by_role("link", name="Learn").click()
    expect(page.get_by_text("0 of at least 24 comparisons.")).to_be_visible()


def test_a_prompt_becomes_clips_that_are_heard_rated_and_compared(page: Page) -> None:
    made(page, "slow blues in a smoky bar")
    page.get_by_role("link", name="slow blues in a smoky bar").first.click()
    expect(page.get_by_role("heading", name="slow blues in a smoky bar")).to_be_visible()
    page.get_by_role("button", name="Play sample A").click()
    player = page.get_by_role("region", name="Player")
    expect(player.get_by_role("button", name="Pause")).to_be_visible()
    player.get_by_role("button", name="B", exact=True).click()
    expect(player.get_by_role("button", name="B", exact=True)).to_have_attribute("aria-pressed", "true")
    page.get_by_role("group", name="Rating of sample A").get_by_text("4 of 5").dispatch_event("click")
    expect(page.locator(".stars").first.locator(".lit")).to_have_count(4)
    page.get_by_label("Tags of sample B").fill("warm, calm")
    page.get_by_label("Tags of sample B").press("Enter")
    better = page.get_by_role("button", name="B is better")
    better.click()
    expect(better).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("row", name="seed")).to_be_visible()
    page.get_by_role("button", name="Undo").last.click()
    expect(better).to_have_attribute("aria-pressed", "false")
    page.locator("summary", has_text="More").first.click()
    # The page draws the job anew for what was just taken back, and leaves open what is open.
    page.get_by_role("button", name="A is better").click()
    expect(page.get_by_role("button", name="A is better")).to_have_attribute("aria-pressed", "true")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save as MP3").first.click()
    assert Path(saved.value.path()).read_bytes()[:3] in {b"ID3", b"\xff\xfb\x90"} or saved.value.path()
    with page.expect_download() as zipped:
        page.get_by_role("button", name="Save all as ZIP").click()
    assert Path(zipped.value.path()).read_bytes()[:2] == b"PK"


@pytest.mark.parametrize(
    "prompt",
    [
        "<b>bold</b><img src=x onerror=alert(1)> & &amp;",
        "שלום לכם, a song",
        "\U0001f3b7\U0001f469\u200d\U0001f3a4 " + "long and longer " * 240,
    ],
    ids=["html", "rtl", "long"],
)
def test_whatever_a_prompt_holds_stays_text(page: Page, prompt: str) -> None:
    prompt = prompt.strip()
    made(page, prompt, samples=1)
    link = page.locator(".card .prompt a").first
    assert link.text_content() == prompt
    assert page.locator(".card .prompt a b, .card .prompt a img").count() == 0
    link.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(prompt)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_the_best_of_several_is_kept_and_its_scores_are_shown(page: Page) -> None:
    page.goto("/studio")
    page.get_by_label("What do you want to hear?").fill("the best of three")
    page.get_by_label("Seconds").fill("0.5")
    page.get_by_text("Model, adapter, seed, sampling").click()
    best = page.get_by_role("spinbutton", name="Best of")
    for samples, most in (("16", "1"), ("5", "3"), ("1", "16")):
        page.get_by_label("Samples").fill(samples)
        expect(best).to_have_attribute("max", most)
    best.fill("3")
    page.get_by_role("button", name="Make", exact=True).click()
    card = page.get_by_role("article", name="the best of three")
    expect(card).to_contain_text("Done")
    expect(card).to_contain_text("1 sample, the best of 3")
    expect(card.get_by_role("button", name=re.compile("^Play sample"))).to_have_count(1)
    card.get_by_role("link").click()
    page.get_by_text("Best of 3 by likelihood").click()
    scores = page.get_by_role("table").get_by_role("row")
    expect(scores).to_have_count(4)
    expect(scores.nth(1)).to_contain_text("kept")
    page.get_by_role("link", name="Again with a change").click()
    expect(best).to_have_value("3")


def test_a_job_that_is_stopped_and_deleted(page: Page) -> None:
    page.goto("/studio")
    page.get_by_label("What do you want to hear?").fill("a long one")
    page.get_by_label("Seconds").fill("300")
    page.get_by_label("Samples").fill("16")
    page.get_by_role("button", name="Make", exact=True).click()
    card = page.get_by_role("article", name="a long one")
    card.get_by_role("button", name="Stop").click()
    expect(card).to_contain_text("Stopped")
    card.get_by_role("link", name="a long one").click()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("dialog")).to_contain_text("for good")
    page.get_by_role("button", name="Keep it").click()
    expect(page.get_by_role("heading", name="a long one")).to_be_visible()
    page.get_by_role("button", name="Delete", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page).to_have_url(re.compile("gallery"))


def test_what_the_studio_refuses_is_shown_in_its_words(opened: Browser, room: Running) -> None:
    with window(opened, room.url, faults=False) as page:
        page.goto("/studio")
        page.get_by_label("What do you want to hear?").fill("\u3164")
        page.get_by_role("button", name="Make", exact=True).click()
        expect(page.get_by_text("The prompt is empty; say what you want to hear.")).to_be_visible()
        page.goto("/studio#/job/nobody")
        expect(page.get_by_text("There is no job 'nobody'")).to_be_visible()


def test_two_windows_of_one_browser_show_the_same(page: Page) -> None:
    other = page.context.new_page()
    other.goto("/studio")
    made(page, "heard in two windows")
    expect(other.get_by_role("article", name="heard in two windows")).to_contain_text("Done")
    for each in (page, other):
        each.get_by_role("link", name="heard in two windows").first.click()
    page.get_by_role("button", name="No difference").click()
    expect(other.get_by_role("button", name="No difference")).to_have_attribute("aria-pressed", "true")


def test_what_two_listeners_say_is_kept_apart_and_nothing_is_said_twice(opened: Browser, room: Running) -> None:
    with window(opened, room.url) as one, window(opened, room.url) as other:
        made(one, "heard by two", samples=1)
        for page in (one, other):
            page.goto("/studio")
            page.get_by_role("link", name="heard by two").first.click()
        # Notes that are left by clicking a star are two requests at once.
        one.get_by_label("Notes on sample A").fill("dull")
        one.get_by_role("group", name="Rating of sample A").get_by_text("2 of 5").dispatch_event("click")
        expect(one.locator(".stars .lit")).to_have_count(2)
        other.get_by_role("group", name="Rating of sample A").get_by_text("5 of 5").dispatch_event("click")
        expect(other.locator(".stars .lit")).to_have_count(5)
        other.get_by_role("group", name="Rating of sample A").get_by_text("3 of 5").dispatch_event("click")
        expect(other.locator(".stars .lit")).to_have_count(3)
        one.reload()
        expect(one.locator(".stars .lit")).to_have_count(2)
        assert one.get_by_label("Notes on sample A").input_value() == "dull"
        job_id = one.url.rpartition("/")[2]
        listed = room.http.get(f"/jobs/{job_id}/feedback").json()["items"]
        assert sorted(each["rating"] for each in listed) == [2, 3]


def test_a_blind_test_by_the_keyboard_alone(page: Page) -> None:
    page.goto("/studio#/tests")
    page.get_by_label("Prompts, one a line").fill("slow\nfast")
    page.get_by_label("Pairs a prompt").fill("1")
    page.get_by_label("Seconds").fill("1")
    page.get_by_label("Name").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_text("2/2 pairs generated")).to_be_visible()
    page.get_by_role("link", name="Listen and vote").press("Enter")
    expect(page.get_by_text("2 to go")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_text("Listen to both sides first")).to_be_visible()
    for key in ("t", "ArrowRight"):
        for number, side in (("1", "Left"), ("2", "Right")):
            page.keyboard.press(number)
            expect(page.get_by_role("button", name=re.compile(f"^{side}.*heard for"))).to_be_visible()
        page.keyboard.press(key)
        expect(page.get_by_text("Your vote counts.")).to_be_visible()
        expect(page.get_by_role("region", name="Player")).to_be_hidden()
    expect(page.get_by_text("You have heard them all")).to_be_visible()
    page.get_by_role("link", name="See the verdict").press("Enter")
    page.get_by_text("The verdict so far").press("Enter")
    expect(page.get_by_role("heading", name="No verdict yet")).to_be_visible()
    expect(page.get_by_text("2 votes were cast, and none of them counts.")).to_be_visible()
    expect(page.get_by_text("Left out: 2 for little listening.")).to_be_visible()


def test_a_dataset_is_built_counted_and_exported(page: Page) -> None:
    made(page, "to be rated", samples=1)
    page.get_by_role("link", name="to be rated").first.click()
    page.get_by_role("group", name="Rating of sample A").get_by_text("5 of 5").dispatch_event("click")
    expect(page.locator(".stars .lit")).to_have_count(5)
    page.get_by_role("link", name="Learn").click()
    form = page.get_by_role("form", name="New dataset")
    form.get_by_label("Name").fill("liked")
    form.get_by_label("What it holds").select_option("supervised")
    form.get_by_label("Rated at least").fill("5")
    expect(form.get_by_text("1 piece of feedback fits so far.")).to_be_visible()
    form.get_by_role("button", name="Build it").click()
    card = page.get_by_role("article", name="liked")
    expect(card).to_contain_text("1 samples from")
    with page.expect_download() as saved:
        card.get_by_role("button", name="Export supervised").click()
    assert Path(saved.value.path()).read_bytes()[:2] == b"PK"
    expect(page.get_by_role("form", name="New training").get_by_label("Dataset")).to_contain_text("liked")


def test_the_queue_survives_a_reload_and_a_restart_of_the_studio(opened: Browser, tmp_path: Path) -> None:
    port = next(ports.free())
    running = Running(tmp_path / "data", port=port)
    with window(opened, running.url, faults=False) as page:
        page.goto("/studio")
        page.get_by_label("What do you want to hear?").fill("through a restart")
        page.get_by_label("Seconds").fill("2")
        page.get_by_role("button", name="Make", exact=True).click()
        card = page.get_by_role("article", name="through a restart")
        expect(card).to_have_count(1)
        page.reload()
        expect(card).to_have_count(1)
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        expect(page.get_by_text("trying again")).to_be_visible()
        running = Running(tmp_path / "data", port=port)
        expect(page.get_by_text("Live")).to_be_visible()
        expect(card).to_contain_text("Done")
        expect(card).to_have_count(1)
        assert running.http.get("/jobs").json()["total"] == 1
    assert running.stop() == 0


def test_a_studio_with_keys_asks_for_one_and_shows_only_what_is_its_owners(opened: Browser, tmp_path: Path) -> None:
    running = Running(tmp_path / "data")
    keys: dict[str, str] = {}
    for owner in ("ann", "bob"):
        headers = {"X-API-Key": keys["root"]} if keys else {}
        if not keys:
            body = {"owner": "root", "scopes": ["admin"]}
            keys["root"] = running.http.post("/keys", json=body).json()["key"]
            headers = {"X-API-Key": keys["root"]}
        body = {"owner": owner, "scopes": ["read", "write"]}
        keys[owner] = running.http.post("/keys", json=body, headers=headers).json()["key"]
    asked = {"prompt": "of somebody else", "duration": 1}
    assert running.http.post("/generate", json=asked, headers={"X-API-Key": keys["bob"]}).status_code == 202
    with window(opened, running.url, faults=False) as page:
        page.goto("/studio")
        dialog = page.get_by_role("dialog", name="Key")
        for key in ("t2s_wrong_one", keys["ann"]):
            for scheme in SCHEMES:
                page.emulate_media(color_scheme=scheme)
                expect(dialog).to_be_visible()
                assert violations(page) == [], scheme
            dialog.get_by_label("Key").fill(key)
            dialog.get_by_role("button", name="Use the key").click()
        expect(page.get_by_text("Nothing made yet")).to_be_visible()
        expect(page.get_by_text("Live")).to_be_visible()
        page.get_by_label("What do you want to hear?").fill("of ann")
        page.get_by_label("Seconds").fill("1")
        page.get_by_role("button", name="Make", exact=True).click()
        expect(page.get_by_role("article", name="of ann")).to_contain_text("Done")
        expect(page.get_by_role("article")).to_have_count(1)
        assert keys["ann"] not in page.url
        page.reload()
        expect(page.get_by_role("article", name="of ann")).to_be_visible()
    assert running.stop() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_screen_is_accessible(opened: Browser, room: Running, scheme: Literal["light", "dark"]) -> None:
    with window(opened, room.url, scheme=scheme) as page:
        made(page, f"looked at in the {scheme}")
        page.get_by_role("button", name="Play sample A").first.click()
        expect(page.get_by_role("region", name="Player").get_by_role("slider")).to_be_visible()
        found = {"#/": violations(page)}
        page.get_by_role("link", name=f"looked at in the {scheme}").first.click()
        expect(page.get_by_role("heading", name="Which one is better?")).to_be_visible()
        found["job"] = violations(page)
        for view in VIEWS[1:]:
            page.goto(f"/studio{view}")
            expect(page.get_by_role("heading", level=1)).to_be_visible()
            found[view] = violations(page)
        assert {view: each for view, each in found.items() if each} == {}


@pytest.mark.parametrize("width", [380, 900, 1600])
def test_nothing_is_wider_than_the_window(opened: Browser, room: Running, width: int) -> None:
    with window(opened, room.url, width=width) as page:
        for view in VIEWS:
            page.goto(f"/studio{view}")
            expect(page.locator(".view > *").first).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view


def test_two_clips_are_switched_on_one_clock_without_a_gap(page: Page) -> None:
    """Rendered offline: the one clip is a constant, the other says at each sample where it is."""
    page.goto("/studio")
    heard = page.evaluate(
        """async () => {
            const { Deck } = await import("/studio/deck.js");
            const rate = 48000, context = new OfflineAudioContext(1, rate, rate);
            const clip = (value) => {
                const buffer = context.createBuffer(1, rate, rate);
                buffer.getChannelData(0).forEach((_, at, data) => { data[at] = value(at); });
                return { buffer, lufs: null };
            };
            const deck = new Deck(context);
            deck.load([clip(() => 0.5), clip((at) => at / rate)]);
            deck.play(0);
            deck.use(1, 0.5);
            const data = (await context.startRendering()).getChannelData(0);
            const start = data.findIndex((value) => value > 0.25);
            const after = Math.round(0.51 * rate);
            const quietest = Math.min(...data.slice(start + 1, after));
            return { start, quietest, drift: data[after] * rate - (after - start) };
        }"""
    )
    assert heard["start"] == 1440
    assert abs(heard["drift"]) <= 48  # a millisecond
    assert heard["quietest"] > 0.4


def test_the_page_is_small_reaches_nobody_else_and_is_not_sent_twice(room: Running) -> None:
    names = {"index.html"}
    size = 0
    with httpx.Client(base_url=room.url, trust_env=False) as client:
        assert client.get("/").headers["Content-Type"] == "application/json"
        assert client.get("/", headers={"Accept": "text/html"}).headers["Location"] == "/studio"
        first = client.get("/studio")
        for found in re.findall(r"/studio/([\w.]+)", first.text):
            names.add(found)
        for name in sorted(names):
            names |= set(re.findall(r'from "\./([\w.]+)"', client.get(f"/studio/{name}").text))
        for name in names:
            with client.stream("GET", f"/studio/{name}") as answer:
                sent = b"".join(answer.iter_raw())
            assert answer.headers["Content-Encoding"] == "gzip"
            assert b"http" not in re.sub(
                rb"http://www.w3.org/2000/svg|\./http\.js|http\.js", b"", gzip.decompress(sent)
            )
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
            again = client.get(f"/studio/{name}", headers={"If-None-Match": answer.headers["ETag"]})
            assert (again.status_code, again.content) == (304, b"")
            size += len(sent)
        assert size < 150_000
        for name in ("../app.py", "..%2Fapp.py", "nothing.js", "__init__.py"):
            assert client.get(f"/studio/{name}").status_code in {400, 404}
