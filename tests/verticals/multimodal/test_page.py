"""The page at `/ui` in a real browser: words, a picture, one that is added; desk and phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.bento import Server
from tests.verticals.multimodal.made import caption, other_scenes, png
from tests.verticals.multimodal.test_service import ask, send

SCENES = other_scenes(60)[30:38]


@pytest.fixture(scope="module")
def shown(server: Server) -> None:
    for place, scene in enumerate(SCENES):
        send(server, "/index", picture=png(scene), id=f"page {place}", caption=caption(scene), replace="true")


@pytest.fixture(params=[(1280, 900), (390, 844)], ids=["desk", "phone"])
def page(request: pytest.FixtureRequest, chromium: Browser, server: Server, shown: None) -> Iterator[Page]:
    """The page, which asks nobody but the service."""
    width, height = request.param
    context = chromium.new_context(viewport={"width": width, "height": height})
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


def test_words_fill_the_gallery(page: Page, tmp_path: Path) -> None:
    expect(page.locator("#told")).to_contain_text("in the index: search by words")
    page.get_by_label("words to search by").fill(caption(SCENES[2]))
    page.get_by_role("button", name="Search", exact=True).click()
    gallery = page.locator("#gallery li")
    expect(gallery.first).to_be_visible()
    expect(page.locator("#gallery p", has_text=caption(SCENES[2])).first).to_be_visible()
    expect(page.locator("#told")).to_contain_text(caption(SCENES[2]))
    scores = [float(text) for text in page.locator("#gallery .score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    page.wait_for_function("[...document.querySelectorAll('#gallery img')].length >= 8")
    page.wait_for_function(
        "[...document.querySelectorAll('#gallery img')].every(image => image.complete && image.naturalWidth)"
    )
    shot = page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert len(shot) > 20_000


def test_a_late_answer_does_not_take_the_place_of_a_newer_search(page: Page) -> None:
    waiting = []
    page.route(
        "**/search_by_text",
        lambda route: waiting.append(route) if "first" in route.request.post_data else route.continue_(),
    )
    for words in ("first words", "long" * 200):
        page.get_by_label("words to search by").fill(words)
        page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#told")).to_contain_text("longlong")
    (late,) = waiting
    with page.expect_response("**/search_by_text"):
        late.continue_()
    page.wait_for_timeout(300)
    expect(page.locator("#told")).to_contain_text("longlong")


def test_a_picture_finds_itself_and_its_like(page: Page) -> None:
    page.get_by_label("picture to search by").set_input_files(
        {"name": "mine.png", "mimeType": "image/png", "buffer": png(SCENES[5])}
    )
    expect(page.locator("#told")).to_contain_text("mine.png")
    like = page.locator("#gallery li").first.get_by_role("button", name="like this")
    expect(like).to_be_enabled()
    like.click()
    expect(page.locator("#told")).to_contain_text("pictures like")


def test_a_picture_is_added_found_and_deleted(page: Page, server: Server) -> None:
    page.get_by_text("Add a picture").click()
    page.get_by_label("Picture", exact=True).set_input_files(
        {"name": "new.png", "mimeType": "image/png", "buffer": png(SCENES[6], 3)}
    )
    page.get_by_label("Caption").fill("a wonder of the world")
    page.get_by_label("Id").fill("wonder")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#told")).to_contain_text("wonder is in the index")
    page.get_by_label("words to search by").fill("a wonder of the world")
    page.get_by_role("button", name="Search", exact=True).click()
    item = page.locator("#gallery li", has_text="a wonder of the world")
    expect(item).to_be_visible()
    page.on("dialog", lambda dialog: dialog.accept())
    item.get_by_role("button", name="delete").click()
    expect(item).to_have_count(0)
    assert "wonder" not in ask(server, "/items", count=1000).json()["ids"]


def test_a_fault_is_told_and_no_text_becomes_markup(page: Page, server: Server) -> None:
    page.get_by_label("picture to search by").set_input_files(
        {"name": "bad.png", "mimeType": "image/png", "buffer": b"no picture"}
    )
    expect(page.get_by_role("alert")).to_contain_text("is no picture")
    send(
        server, "/index", picture=png(SCENES[7], 9), id="markup", caption="<img src=x onerror=alert(1)>", replace="true"
    )
    page.get_by_label("words to search by").fill("<img src=x onerror=alert(1)>")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator("#gallery p", has_text="<img src=x").first).to_be_visible()
    assert page.locator("#gallery p img").count() == 0
    assert httpx.post(f"{server.url}/delete", json={"ids": ["markup"]}, timeout=60).status_code == 200
