"""The page at `/ui` in a real browser: a line's board with its findings, an operator's word, a board by hand; desk and phone."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.bento import Server
from tests.verticals.manufacturing.test_service import CONFIG, dropped, png
from verticals.manufacturing.pcb.synthetic import MadeBoard, make_board


@pytest.fixture(scope="module")
def board() -> MadeBoard:
    return make_board(CONFIG, 7, num_defects=5)


@pytest.fixture(scope="module")
def result_id(server: Server, board: MadeBoard) -> str:
    """A board of the line."""
    lesson = {"part_id": "PAGE-1", "mm_per_pixel": "0.05"}
    httpx.post(f"{server.url}/teach", files={"picture": png(board.golden)}, data=lesson, timeout=60)
    return str(dropped(server, board.picture, "PAGE-1", "page.png")["ResultId"])


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def page(request: pytest.FixtureRequest, chromium: Browser, server: Server, result_id: str) -> Iterator[Page]:
    """The page, which asks nobody but the service."""
    width, height = request.param
    context = chromium.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    page = context.new_page()
    asked: list[str] = []
    faults: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"{server.url}/ui")
    yield page
    assert not faults
    assert all(url.startswith((server.url, f"blob:{server.url}")) for url in asked)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing lies beyond the edge
    context.close()


def picture_width(page: Page) -> int:
    image = page.locator("#shown img")
    expect(image).to_be_visible()
    page.wait_for_function("document.querySelector('#shown img').complete")
    return int(page.evaluate("document.querySelector('#shown img').naturalWidth"))


def test_a_board_of_the_line_is_shown_and_judged(page: Page, server: Server, result_id: str, tmp_path: Path) -> None:
    page.get_by_role("button", name="page.png").click()
    expect(page.locator("#shown .verdict")).to_have_text("fail")
    assert picture_width(page) == CONFIG.shape[1]
    rows = page.locator("#shown tr:visible")
    counting = [int(row.locator("td").first.inner_text()) - 1 for row in rows.all()[1:]]
    assert len(counting) >= 3
    for number in counting:
        with page.expect_response("**/judge"):
            page.get_by_label(f"operator's verdict on finding {number + 1}", exact=True).select_option(
                "no defect" if number == counting[0] else "spur"
            )
    words = httpx.post(f"{server.url}/results", json={}, timeout=60).json()["results"]
    (judged,) = (result["judgements"] for result in words if result["ResultId"] == result_id)
    assert judged[str(counting[0])] == ["no defect", None]
    assert judged[str(counting[1])] == ["defect", "spur"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Download judged boards").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert f"judged/images/{result_id}.png" in archive.namelist()
    page.get_by_label("findings that do not count too").check()
    assert rows.count() - 1 > len(counting)
    page.get_by_label("findings that do not count too").uncheck()
    shot = page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert len(shot) > 20_000


def test_a_board_is_inspected_by_hand(page: Page, board: MadeBoard) -> None:
    page.get_by_label("Board", exact=True).set_input_files(
        {"name": "hand.png", "mimeType": "image/png", "buffer": png(board.picture)}
    )
    page.locator("select[name=part_id]").select_option("PAGE-1")
    page.get_by_role("button", name="Inspect").click()
    expect(page.locator("#shown h2")).to_have_text("hand.png")
    assert picture_width(page) == CONFIG.shape[1]


def test_what_cannot_be_inspected_is_told(page: Page) -> None:
    page.get_by_label("Board", exact=True).set_input_files(
        {"name": "note.png", "mimeType": "image/png", "buffer": b"no picture"}
    )
    page.get_by_role("button", name="Inspect").click()
    expect(page.get_by_role("alert")).to_contain_text("is no picture")
