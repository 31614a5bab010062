"""The index against a dictionary, through crashes, full disks and changes under way."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import ArtifactError, Conflict, DataError, Unavailable
from verticals.multimodal import index as module
from verticals.multimodal.index import Hit, Index, Item, OtherModel, UnknownItem

WIDTH, DETAIL = 16, 6
MODEL = "one"


def vector(name: str, version: int = 0) -> NDArray[np.float32]:
    """Of length 1, the same for the same name."""
    drawn = np.random.default_rng([version, *name.encode()]).normal(size=WIDTH).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn), np.float32)


def item(name: str, version: int = 0) -> Item:
    detail = np.full(DETAIL, len(name) + version, np.float16)
    return Item(name, vector(name, version), {"version": version}, detail, f"{name} {version}".encode())


def opened(folder: Path, model: str = MODEL) -> Index:
    return Index(folder, model=model, width=WIDTH, detail_width=DETAIL)


def searched(index: Index, query: NDArray[np.float32], num: int) -> list[Hit]:
    return index.search(query[None], num, model=MODEL)[0]


def test_it_answers_as_a_dictionary_whatever_is_added_replaced_and_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LEAST_DELETED", 7)  # rows move together again and again
    draw = random.Random(0)
    known: dict[str, int] = {}
    index = opened(tmp_path)
    generations = set()
    for step in range(120):
        names = [f"n{draw.randrange(60)}" for _ in range(draw.randrange(1, 6))]
        names = list(dict.fromkeys(names))
        if draw.random() < 0.6:
            there = [name for name in names if name in known]
            assert index.add([item(name, step) for name in names], model=MODEL, replace=True) == set(there)
            known |= dict.fromkeys(names, step)
        elif gone := [name for name in names if name in known]:
            index.delete(gone)
            for name in gone:
                del known[name]
        if step % 10 == 9:
            index.close()
            index = opened(tmp_path)
        generations |= {path.name for path in tmp_path.glob("vectors-*")}
        assert len(index) == len(known)
        query, num = vector(f"q{step}"), draw.choice([1, 3, 10, 1000])
        hits = searched(index, query, num)
        names = sorted(known, key=lambda name: -float(vector(name, known[name]) @ query))[:num]
        assert [hit.id for hit in hits] == names
        for hit in hits:
            own = item(hit.id, known[hit.id])
            assert hit.score == pytest.approx(float(own.vector @ query), abs=1e-6)
            assert hit.metadata == own.metadata
            assert np.array_equal(hit.detail, own.detail)  # type: ignore[arg-type]
    assert len(generations) > 3
    assert len(list(tmp_path.glob("vectors-*"))) == 1
    for name, version in known.items():
        found, own = index.get(name), item(name, version)
        assert np.array_equal(found.vector, own.vector)
        assert found.thumbnail == own.thumbnail
    assert index.ids(5) == sorted(known)[:5]
    assert index.ids(1000, after=sorted(known)[4]) == sorted(known)[5:]
    index.close()


def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.add([item("a"), item("b")], model=MODEL)
    for items, error, words in (
        ([item("c"), item("a")], Conflict, "'a' is in the index"),
        ([item("c"), item("c")], DataError, "'c' comes twice"),
        ([item("c"), item("x" * 201)], DataError, "is no id"),
        ([item(" ")], DataError, "is no id"),
        ([item("line\nbreak")], DataError, "is no id"),
        ([item("c")._replace(metadata={"note": "x" * 10_001})], DataError, "allowed are 10,000"),
        ([item("c")._replace(metadata={"note": float("nan")})], DataError, "no JSON object"),
        (
            [item("c")._replace(metadata={"note": json.loads("[" * 40 + "]" * 40)})],
            DataError,
            "more than 32 levels deep",
        ),
        ([item("c")._replace(metadata={"note": "\ud800"})], DataError, "no JSON object"),
    ):
        with pytest.raises(error, match=words):
            index.add(items, model=MODEL)
    with pytest.raises(UnknownItem, match="'z' is not in the index"):
        index.delete(["a", "z"])
    with pytest.raises(UnknownItem):
        index.get("z")
    assert [hit.id for hit in searched(index, vector("a"), 9)] == ["a", "b"]
    index.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("none")
    (tmp_path / "taken" / "index.db.lock").mkdir(parents=True)  # even root cannot write it
    with pytest.raises(ArtifactError, match="index.db cannot be written: Is a directory"):
        Index(tmp_path / "taken", model="one", width=4)
    with pytest.raises(ArtifactError, match=r"file/index cannot be made: Not a directory; name another"):
        Index(tmp_path / "file" / "index", model="one", width=4)


def test_embeddings_of_another_model_are_neither_added_nor_asked_for(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.add([item("a")], model=MODEL)
    with pytest.raises(OtherModel, match="made by model one, this is two"):
        index.add([item("b")], model="two")
    with pytest.raises(OtherModel):
        index.search(vector("a")[None], 1, model="two")
    index.close()
    with pytest.raises(OtherModel):
        opened(tmp_path, "two")
    assert len(opened(tmp_path)) == 1


def test_an_empty_index_and_more_than_there_is(tmp_path: Path) -> None:
    index = opened(tmp_path)
    assert index.search(np.stack([vector("a"), vector("b")]), 5, model=MODEL) == [[], []]
    assert index.add([], model=MODEL) == set()
    index.add([item("a")], model=MODEL)
    assert len(searched(index, vector("a"), 1_000_000)) == 1


def test_what_is_deleted_is_no_longer_in_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = opened(tmp_path)
    index.add([item("a"), item("b"), item("c")], model=MODEL)
    index.delete(["b"])
    raw = (tmp_path / "vectors-0.f32").read_bytes()
    assert vector("b").tobytes() not in raw
    assert vector("c").tobytes() in raw
    monkeypatch.setattr(module.Files, "blank", lambda *_: None)  # a crash right after the list was committed
    index.delete(["c"])
    assert vector("c").tobytes() in (tmp_path / "vectors-0.f32").read_bytes()
    index.close()
    monkeypatch.undo()
    opened(tmp_path).close()
    assert vector("c").tobytes() not in (tmp_path / "vectors-0.f32").read_bytes()


def test_a_file_that_was_cut_off_is_told(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.add([item("a"), item("b")], model=MODEL)
    index.close()
    os.truncate(tmp_path / "vectors-0.f32", WIDTH * 4)
    with pytest.raises(ArtifactError, match="cut off: it should hold 2 rows"):
        opened(tmp_path)


def test_searches_see_whole_states_while_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_DELETED", 20)
    index = opened(tmp_path)
    index.add([item(f"stays {place}") for place in range(40)], model=MODEL)
    ended, faults, rounds = threading.Event(), [], [0]

    def ask() -> None:
        while not ended.is_set():
            for place in range(40):
                hit = searched(index, vector(f"stays {place}"), 1)[0]
                if hit.id != f"stays {place}" or hit.score < 0.999:
                    faults.append(hit)
            rounds[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 3
    number = 0
    while time.monotonic() < end or rounds[0] < 3 or number < 100:
        names = [f"goes {number + place}" for place in range(10)]
        index.add([item(name) for name in names], model=MODEL)
        index.delete(names)
        number += 10
    ended.set()
    for thread in threads:
        thread.join()
    assert not faults
    assert index._files.generation > 1
    index.close()


WRITER = """
import sys
from pathlib import Path
from tests.verticals.multimodal.test_index import MODEL, item, opened
index = opened(Path(sys.argv[1]))
number = len(index) // 50
print("ready", flush=True)
while True:
    index.add([item(f"{number}-{place}") for place in range(50)], model=MODEL)
    number += 1
    print(number, flush=True)
