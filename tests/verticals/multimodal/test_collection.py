"""A collection under one model and the next: what is found, and that no change is lost while it moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import CapacityError, Conflict, DataError
from core.inference.model import build
from tests.verticals.multimodal.made import caption, other_scenes, png
from verticals.multimodal.collection import Collection, Entry
from verticals.multimodal.retrieval import APPLICATION
from verticals.multimodal.retrieval.predictor import Encoded, Request, RetrievalPredictor

SCENES = other_scenes(40)


def model(trained: tuple[Path, dict[str, Any]], version: str) -> RetrievalPredictor:
    predictor: RetrievalPredictor = build(APPLICATION, Path(trained[1]["run"]), version)[1]
    return predictor


class Shelf:
    """A collection, and the model that answers."""

    def __init__(self, folder: Path, live: RetrievalPredictor, *, kept_pixels: int = 128) -> None:
        self.live = live
        self.collection = Collection(folder, lambda: self.live, most_pixels=10**6, kept_pixels=kept_pixels)
        self.collection.open(live)


@pytest.fixture
def shelf(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path / "index", model(trained, "20260101t000000-00000001"))
    yield made
    made.collection.close()


def filled(shelf: Shelf, count: int = 40) -> None:
    shelf.collection.add([Entry(png(scene), f"s{place}") for place, scene in enumerate(SCENES[:count])])


def test_pictures_are_found_by_their_words_and_by_themselves(shelf: Shelf) -> None:
    filled(shelf)
    assert len(shelf.collection) == 40
    found = 0
    for place, scene in enumerate(SCENES):
        hits, answer, version = shelf.collection.search(text=caption(scene), count=5)
        assert len(hits) == 5
        assert version == shelf.live.version
        assert not answer.cut
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        found += f"s{place}" in [hit.id for hit in hits]
        (same,), _, _ = shelf.collection.search(picture=png(scene), count=1)
        assert (same.id, round(same.score, 4)) == (f"s{place}", 1.0)
    assert found > 25  # of 40; chance is 5


def test_a_caption_makes_a_picture_easier_to_find(shelf: Shelf) -> None:
    filled(shelf)
    plain = sum(place_of(shelf, place) for place in range(40))
    shelf.collection.add(
        [Entry(png(scene), f"s{place}", caption(scene)) for place, scene in enumerate(SCENES)], replace=True
    )
    assert sum(place_of(shelf, place) for place in range(40)) < plain
    assert shelf.collection.get("s3").metadata == {"caption": caption(SCENES[3])}


def test_a_picture_finds_itself_first_whatever_its_caption(shelf: Shelf) -> None:
    filled(shelf)
    words = "a green cross at the top left next to a yellow square"
    shelf.collection.add(
        [Entry(png(scene), f"s{place}", words) for place, scene in enumerate(SCENES[:20])], replace=True
    )
    for place, scene in enumerate(SCENES):
        hits, _, _ = shelf.collection.search(picture=png(scene), count=5)
        assert (hits[0].id, round(hits[0].score, 4)) == (f"s{place}", 1.0)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_labels_that_the_model_does_not_read_to_the_end_are_refused(shelf: Shelf) -> None:
    with pytest.raises(DataError, match="more tokens than the model reads"):
        shelf.collection.classify(png(SCENES[0]), ["red circle", "blue star"], template="red " * 200 + "{}")


def place_of(shelf: Shelf, place: int) -> int:
    hits, _, _ = shelf.collection.search(text=caption(SCENES[place]), count=40)
    return [hit.id for hit in hits].index(f"s{place}")


def test_ids_replacement_and_deletion(shelf: Shelf) -> None:
    (made,) = shelf.collection.add([Entry(png(SCENES[0]), metadata={"owner": "Ann"})])
    assert len(made.id) == 16
    with pytest.raises(Conflict, match="is in the index"):
        shelf.collection.add([Entry(png(SCENES[0]))])
    (again,) = shelf.collection.add([Entry(png(SCENES[1]), made.id, "other words " * 60)], replace=True)
    assert again.replaced
    assert again.cut
    assert shelf.collection.ids(9, after="") == [made.id]
    shelf.collection.delete([made.id])
    assert len(shelf.collection) == 0


def test_what_is_refused_adds_nothing(shelf: Shelf) -> None:
    good = Entry(png(SCENES[0]), "good")
    for bad, error in (
        (Entry(b"none", "x"), DataError),
        (Entry(png(SCENES[1]), "x", " "), DataError),
        (Entry(png(SCENES[1]), "good"), DataError),
    ):
        with pytest.raises(error):
            shelf.collection.add([good, bad])
    import io

    from PIL import Image

    held = io.BytesIO()
    Image.new("1", (2000, 600)).save(held, "PNG")
    with pytest.raises(CapacityError, match="allowed are 1 million"):
        shelf.collection.add([good, Entry(held.getvalue(), "x")])
    assert len(shelf.collection) == 0


def test_a_match_and_labels(shelf: Shelf) -> None:
    own = [shelf.collection.match(png(scene), caption(scene))[0] for scene in SCENES]
    other = [shelf.collection.match(png(scene), caption(SCENES[place - 1]))[0] for place, scene in enumerate(SCENES)]
    assert np.mean([answer.chance for answer in own]) > 0.7  # type: ignore[arg-type]
    assert np.mean([answer.chance for answer in other]) < 0.4  # type: ignore[arg-type]
    words = [group.words for (group,) in SCENES[:8]]
    labels, _ = shelf.collection.classify(png(SCENES[0]), list(dict.fromkeys(words)), template="a picture of {}")
    assert sum(one.chance for one in labels) == pytest.approx(1)
    assert words[0] in [one.label for one in labels[:3]]
    for given, template, said in (
        (["a"], "{}", "1 labels are given"),
        (["a", "a"], "{}", "twice"),
        (["a", "b"], "a photo", "has no {}"),
        (["a", " "], "{}", "empty"),
    ):
        with pytest.raises(DataError, match=said):
            shelf.collection.classify(png(SCENES[0]), given, template=template)


def test_the_next_model_gets_all_that_the_old_one_has_and_what_changes_meanwhile(
    shelf: Shelf, trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    filled(shelf, 30)
    shelf.collection.add([Entry(png(SCENES[30]), "worded", caption(SCENES[30]), {"owner": "Ann"})])
    new = Slow(model(trained, "20260202t000000-00000002"))
    ended, faults = threading.Event(), []

    def ask() -> None:
        while not ended.is_set():
            hits, _, _ = shelf.collection.search(picture=png(SCENES[29]), count=1)
            if hits[0].id != "s29":
                faults.append(hits)

    def change() -> None:
        new.under_way.wait(30)
        shelf.collection.delete(["s0", "s1"])
        shelf.collection.add([Entry(png(SCENES[35]), "s2")], replace=True)
        shelf.collection.add([Entry(png(SCENES[36]), "late")])

    threads = [threading.Thread(target=ask), threading.Thread(target=change)]
    for thread in threads:
        thread.start()
    shelf.collection.open(new)  # type: ignore[arg-type]
    threads[1].join()
    waiting = threading.Thread(target=lambda: shelf.collection.add([Entry(png(SCENES[37]), "last")]))
    waiting.start()  # the old index is whole elsewhere: this waits for the new model
    time.sleep(0.2)
    assert waiting.is_alive()
    shelf.live = new  # type: ignore[assignment]
    waiting.join(10)
    ended.set()
    threads[0].join()
    assert not faults
    expected = {"worded", "late", "last", *(f"s{place}" for place in range(2, 30))}
    assert set(shelf.collection.ids(99, after="")) == expected
    assert shelf.collection.get("worded").metadata == {"owner": "Ann", "caption": caption(SCENES[30])}
    (hit,), _, version = shelf.collection.search(picture=png(SCENES[35]), count=1)
    assert hit.id == "s2"
    assert version.endswith("2")
    former = model(trained, "20260101t000000-00000001")
    shelf.collection.open(former)  # released again, in the same process
    shelf.live = former
    shelf.collection.add([Entry(png(SCENES[38]), "back")])
    shelf.collection.delete(["back"])
    assert set(shelf.collection.ids(99, after="")) == expected
    shelf.collection.open(new)  # type: ignore[arg-type]
    shelf.live = new  # type: ignore[assignment]
    shelf.collection.close()
    again = Shelf(tmp_path / "index", new)  # type: ignore[arg-type]
    assert set(again.collection.ids(99, after="")) == expected
    again.collection.close()
    back = Shelf(tmp_path / "index", model(trained, "20260101t000000-00000001"))  # released again: it is encoded anew
    assert set(back.collection.ids(99, after="")) == expected
    back.collection.close()


class Slow:
    """A model that lets others work while it encodes."""

    def __init__(self, inner: RetrievalPredictor) -> None:
        self._inner = inner
        self.under_way = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, requests: list[Request]) -> list[Encoded]:
        self.under_way.set()
        time.sleep(0.02 * len(requests))
        return self._inner(requests)


def test_a_move_that_fails_leaves_the_old_index_as_it_is(shelf: Shelf, trained: tuple[Path, dict[str, Any]]) -> None:
    filled(shelf, 5)

    class Broken(Slow):
        def __call__(self, requests: list[Request]) -> list[Encoded]:
            raise RuntimeError("the network is damaged")

    with pytest.raises(RuntimeError):
        shelf.collection.open(Broken(model(trained, "20260303t000000-00000003")))  # type: ignore[arg-type]
    shelf.collection.add([Entry(png(SCENES[9]), "after")])
    assert len(shelf.collection) == 6
    shelf.collection.open(model(trained, "20260303t000000-00000003"))


def test_pictures_of_which_nothing_is_kept_cannot_move(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    made = Shelf(tmp_path / "index", model(trained, "20260101t000000-00000001"), kept_pixels=0)
    filled(made, 3)
    assert made.collection.get("s1").thumbnail is None
    with pytest.raises(DataError, match="nothing is kept of the picture 's0'"):
        made.collection.open(model(trained, "20260202t000000-00000002"))
    assert len(made.collection) == 3
    made.collection.close()
