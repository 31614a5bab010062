"""The multimodal service as its users run it: a real `bentoml serve`, pictures and words over HTTP."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from tests.bento import Server
from tests.verticals.multimodal.made import caption, other_scenes, png

SCENES = other_scenes(60)


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **settings)
    return held.getvalue()


def ask(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=60)


def send(server: Server, path: str, **parts: Any) -> httpx.Response:
    files = {name: (name, part) for name, part in parts.items() if isinstance(part, bytes)}
    fields = {name: part for name, part in parts.items() if not isinstance(part, bytes)}
    return httpx.post(f"{server.url}{path}", files=files, data=fields, timeout=60)


@pytest.fixture(scope="module")
def indexed(server: Server) -> list[str]:
    """Ids of thirty pictures, all that is in the index: half one by one, half from an archive."""
    if before := ask(server, "/items", count=1000).json()["ids"]:
        assert ask(server, "/delete", ids=before).json() == {"items": 0}
    ids = []
    for place, scene in enumerate(SCENES[:15]):
        answer = send(server, "/index", picture=png(scene), id=f"one {place}", metadata=json.dumps({"place": place}))
        assert answer.status_code == 200, answer.text
        ids.append(answer.json()["id"])
    held = io.BytesIO()
    members = {f"{place}.png": png(scene) for place, scene in enumerate(SCENES[15:30])}
    members |= {f"{place}.txt": caption(scene).encode() for place, scene in enumerate(SCENES[15:29])}  # one has none
    members |= {"bad.png": b"none", "words.txt": b"alone", "deep.png": png(SCENES[0]), "deep.json": b"[" * 5_000}
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(f"many/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    answer = send(server, "/index_archive", archive=held.getvalue())
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["indexed"], told["refused"], told["items"]) == (15, 3, 30)
    reasons = {one["id"]: one["reason"] for one in told["reasons"]}
    for id, words in (("bad", "no picture"), ("words", "needed is a picture"), ("deep", "its JSON cannot be read")):
        assert words in reasons[f"many/{id}"]
    return ids + [f"many/{place}" for place in range(15)]


def test_words_find_pictures_and_pictures_find_themselves(server: Server, indexed: list[str]) -> None:
    found = 0
    for place, scene in enumerate(SCENES[:30]):
        answer = ask(server, "/search_by_text", text=caption(scene), count=5).json()
        assert answer["items"] == 30
        found += indexed[place] in [hit["id"] for hit in answer["hits"]]
    assert found > 20  # of 30; chance is 5
    (hit,) = send(server, "/search_by_image", picture=png(SCENES[3]), count="1").json()["hits"]
    assert (hit["id"], hit["metadata"]) == ("one 3", {"place": 3})
    assert hit["score"] == pytest.approx(1, abs=1e-4)
    (hit,) = send(server, "/search_by_image", picture=png(SCENES[20]), count="1").json()["hits"]
    assert hit["metadata"] == {"caption": caption(SCENES[20])}


def test_a_match_and_labels(server: Server) -> None:
    own = send(server, "/match", picture=png(SCENES[40]), text=caption(SCENES[40])).json()
    assert own["belongs"] == (own["chance"] > 0.5)
    labels = [group.words for (group,) in SCENES[40:46]]
    answer = send(server, "/classify", picture=png(SCENES[40]), labels=json.dumps(labels)).json()
    assert [one["label"] for one in answer["labels"]] != labels or len(labels) == 6
    assert sum(one["chance"] for one in answer["labels"]) == pytest.approx(1)
    plain = send(server, "/classify", picture=png(SCENES[40]), labels=", ".join(labels)).json()
    assert plain["labels"] == answer["labels"]


def test_an_item_its_picture_and_its_end(server: Server) -> None:
    made = send(server, "/index", picture=png(SCENES[50]), caption="words").json()
    assert len(made["id"]) == 16
    assert ask(server, "/item", id=made["id"]).json() == {
        "id": made["id"],
        "metadata": {"caption": "words"},
        "has_picture": True,
    }
    shown = ask(server, "/picture", id=made["id"])
    assert shown.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(shown.content)).size == (96, 96)
    again = send(server, "/index", picture=png(SCENES[50]))
    assert again.status_code == 409, again.text
    assert send(server, "/index", picture=png(SCENES[50]), replace="true").json()["replaced"]
    assert made["id"] in ask(server, "/items", count=1000).json()["ids"]
    assert ask(server, "/delete", ids=[made["id"]]).status_code == 200
    for path in ("/item", "/picture"):
        gone = ask(server, path, id=made["id"])
        assert gone.status_code == 422
        assert "is not in the index" in gone.text
    assert "is not in the index" in ask(server, "/delete", ids=[made["id"]]).text


COLOUR = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
DEEP = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 60), np.uint16))


@pytest.mark.parametrize(
    "data",
    [
        encoded(COLOUR.convert("CMYK"), "JPEG"),
        encoded(DEEP),
        encoded(COLOUR.convert("P")),
        encoded(COLOUR.convert("1")),
        encoded(COLOUR.convert("RGBA")),
        encoded(COLOUR, "WEBP"),
        encoded(COLOUR.resize((16, 16))),
    ],
    ids=["cmyk", "16 bit", "palette", "1 bit", "alpha", "webp", "16 pixels"],
)
def test_pictures_of_every_kind_are_taken(server: Server, data: bytes) -> None:
    assert send(server, "/search_by_image", picture=data).status_code == 200


def test_a_camera_that_was_held_sideways_makes_no_other_picture(server: Server) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(COLOUR.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    send(server, "/index", picture=encoded(COLOUR), id="upright")
    (hit,) = send(server, "/search_by_image", picture=turned, count="1").json()["hits"]
    assert hit["id"] == "upright"
    assert hit["score"] == pytest.approx(1, abs=1e-4)
    ask(server, "/delete", ids=["upright"])


ANIMATED = encoded(COLOUR, "GIF", save_all=True, append_images=[COLOUR.rotate(9)])
BOMB = encoded(Image.new("1", (30_000, 30_000)))


@pytest.mark.parametrize(
    ("picture", "status", "words"),
    [
        (b"", 422, "0 bytes"),
        (b"no picture at all", 422, "is no picture"),
        (encoded(COLOUR)[:200], 422, "cut off"),
        (ANIMATED, 422, "shows 2 pictures"),
        (encoded(Image.new("RGB", (1, 1))), 422, "1 x 1 pixels; allowed are 16 and more"),
        (BOMB, 413, "30,000 x 30,000 pixels; allowed are 4 million"),
    ],
    ids=["empty", "text", "cut", "animated", "1 pixel", "bomb"],
)
@pytest.mark.parametrize("path", ["/index", "/search_by_image"])
def test_pictures_that_are_refused(server: Server, path: str, picture: bytes, status: int, words: str) -> None:
    before = ask(server, "/items").json()["items"]
    answer = send(server, path, picture=picture)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert ask(server, "/items").json()["items"] == before


def test_a_sound_is_refused_by_a_model_that_has_learned_none(server: Server) -> None:
    held = io.BytesIO()
    wavfile.write(held, 8_000, np.zeros(4_000, np.int16))
    for sound, words in ((held.getvalue(), "has not learned any"), (b"no sound", "give a WAV file"), (b"", "0 bytes")):
        answer = send(server, "/search_by_sound", sound=sound)
        assert answer.status_code == 422, answer.text
        assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"text": ""}, 400, "text"),
        ({"text": "   "}, 422, "the text is empty"),
        ({"text": "x" * 100_000}, 400, "text"),
        ({"text": "a", "count": 0}, 400, "count"),
        ({"text": "a", "count": 1_000_000}, 400, "count"),
        ({}, 400, "text"),
    ],
)
def test_questions_that_are_refused(server: Server, body: dict[str, Any], status: int, words: str) -> None:
    answer = ask(server, "/search_by_text", **body)
    assert answer.status_code == status, answer.text
    assert words in answer.text


@pytest.mark.parametrize("text", ["红色的圆", "красный круг", "دائرة", "👍🏽", "a\u0000b", "<script>", "red " * 2000])
def test_words_of_any_script_are_answered(server: Server, text: str) -> None:
    answer = ask(server, "/search_by_text", text=text)
    assert answer.status_code == 200, answer.text
    assert answer.json()["text_cut"] == (len(text) > 1000)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"metadata": "{"}, "metadata is no JSON"),
        ({"metadata": "[]"}, "metadata is a JSON list"),
        ({"metadata": '{"a": ' + "[" * 1500 + "]" * 1500 + "}"}, "metadata is no JSON"),
        ({"id": "a\nb"}, "is no id"),
        ({"id": "x" * 201}, "id"),
        ({"caption": "  "}, "the text is empty"),
        ({"metadata": json.dumps({"a": "x" * 4000})}, ""),
    ],
)
def test_what_cannot_be_kept_is_refused(server: Server, indexed: list[str], parts: dict[str, str], words: str) -> None:
    before = ask(server, "/items").json()["items"]
    answer = send(server, "/index", picture=png(SCENES[55]), **parts)
    if words:
        assert answer.status_code in (400, 422), answer.text
        assert words in answer.text
        assert ask(server, "/items").json()["items"] == before
    else:
        assert answer.status_code == 200, answer.text
        ask(server, "/delete", ids=[answer.json()["id"]])


@pytest.mark.parametrize(
    ("labels", "template", "words"),
    [
        ("cat", "{}", "1 labels are given"),
        ("[1, 2]", "{}", "other things than texts"),
        ("[", "{}", "no JSON list"),
        ("cat, cat", "{}", "twice"),
        ("cat, dog", "photo", "has no {}"),
    ],
)
def test_labels_that_are_none(server: Server, labels: str, template: str, words: str) -> None:
    answer = send(server, "/classify", picture=png(SCENES[0]), labels=labels, template=template)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["error"]["message"]


def test_no_words_or_ids_of_users_are_in_the_log(server: Server) -> None:
    ask(server, "/search_by_text", text="secret words of a user")
    ask(server, "/search_by_text", text="secret words of a user", count=0)
    send(server, "/index", picture=b"none", id="secret id")
    assert "secret" not in server.log.read_text()
