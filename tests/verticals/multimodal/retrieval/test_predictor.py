"""What is asked, alone or with others, one side or both: the same answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data.pictures import read_picture
from core.errors import CapacityError, DataError
from core.inference.model import build
from core.run import Run
from tests.verticals.multimodal.made import caption, other_scenes, png
from verticals.multimodal.retrieval import APPLICATION
from verticals.multimodal.retrieval.predictor import BATCH, Request, RetrievalPredictor

SCENES = other_scenes(20)
PICTURES = [read_picture(png(scene), num_channels=3) for scene in SCENES]
TEXTS = [caption(scene) for scene in SCENES]


@pytest.fixture(scope="module")
def predictor(trained: tuple[Path, dict[str, Any]]) -> RetrievalPredictor:
    made: RetrievalPredictor = build(APPLICATION, Path(trained[1]["run"]), "test")[1]
    return made


def test_one_side_may_be_missing(predictor: RetrievalPredictor) -> None:
    both, seen, read = predictor([Request(PICTURES[0], TEXTS[0]), Request(PICTURES[0]), Request(text=TEXTS[0])])
    assert both.picture is not None
    assert both.text is not None
    np.testing.assert_allclose(seen.picture, both.picture, atol=1e-5)
    np.testing.assert_allclose(read.text, both.text, atol=1e-5)
    assert (seen.text, seen.score, seen.chance, read.picture) == (None, None, None, None)
    assert both.score is not None
    assert both.chance == predictor.chance(both.score)
    for answer in (both, seen, read):
        assert np.linalg.norm(answer.query) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(
        both.query, (both.picture + both.text) / np.linalg.norm(both.picture + both.text), atol=1e-5
    )


def test_many_are_answered_as_each_alone_and_in_order(predictor: RetrievalPredictor) -> None:
    requests = [
        Request(PICTURES[place] if place % 3 else None, TEXTS[place] if place % 2 or not place % 3 else None)
        for place in range(20)
    ]
    assert len(requests) > BATCH
    for request, answer in zip(requests, predictor(requests), strict=True):
        (alone,) = predictor([request])
        assert (answer.picture is None, answer.text is None) == (request.picture is None, request.text is None)
        for side in ("picture", "text"):
            if getattr(answer, side) is not None:
                np.testing.assert_allclose(getattr(answer, side), getattr(alone, side), atol=1e-4)


def test_the_chance_rises_with_the_score(predictor: RetrievalPredictor) -> None:
    chances = [predictor.chance(score) for score in np.linspace(-1, 1, 9)]
    assert chances == sorted(chances)
    assert predictor.chance(predictor.match["middle"]) == pytest.approx(0.5)


def test_a_text_that_is_too_long_for_the_model_says_so(predictor: RetrievalPredictor) -> None:
    long, short = predictor([Request(text="red " * 500), Request(text="red")])
    assert (long.cut, short.cut) == (True, False)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(), "neither a picture nor a text"),
        (Request(text=" "), "the text is empty"),
        (Request(np.zeros((9, 9), np.uint8)), r"a picture is uint8\[9, 9\]"),
        (Request(np.zeros((9, 9, 3), np.float32)), "a picture is float32"),
    ],
)
def test_what_is_no_request(predictor: RetrievalPredictor, request_: Request, words: str) -> None:
    with pytest.raises(DataError, match=words):
        predictor([Request(PICTURES[0]), request_])


def test_memory_that_would_not_do_is_told_before(trained: tuple[Path, dict[str, Any]]) -> None:
    run = Path(trained[1]["run"])
    made = build(APPLICATION, run, "test", limit_bytes=10**6)[1]
    with pytest.raises(CapacityError, match="allowed are 0.00 GB"):
        made([Request(PICTURES[0])])
    assert made.estimate([Request(PICTURES[0])]).seconds > 0
    assert set(Run(run).read_json("constants.json")) >= {"preprocessing", "tokenizer", "text", "match"}
