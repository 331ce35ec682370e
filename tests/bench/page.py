"""The page: memory while a gallery of 100,000 jobs scrolls, what the first load takes, frames while jobs report.

The variable JOBS is of the gallery.
"""

import asyncio
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import uvicorn
from playwright.async_api import Browser, Request, async_playwright

from api.app import create_app
from api.http.hosts import AllowedHosts
from domain.models import NOISE
from infra.serving import listen
from tests.bench.read_side import fill
from tests.local.conftest import Running
from tests.local.parts import open_parts

JOBS: Final = int(os.environ.get("JOBS", "100000"))
STEPS: Final = 400  # screens that are scrolled through one after the other, and then as many jumps
EVERY: Final = 100
LOADS: Final = 10
FRAMES_MS: Final = 5_000
GAPS: Final = """(milliseconds) => new Promise((done) => {
    const gaps = [];
    let last = null;
    const begin = performance.now();
    requestAnimationFrame(function frame(now) {
        if (last !== null) gaps.push(now - last);
        last = now;
        if (now - begin < milliseconds) requestAnimationFrame(frame); else done(gaps);
    });
})"""


async def scrolling(browser: Browser, folder: Path) -> None:
    async with open_parts(folder) as parts:
        await fill(parts, JOBS)
        listener = listen("127.0.0.1", 0)
        app = create_app(parts.services, AllowedHosts())
        config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        page = await browser.new_page(viewport={"width": 1280, "height": 900})
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/studio#/gallery"
        await page.goto(url)
        await page.get_by_text(f"{JOBS:,} jobs").wait_for()
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable")

        async def measure(label: str) -> None:
            await page.locator(".line").first.wait_for()
            await session.send("HeapProfiler.collectGarbage")
            found = {each["name"]: each["value"] for each in (await session.send("Performance.getMetrics"))["metrics"]}
            rows = await page.locator(".line").count()
            print(f"{label:24} {found['JSHeapUsedSize'] / 2**20:6.2f} MiB {found['Nodes']:8.0f} nodes {rows:4} rows")

        await measure("at the top")
        scroll = "([to]) => { document.querySelector('.scroller').scrollTop = to; }"
        settled = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        for step in range(1, STEPS + 1):
            await page.evaluate(scroll, [step * 600])
            await page.evaluate(settled)
            if step % EVERY == 0:
                await measure(f"{step} screens down")
        for step in range(1, STEPS + 1):
            await page.evaluate(scroll, [step * JOBS * 76 // STEPS])
            await page.evaluate(settled)
            if step % EVERY == 0:
                await measure(f"after {step} jumps")
        await page.close()
        server.should_exit = True
        await serving


async def drawing(browser: Browser, url: str) -> None:
    ready, loaded = [], list[Request]()

    def note(request: Request) -> None:
        loaded.append(request)

    for _ in range(LOADS):
        # Each in a context of its own, where nothing is kept from the one before.
        page = await browser.new_page()
        loaded.clear()
        page.on("requestfinished", note)
        start = time.perf_counter()
        await page.goto(f"{url}/studio")
        await page.get_by_role("button", name="Make", exact=True).wait_for()
        ready.append(time.perf_counter() - start)
        sizes = [await each.sizes() for each in loaded]
        await page.close()
    sent = sum(each["responseBodySize"] + each["responseHeadersSize"] for each in sizes)
    print(f"the first load of an empty studio takes {sent / 1000:.0f} kB in {len(sizes)} answers")
    print(f"usable after {statistics.median(ready):.2f} s (median), {max(ready):.2f} s (slowest of {LOADS})")
    page = await browser.new_page(viewport={"width": 1280, "height": 900})
    before: list[str] = []
    for label, jobs in (("nothing happens", 0), ("three jobs report", 3)):
        await page.goto(f"{url}/studio")
        for number in range(jobs):
            await page.request.post(
                f"{url}/generate", data={"prompt": f"piece {number}", "duration": 300, "num_samples": 16}
            )
        if jobs:
            await page.locator(".card.processing").first.wait_for()
            before = await page.locator(".state").all_text_contents()
        gaps = sorted(await page.evaluate(GAPS, FRAMES_MS))
        if jobs:
            assert await page.locator(".state").all_text_contents() != before, "No progress was reported."
            assert await page.locator(".card.processing").count(), "The jobs ended before the frames were counted."
        late = sum(gap > 34 for gap in gaps)  # a frame of 60 a second was left out
        print(
            f"{label:20} {1000 * len(gaps) / sum(gaps):5.1f} frames a second, p50 {statistics.median(gaps):.1f} ms, "
            f"p99 {gaps[len(gaps) * 99 // 100]:.1f} ms, {late} of {len(gaps)} late"
        )
    await page.close()


async def measure(folder: Path, url: str) -> None:
    async with async_playwright() as playwright:
        options = ["--no-sandbox"]
        browser = await playwright.chromium.launch(executable_path="/usr/bin/chromium", args=options)
        await drawing(browser, url)
        await scrolling(browser, folder)
        await browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        running = Running(Path(folder) / "studio", TEXT2SONG_MODEL=NOISE.id)
        running.wait_until_ready()
        asyncio.run(measure(Path(folder), running.url))
        running.stop()
