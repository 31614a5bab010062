"""The manufacturing service as a factory runs it: a real `bentoml serve`, boards over HTTP and from a folder."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from core.data.pictures import Picture
from tests.bento import Server
from verticals.manufacturing.boxes import overlap
from verticals.manufacturing.pcb.config import debug
from verticals.manufacturing.pcb.synthetic import CLASSES, MadeBoard, make_board

CONFIG = debug().data.synthetic.model_copy(update={"clean": 0.0})


def png(picture: Picture) -> bytes:
    return cv2.imencode(".png", picture)[1].tobytes()


@pytest.fixture(scope="module")
def board() -> MadeBoard:
    return make_board(CONFIG, 100, num_defects=6)


def inspect(server: Server, **parts: Any) -> httpx.Response:
    files = {name: (name, part) for name, part in parts.items() if isinstance(part, bytes)}
    fields = {name: part for name, part in parts.items() if not isinstance(part, bytes)}
    return httpx.post(f"{server.url}/inspect", files=files, data=fields, timeout=60)


def ask(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


def test_a_board_beside_its_golden_one_has_its_defects_found(server: Server, board: MadeBoard) -> None:
    answer = inspect(server, picture=png(board.picture), golden=png(board.golden))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["verdict"] == "fail"
    corners = np.array([finding["box"] for finding in found["findings"]])
    hit = overlap(board.boxes.corners[:, None].astype(float), corners[None]).max(1) > 0.33
    assert hit.mean() >= 0.5
    assert {finding["class"] for finding in found["findings"]} <= set(CLASSES)
    shown = httpx.post(
        f"{server.url}/annotate", files={"picture": png(board.picture), "golden": png(board.golden)}, timeout=60
    )
    assert shown.headers["content-type"] == "image/png"
    decoded = cv2.imdecode(np.frombuffer(shown.content, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    assert decoded.shape == (*CONFIG.shape, 3)


def test_a_product_is_taught_and_its_boards_are_compared_with_it(server: Server, board: MadeBoard) -> None:
    lesson = httpx.post(
        f"{server.url}/teach",
        files={"picture": png(board.golden)},
        data={"part_id": "P-1", "mm_per_pixel": "0.05"},
        timeout=60,
    )
    assert lesson.status_code == 200, lesson.text
    known = ask(server, "/products").json()
    assert "P-1" in [product["part_id"] for product in known["products"]]
    found = inspect(server, picture=png(board.picture), part_id="P-1").json()
    assert found["shift"] == [0, 0]
    for finding in found["findings"]:
        assert finding["box_mm"] == pytest.approx([0.05 * side for side in finding["box"]], abs=5e-3)


@pytest.mark.parametrize(
    ("parts", "status", "words"),
    [
        ({"picture": b""}, 422, "0 bytes"),
        ({"picture": b"no picture"}, 422, "is no picture"),
        ({"picture": png(np.zeros((8, 20000, 1), np.uint8))}, 422, "20000 x 8 pixels; allowed are 16 and more"),
        ({"picture": png(np.zeros((256, 256, 1), np.uint8))}, 422, "there is none: teach the product first"),
        ({"picture": png(np.zeros((256, 256, 1), np.uint8)), "part_id": "nobody"}, 422, "'nobody' was never taught"),
        ({"picture": png(np.zeros((256, 256, 1), np.uint8)), "part_id": "../x"}, 422, "is no PartId"),
        (
            {"picture": png(np.zeros((256, 256, 1), np.uint8)), "golden": png(np.zeros((256, 255, 1), np.uint8))},
            422,
            "256 x 256 pixels and its golden board 255 x 256",
        ),
    ],
)
def test_bad_input_is_told(server: Server, parts: dict[str, Any], status: int, words: str) -> None:
    answer = inspect(server, **parts)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]


def test_a_camera_that_sees_nothing_passes_nothing(server: Server, board: MadeBoard) -> None:
    answer = inspect(server, picture=png(np.full_like(board.picture, 128)), golden=png(board.golden))
    assert answer.status_code == 422, answer.text
    assert "does not look like its golden board" in answer.json()["error"]["message"]


@pytest.mark.parametrize("scale", ["inf", "nan", "0", "1e308"])
def test_a_scale_that_is_none_is_refused(server: Server, board: MadeBoard, scale: str) -> None:
    data = {"part_id": "P-X", "mm_per_pixel": scale}
    answer = httpx.post(f"{server.url}/teach", files={"picture": png(board.golden)}, data=data, timeout=60)
    assert answer.status_code == 400, answer.text
    assert "mm_per_pixel" in answer.text


def test_a_watched_board_is_listed_shown_and_judged(server: Server, board: MadeBoard) -> None:
    httpx.post(f"{server.url}/teach", files={"picture": png(board.golden)}, data={"part_id": "P-2"}, timeout=60)
    result = dropped(server, board.picture, "P-2", "x.png")
    assert (result["PartId"], result["ResultState"], result["ResultContent"]["verdict"]) == ("P-2", 1, "fail")
    assert not list((server.log.parent.parent / "in" / "P-2").iterdir())
    id = result["ResultId"]
    assert ask(server, "/picture", result_id=id).content.startswith(b"\x89PNG")
    assert ask(server, "/picture", result_id=id, shown="board").content == png(board.picture)
    judged = ask(server, "/judge", result_id=id, finding=0, verdict="no defect")
    assert judged.json()["results"][0]["judgements"] == {"0": ["no defect", None]}
    for body, words in (
        ({"result_id": id, "finding": 9999, "verdict": "defect"}, "findings; allowed are the numbers 0 to"),
        ({"result_id": id, "finding": 0, "verdict": "defect", "class": "dust"}, "there is no class 'dust'"),
        ({"result_id": "f" * 32, "finding": 0, "verdict": "defect"}, "no result of this ResultId"),
    ):
        assert words in ask(server, "/judge", **body).json()["error"]["message"]


def test_what_nobody_judged_is_no_training_data(server: Server, board: MadeBoard) -> None:
    """Other tests of this service may have judged boards: then the data set has those, and without them there is none."""
    httpx.post(f"{server.url}/teach", files={"picture": png(board.golden)}, data={"part_id": "P-3"}, timeout=60)
    id = dropped(server, board.picture, "P-3", "y.png")["ResultId"]
    answer = httpx.post(f"{server.url}/training_data", timeout=60)  # as curl -X POST sends it, without a body
    if answer.status_code == 200:
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert f"judged/images/{id}.png" not in archive.namelist()
    else:
        assert answer.status_code == 422, answer.text
        assert "judge" in answer.json()["error"]["message"]
    assert not list((server.log.parent.parent / "store" / "spare").iterdir())


def dropped(server: Server, picture: Picture, part_id: str, name: str) -> dict[str, Any]:
    """The result of a picture that a camera leaves in the watched folder."""
    folder = server.log.parent.parent / "in" / part_id
    folder.mkdir(exist_ok=True)
    (folder / f".{name}").write_bytes(png(picture))
    (folder / f".{name}").rename(folder / name)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for result in ask(server, "/results").json()["results"]:
            if result["Name"] == name:
                found: dict[str, Any] = result
                return found
        time.sleep(0.2)
    raise AssertionError(server.log.read_text())


def test_the_page_is_ours_alone(server: Server) -> None:
    page = httpx.get(f"{server.url}/ui")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert httpx.post(f"{server.url}/ui").status_code in (404, 405)


def test_what_was_sent_is_gone(server: Server) -> None:
    store = Path(server.log.parent.parent / "store")
    assert sorted(path.name for path in store.iterdir() if path.is_dir()) == ["boards", "pictures", "products", "spare"]
    assert not list((store / "spare").iterdir())
