"""The page with a model that sings: it asks for what that model takes, and for nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests import diffusion
from tests.local.browser import browser, window
from tests.local.conftest import Running


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A studio whose model is a tiny ACE-Step."""
    folder: Path = tmp_path_factory.mktemp("songs")
    model = diffusion.saved(diffusion.ace_step(), folder / "ace")
    running = Running(folder / "data", TEXT2SONG_MODEL=str(model))
    running.wait_until_ready()
    yield running
    assert running.stop() == 0, running.errors()


@pytest.fixture
def page(room: Running) -> Iterator[Page]:
    with browser() as opened, window(opened, room.url) as found:
        yield found


def test_lyrics_and_the_models_own_parameters_are_asked_for_sent_shown_and_kept_for_the_next(page: Page) -> None:
    page.goto("/studio")
    page.get_by_label("What do you want to hear?").fill("a slow song")
    page.get_by_label("Lyrics").fill("[verse]\nRain on the roof")
    page.get_by_text("What this model takes").click()
    page.get_by_label("bpm").fill("90")
    page.get_by_label("timesignature").select_option("3")
    page.get_by_label("num inference steps").fill("2")
    page.get_by_text("Model, adapter, seed, sampling").click()
    expect(page.get_by_label("Seed", exact=True)).to_be_visible()
    for name in ("Temperature", "Top k"):
        expect(page.get_by_label(name)).to_be_hidden()
    assert Axe().run(page).response["violations"] == []
    page.get_by_label("Samples").fill("1")
    page.get_by_role("button", name="Make", exact=True).click()
    card = page.get_by_role("article", name="a slow song", exact=True)
    expect(card).to_contain_text("Done")
    page.get_by_role("link", name="a slow song").first.click()
    expect(page.locator(".facts").first).to_contain_text("bpm 90 · timesignature 3")
    page.get_by_text("Lyrics").click()
    expect(page.get_by_text("Rain on the roof")).to_be_visible()
    page.get_by_role("link", name="Again with this seed").or_(
        page.get_by_role("link", name="Again with a change")
    ).first.click()
    expect(page.get_by_label("Lyrics")).to_have_value("[verse]\nRain on the roof")
    page.get_by_text("What this model takes").click()
    expect(page.get_by_label("bpm")).to_have_value("90")


def test_a_model_that_does_not_sing_is_not_asked_to(page: Page) -> None:
    page.goto("/studio")
    expect(page.get_by_label("Lyrics")).to_be_visible()
    page.get_by_text("Model, adapter, seed, sampling").click()
    page.get_by_label("Model", exact=True).select_option("facebook/musicgen-small")
    expect(page.get_by_label("Lyrics")).to_be_hidden()
    expect(page.get_by_text("What this model takes")).to_be_hidden()
    expect(page.get_by_label("Temperature")).to_be_visible()
