"""`verticals predict`, `data --check` and `--synthetic`, `evaluate -i`: a user's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import DataError, LeakError
from core.inference.model import build
from tests.verticals.multimodal.made import caption, other_scenes, png
from verticals.multimodal.retrieval import APPLICATION
from verticals.multimodal.retrieval.config import debug
from verticals.multimodal.retrieval.predictor import Request, RetrievalPredictor

SCENES = other_scenes(12)


@pytest.fixture(scope="module")
def predictor(trained: tuple[Path, dict[str, Any]]) -> RetrievalPredictor:
    made: RetrievalPredictor = build(APPLICATION, Path(trained[1]["run"]), "test")[1]
    return made


def dataset(root: Path) -> Path:
    (root / "pics").mkdir(parents=True)
    rows = ["filepath,title"]
    for place, scene in enumerate(SCENES):
        (root / "pics" / f"{place}.png").write_bytes(png(scene))
        rows += [f"pics/{place}.png,{caption(scene).replace(',', ' ')}"] * (1 + place % 2)
    (root / "pairs.csv").write_text("\n".join(rows))
    return root / "pairs.csv"


def told(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


def test_a_data_set_becomes_embeddings_whose_rows_are_told(predictor: RetrievalPredictor, tmp_path: Path) -> None:
    source = dataset(tmp_path / "set")
    said = APPLICATION.predict(predictor, predictor.config, str(source), tmp_path / "answer")
    assert (said["items"], said["captions"], said["refused"]) == (12, 18, 0)
    pictures, captions = (np.load(tmp_path / "answer" / f"{name}.npy") for name in ("items", "captions"))
    assert pictures.shape == (12, predictor.width)
    assert captions.shape == (18, predictor.width)
    for item in told(tmp_path / "answer"):
        place = int(Path(item["id"]).stem)
        from core.data.pictures import read_picture

        (own,) = predictor(
            [Request(read_picture(png(SCENES[place]), num_channels=3), caption(SCENES[place]).replace(",", " "))]
        )
        np.testing.assert_allclose(pictures[item["row"]], own.picture, atol=1e-4)
        for row in item["captions"]:
            np.testing.assert_allclose(captions[row], own.text, atol=1e-4)
    cost = APPLICATION.cost(predictor, predictor.config, str(source))  # type: ignore[misc]
    assert cost.bytes > 0
    assert cost.seconds > 0
    with pytest.raises(DataError, match="exists; name a new folder"):
        APPLICATION.predict(predictor, predictor.config, str(source), tmp_path / "answer")


def test_one_odd_picture_of_a_folder_does_not_lose_the_others(predictor: RetrievalPredictor, tmp_path: Path) -> None:
    (tmp_path / "in" / "below").mkdir(parents=True)
    (tmp_path / "in" / "a.png").write_bytes(png(SCENES[0]))
    (tmp_path / "in" / "b.png").write_bytes(b"none")
    (tmp_path / "in" / "below" / "c.JPG").write_bytes(png(SCENES[1]))
    said = APPLICATION.predict(predictor, predictor.config, str(tmp_path / "in"), tmp_path / "answer")
    assert (said["items"], said["refused"]) == (2, 1)
    rows = {item["id"]: item for item in told(tmp_path / "answer")}
    assert rows["b.png"]["row"] is None
    assert "is no picture" in rows["b.png"]["reason"]
    assert not (tmp_path / "answer" / "captions.npy").exists()
    one = APPLICATION.predict(predictor, predictor.config, str(tmp_path / "in" / "a.png"), tmp_path / "one")
    assert one["items"] == 1
    with pytest.raises(DataError, match="holds no captioned pictures"):
        APPLICATION.predict(predictor, predictor.config, str(tmp_path / "answer"), tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_check_says_what_is_in_a_file(tmp_path: Path) -> None:
    source = dataset(tmp_path / "set")
    text = APPLICATION.check(debug(), str(source))["text"]
    assert text.startswith("table: 9 train, 1 validation, 2 test pictures; 18 captions of")
    assert "96 x 96 pixels" in APPLICATION.check(debug(), str(tmp_path / "set" / "pics" / "0.png"))["text"]
    (tmp_path / "set" / "pics" / "3.png").write_bytes(png(SCENES[3])[:400])
    with pytest.raises(DataError, match=r"pics/3.png is damaged"):
        APPLICATION.check(debug(), str(source))
    said = APPLICATION.synthesize(debug(), tmp_path / "made")
    assert said["text"].endswith("26 test, 26 dev, 108 train pictures, 320 captions")


def test_another_data_set_judges_and_the_own_one_does_not(predictor: RetrievalPredictor, tmp_path: Path) -> None:
    source = dataset(tmp_path / "set")
    data = APPLICATION.samples(predictor.config, str(source))
    figures = APPLICATION.evaluate(predictor, data, "all").record()["figures"]
    assert figures["R@1 picture to text"]["n"] == 12
    assert "R@1 text to picture and caption" not in figures  # some pictures have one caption alone
    config = predictor.config.override([f"data.sources=['{source}']"])
    with pytest.raises(LeakError, match="is the data set that the model was trained on"):
        APPLICATION.samples(config, str(source))
