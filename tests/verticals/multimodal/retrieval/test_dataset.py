"""Sides of a data set: none shares a picture, and what is missing is made by chance."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from core.errors import ConfigError, DataError, LeakError
from tests.verticals.multimodal.retrieval.test_formats import flickr_csv, png
from verticals.multimodal.retrieval.dataset import Dataset
from verticals.multimodal.retrieval.synthetic import SyntheticConfig, scenes, write_dataset


def many(root: Path, count: int, copies: int = 1) -> Path:
    (root / "pics").mkdir(parents=True)
    rows = ["filepath,title"]
    for place in range(count):
        for copy in range(copies):
            name = f"pics/{place}-{copy}.png"
            (root / name).write_bytes(png(f"#{place * 997 % 0xFFFFFF:06x}"))
            rows.append(f"{name},picture {place}")
    (root / "pairs.csv").write_text("\n".join(rows))
    return root / "pairs.csv"


def test_without_lists_pictures_are_split_by_chance_and_copies_stay_together(tmp_path: Path) -> None:
    dataset = Dataset.open(many(tmp_path / "a", 50, copies=2))
    counts = {side: len(pairs) for side, pairs in dataset.sides.items()}
    assert counts == {"train": 72, "validation": 8, "test": 20}
    sides = [{pair.file.read() for pair in pairs} for pairs in dataset.sides.values()]
    assert len(set.union(*sides)) == sum(map(len, sides)) == 50
    again = Dataset.open(tmp_path / "a" / "pairs.csv", seed=1)
    assert again.sides["test"] != dataset.sides["test"]
    assert Dataset.open(tmp_path / "a" / "pairs.csv").sides == dataset.sides


def test_what_a_list_calls_dev_is_the_test_where_there_is_no_other(tmp_path: Path) -> None:
    root = flickr_csv(tmp_path)
    (root / "train.txt").write_text("a.png\nc.png\n")
    (root / "dev.txt").write_text("b.png\n")
    dataset = Dataset.open(root)
    assert [pair.id for pair in dataset.sides["test"]] == ["b.png"]
    with pytest.raises(DataError, match=r"no pictures on the side 'validation'; there are train \(2\)"):
        dataset.for_training()


def test_a_picture_on_two_sides_is_refused_whatever_its_name(tmp_path: Path) -> None:
    root = flickr_csv(tmp_path)
    (root / "images" / "copy.png").write_bytes((root / "images" / "a.png").read_bytes())
    with (root / "captions.csv").open("a") as file:
        file.write("copy.png,red again\n")
    (root / "train.txt").write_text("a.png\nc.png\n")
    (root / "dev.txt").write_text("b.png\n")
    (root / "test.txt").write_text("copy.png\n")
    with pytest.raises(LeakError, match=r"copy.png on test and a.png on train are one picture"):
        Dataset.open(root)


def test_a_picture_saved_anew_is_found_by_its_pixels(tmp_path: Path) -> None:
    root = flickr_csv(tmp_path)
    with Image.open(root / "images" / "a.png") as image:
        image.save(root / "images" / "b.png", compress_level=1)
    (root / "train.txt").write_text("a.png\n")
    (root / "dev.txt").write_text("b.png\n")
    (root / "test.txt").write_text("c.png\n")
    assert (root / "images" / "a.png").read_bytes() != (root / "images" / "b.png").read_bytes()
    dataset = Dataset.open(root)
    with pytest.raises(LeakError, match=r"a.png on train.* are one picture|b.png on validation and a.png on train"):
        dataset.refuse_saved_anew(10**6)


def test_the_fingerprint_tells_pictures_captions_and_sides(tmp_path: Path) -> None:
    path = many(tmp_path / "a", 20)
    whole = Dataset.open(path).fingerprint
    assert whole["pictures"] == {"train": 14, "validation": 2, "test": 4}
    assert whole["captions"] == whole["pictures"]
    assert Dataset.open(path).fingerprint == whole
    assert Dataset.open(path, seed=3).fingerprint["sha256"] != whole["sha256"]
    path.write_text(path.read_text().replace("picture 3", "picture three"))
    assert Dataset.open(path).fingerprint["sha256"] != whole["sha256"]


def test_synthetic_scenes_differ_and_their_data_set_can_be_trained_on(tmp_path: Path) -> None:
    config = SyntheticConfig(num_pictures=60, size=48)
    made = scenes(config)
    assert len({frozenset(scene) for scene in made}) == 60
    said = write_dataset(config, tmp_path / "made")
    assert said == {"pictures": {"test": 10, "dev": 10, "train": 40}, "captions": 180}
    dataset = Dataset.open(tmp_path / "made").for_training()
    captions = [caption for pairs in dataset.sides.values() for pair in pairs for caption in pair.captions]
    assert len(set(captions)) == len(captions)
    with pytest.raises(DataError, match="exists"):
        write_dataset(config, tmp_path / "made")
    with pytest.raises(ConfigError, match="not 20000 different scenes"):
        scenes(SyntheticConfig(num_pictures=20_000, two=0.0))
