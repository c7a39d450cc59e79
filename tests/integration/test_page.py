"""The front-office page in a real browser, over the whole stack."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from local.demo_compare import truth
from local.demo_once import oldest_age_s
from local.folder import Folder
from local.stack import Stack, running

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    folder = Folder(tmp_path, "parcels")
    with folder.opened(reset=False):
        async with running(folder, "examples.parcels.bubble", say=print) as stack:
            yield stack


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM: the page was not tested; install it (apt-get install chromium)")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = await browser.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if "Content Security Policy" in line.text else None)
        yield page
        await browser.close()
        assert faults == []


@pytest.mark.timeout(120)
async def test_a_customer_signs_in_sees_own_rows_and_a_change_arrives(stack: Stack, page: Page) -> None:
    expected = await truth(stack, stack.offices[0], "parcel", "customer:1001")
    await fresh(stack)
    await page.goto(stack.page_url)
    await expect(page.get_by_role("heading", name="Parcels")).to_be_visible()
    await page.get_by_role("button", name="Customer 1001").click()
    rows = page.locator("#table tbody tr")
    await expect(rows).to_have_count(len(expected), timeout=20_000)
    await expect(page.locator("#gauge")).to_have_attribute("data-level", "fresh", timeout=20_000)
    await expect(page.locator("#age")).to_contain_text("as of")
    await expect(page.get_by_role("tab", name="Offices")).to_contain_text("40")

    key = next(key for key, row in expected.items() if row["status"] != "returned" and row["sender"] != "1001")
    await edit(stack, {"entity": "parcel", "key": key, "fields": {"status": "returned"}})
    changed = page.locator(f'#table tbody tr[data-key="{key}"]')
    await expect(changed).to_contain_text("Returned", timeout=15_000)
    await expect(page.locator("#feed")).to_contain_text(key)
    await changed.get_by_role("button", name=key).click()
    await expect(page.get_by_role("dialog")).to_contain_text("Returned")
    await page.keyboard.press("Escape")

    # A parcel that is somebody else's now leaves the page: by what /changes tells, nothing is read anew.
    lists = await asked_for(page, "/v1/parcels?")
    await edit(stack, {"entity": "parcel", "key": key, "fields": {"recipient": "1002"}})
    await expect(changed).to_have_count(0, timeout=15_000)
    await expect(rows).to_have_count(len(expected) - 1)
    assert await asked_for(page, "/v1/parcels?") == lists
    assert await asked_for(page, "/v1/parcels/changes?") >= 2, "one told of each edit, at least"

    await outage(stack, on=True)
    await expect(page.locator("#gauge")).to_have_attribute("data-level", "ageing", timeout=40_000)
    await expect(rows).to_have_count(len(expected) - 1)
    await page.get_by_role("searchbox").fill(next(other for other in expected if other != key))
    await expect(rows).to_have_count(1)
    await page.get_by_role("tab", name="Offices").click()
    await expect(rows).to_have_count(40)
    await outage(stack, on=False)
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in as")).to_be_visible()
    await expect(page.locator("#desk")).to_be_hidden()


async def fresh(stack: Stack) -> None:
    """Until the first sync is through, so that the page's counts are the final ones."""
    deadline = time.monotonic() + 60
    while (age_s := await oldest_age_s(stack)) is None or age_s > 10:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def edit(stack: Stack, change: dict[str, object]) -> None:
    async with stack.session.post(f"{stack.offices[0].url}/_sim/edit", json=change) as answer:
        assert answer.status == 200, await answer.text()


async def outage(stack: Stack, *, on: bool) -> None:
    for office in stack.offices:
        async with stack.session.post(f"{office.url}/_sim/outage", json={"on": on}) as answer:
            assert answer.status == 200, await answer.text()


async def asked_for(page: Page, address: str) -> int:
    """How often the page has asked for it."""
    found = "(part) => performance.getEntriesByType('resource').filter((one) => one.name.includes(part)).length"
    count: int = await page.evaluate(found, address)
    return count
