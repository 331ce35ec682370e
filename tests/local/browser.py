"""A browser for the tests of the page, which notes everything that it complains of."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from playwright.sync_api import Browser, Page, sync_playwright

from tests.servers import do_without

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browser() -> Iterator[Browser]:
    """Skips the test where there is none; where CI is set, that is a failure."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        do_without("There is no Chromium: sudo apt-get install chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        opened = playwright.chromium.launch(executable_path=path, args=options)
        yield opened
        opened.close()


@contextmanager
def window(
    opened: Browser, url: str, *, width: int = 1280, scheme: Literal["light", "dark"] = "light", faults: bool = True
) -> Iterator[Page]:
    """A window of its own, without anything kept from before. `faults` False lets the network complain."""
    complaints: list[str] = []
    context = opened.new_context(
        base_url=url, viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
    )
    context.set_default_timeout(180_000)
    page = context.new_page()

    def heard(message: Any) -> None:
        if message.type in {"error", "warning"} and (faults or "Failed to load resource" not in message.text):
            complaints.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert complaints == []
