"""Approximate search beside comparing all: what it finds, what it must not find, and how it comes and goes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import ArtifactError
from verticals.multimodal.approximate import Approximate
from verticals.multimodal.exact import search
from verticals.multimodal.index import Index, Item

WIDTH, MODEL = 32, "one"


def mixture(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Of length 1, around a hundred middles, in a dozen directions."""
    random = np.random.default_rng(seed)
    middles = np.random.default_rng(7).normal(size=(100, WIDTH))
    directions = np.random.default_rng(8).normal(size=(12, WIDTH))
    drawn = middles[random.integers(100, size=count)] + 0.4 * random.normal(size=(count, 12)) @ directions
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def test_it_finds_nearly_all_of_the_nearest(tmp_path: Path) -> None:
    vectors, asked = mixture(20_000), mixture(200, 1)
    there = np.ones(len(vectors), bool)
    made = Approximate.build(vectors, tmp_path / "nearest-0.faiss")
    assert made is not None
    assert made.recall >= 0.99
    found, true = made.search(asked, 10, vectors, there), search(vectors, asked, 10, there)
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(found.rows, true.rows, strict=True)]) > 0.97
    np.testing.assert_allclose(found.scores[:, 0], true.scores[:, 0], atol=1e-5)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    there[true.rows[:, 0]] = False
    without = made.search(asked, 10, vectors, there)
    assert there[without.rows].all()
    again = Approximate(tmp_path / "nearest-0.faiss")
    assert np.array_equal(again.search(asked, 10, vectors, there).rows, without.rows)


def test_rows_are_put_into_what_was_built(tmp_path: Path) -> None:
    vectors, asked = mixture(12_000), mixture(200, 1)
    vectors[3::7] = 0  # deleted ones
    vectors[5::7] = vectors[5]  # one picture, again and again
    there = vectors.any(axis=1)
    path = tmp_path / "nearest-0.faiss"
    first = Approximate.build(vectors[:9_000], path)
    assert first is not None
    assert Approximate.build(vectors, path, before=path, is_cancelled=lambda: True) is None
    made = Approximate.build(vectors, path, before=path)
    assert made is not None
    assert (first.num_rows, made.num_rows) == (9_000, 12_000)
    assert made.recall >= 0.99
    assert made.num_first == 9_000
    assert made.num_probes < 256
    found, true = made.search(asked, 10, vectors, there), search(vectors, asked, 10, there)
    assert np.mean(found.scores >= true.scores[:, -1:] - 1e-6) > 0.97
    anew = Approximate.build(np.concatenate([vectors, vectors[there]]), path, before=path)
    assert anew is not None
    assert anew.num_first == anew.num_rows == len(vectors) + there.sum()  # twice as many: other cells


def test_it_answers_with_as_many_as_are_wanted(tmp_path: Path) -> None:
    vectors = mixture(5_000)
    there = np.ones(len(vectors), bool)
    made = Approximate.build(vectors, tmp_path / "nearest-0.faiss")
    assert made is not None
    made.num_probes = 1
    for num in (1, 100, 1_000, 5_000):
        assert made.search(mixture(3, 1), num, vectors, None).rows.shape == (3, num)
    there[50:] = False
    found = made.search(mixture(3, 1), 1_000, vectors, there)
    assert (np.sort(found.rows, axis=1) == np.arange(50)).all()


def test_damaged_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "nearest-0.faiss"
    Approximate.build(mixture(2_000), path)
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(ArtifactError, match="is damaged"):
        Approximate(path)
    Approximate.build(mixture(2_000), path)
    path.with_suffix(".json").write_text('{"rows": 5, "first": 5, "probes": 1, "again": 8, "recall": 1}')
    with pytest.raises(ArtifactError, match="is damaged"):
        Approximate(path)


def opened(folder: Path) -> Index:
    return Index(folder, model=MODEL, width=WIDTH, exact_up_to=1_000)


def built(index: Index) -> None:
    end = time.monotonic() + 60
    while index._state.nearest is None or (index._builder and index._builder.is_alive()):
        assert time.monotonic() < end
        time.sleep(0.02)


def items(vectors: NDArray[np.float32], first: int = 0) -> list[Item]:
    return [Item(f"n{first + place}", vector) for place, vector in enumerate(vectors)]


def top(index: Index, vector: NDArray[np.float32], num: int = 1) -> list[str]:
    return [hit.id for hit in index.search(vector[None], num, model=MODEL)[0]]


def test_an_index_builds_it_beside_and_knows_what_came_and_went_since(tmp_path: Path) -> None:
    vectors, late = mixture(3_000), mixture(200, 2)
    index = opened(tmp_path)
    index.add(items(vectors[:900]), model=MODEL)
    assert index._state.nearest is None  # few are all compared
    index.add(items(vectors[900:], 900), model=MODEL)
    built(index)
    assert index._state.nearest is not None
    assert index._state.nearest.num_rows == 3_000
    index.add(items(late, 5_000), model=MODEL)
    index.delete(["n3", "n7"])
    index.add([Item("n5", late[0] * -1)], model=MODEL, replace=True)
    for place in (0, 1, 500, 2_999):
        assert top(index, vectors[place]) == [f"n{place}"]
    assert top(index, late[17]) == ["n5017"]
    assert top(index, -late[0]) == ["n5"]
    for place in (3, 7, 5):
        assert f"n{place}" not in top(index, vectors[place], 50)
    index.close()
    again = opened(tmp_path)
    assert again._state.nearest is not None
    assert top(again, late[17]) == ["n5017"]
    again.add(items(mixture(900, 3), 7_000), model=MODEL)  # so many that it is built again
    end = time.monotonic() + 60
    while again._state.nearest is None or again._state.nearest.num_rows < 4_000:
        assert time.monotonic() < end
        time.sleep(0.02)
    again.close()
    (tmp_path / "nearest-0.faiss").write_bytes(b"none")
    damaged = opened(tmp_path)  # compared one by one until it is built again
    assert top(damaged, vectors[500]) == ["n500"]
    built(damaged)
    damaged.close()


def test_rows_that_move_together_are_not_looked_for_where_they_were(tmp_path: Path) -> None:
    vectors = mixture(3_000)
    index = opened(tmp_path)
    index.add(items(vectors), model=MODEL)
    built(index)
    index.delete([f"n{place}" for place in range(1_500)])
    assert index._files.generation == 1
    for place in (1_500, 2_000, 2_999):
        assert top(index, vectors[place]) == [f"n{place}"]
    built(index)
    for place in (1_500, 2_000, 2_999):
        assert top(index, vectors[place]) == [f"n{place}"]
    index.close()
    assert not (tmp_path / "vectors-0.f32").exists()