"""


def test_killed_in_the_middle_of_adding_it_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    draw = random.Random(1)
    least = 0
    for _ in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.02, 0.2))
        writer.send_signal(signal.SIGKILL)
        told = writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        least = max([least, *map(int, told)])
        index = opened(tmp_path)
        batches, rest = divmod(len(index), 50)
        assert rest == 0
        assert batches in (least, least + 1)
        least = batches
        for number in range(batches):
            found = index.search(np.stack([vector(f"{number}-{place}") for place in (0, 49)]), 1, model=MODEL)
            assert [hits[0].id for hits in found] == [f"{number}-0", f"{number}-49"]
        index.close()
    assert least > 5


FULL = """
import resource, sys
from pathlib import Path
from core.errors import Unavailable
from tests.verticals.multimodal.test_index import MODEL, item, opened
index = opened(Path(sys.argv[1]))
index.add([item("before")], model=MODEL)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    index.add([item(f"more {place}") for place in range(4000)], model=MODEL)
except Unavailable as error:
    print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    index.add([item("after")], model=MODEL)
    print(index.ids(9), len(index))
"""


def test_a_full_disk_changes_nothing_and_is_told(tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), "100000"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert told.endswith("['after', 'before'] 2\n")
    assert "free space" in told
    index = opened(tmp_path)
    assert index.ids(9) == ["after", "before"]
    index.close()


def test_a_disk_that_is_full_when_the_list_is_written(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.add([item("before")], model=MODEL)
    pages = index._list.rows("PRAGMA page_count")[0][0]
    index._list._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Unavailable, match="the disk is full, nothing was written"):
        index.add([item(f"more {place}") for place in range(4000)], model=MODEL)
    assert [hit.id for hit in searched(index, vector("more 1"), 9)] == ["before"]
    index._list._writer.execute("PRAGMA max_page_count = 1000000")
    index.add([item("after")], model=MODEL)
    assert [hit.id for hit in searched(index, vector("after"), 1)] == ["after"]
    index.close()


def test_two_processes_do_not_write_one_index(tmp_path: Path) -> None:
    index = opened(tmp_path)
    with pytest.raises(ArtifactError, match="being written by process"):
        opened(tmp_path)
    index.close()
