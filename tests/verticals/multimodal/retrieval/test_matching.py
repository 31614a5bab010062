"""The matching head is what its formula says, pair by pair; what it finds again is ordered before the rest; chances are fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from core.errors import ConfigError
from core.inference.model import config_of, network_of
from core.inference.parts import torch_session
from core.run import Run
from tests.verticals.multimodal.made import caption, other_scenes, png
from verticals.multimodal.collection import Collection, Entry
from verticals.multimodal.retrieval import APPLICATION
from verticals.multimodal.retrieval.config import debug
from verticals.multimodal.retrieval.data import RetrievalData
from verticals.multimodal.retrieval.encoders import VisionFeatures
from verticals.multimodal.retrieval.evaluation import AGAIN, Evaluation
from verticals.multimodal.retrieval.heads import CROWD, CROWD_SCALE, Crowd, HeadConfig, PictureHead
from verticals.multimodal.retrieval.matching import MatchConfig, MatchHead, fitted
from verticals.multimodal.retrieval.model import RetrievalNet, pair_form
from verticals.multimodal.retrieval.predictor import Request, RetrievalPredictor

SIDE, CHANNELS, WIDTH = 5, 6, 8


def head(grid: int = 2) -> MatchHead:
    torch.manual_seed(0)
    picture = PictureHead(CHANNELS, 0, WIDTH, HeadConfig())
    made = MatchHead(SIDE, CHANNELS, picture, WIDTH, MatchConfig(grid=grid, num_channels=8)).eval()
    for parameter in made.parameters():  # not as they begin, where some are 0
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def seen(count: int) -> VisionFeatures:
    return VisionFeatures(torch.randn(count, CHANNELS), torch.randn(count, SIDE**2, CHANNELS), torch.zeros(count, 0))


def test_squares_are_the_mean_of_the_places_that_they_cover() -> None:
    for side, grid in ((13, 4), (7, 7), (5, 2), (3, 1)):
        squares = MatchHead(side, 3, PictureHead(2, 0, 4, HeadConfig()), 4, MatchConfig(grid=grid)).squares
        places = torch.randn(1, 3, side, side)
        expected = F.adaptive_avg_pool2d(places, grid).flatten(2)
        assert torch.allclose(squares @ places.flatten(2).transpose(1, 2), expected.transpose(1, 2), atol=1e-5)


@torch.no_grad()
def test_each_pair_is_the_loop_over_words_and_places() -> None:
    made, features = head(), seen(3)
    words, mask = torch.randn(4, 5, WIDTH), torch.arange(5) < torch.tensor([[5], [3], [1], [4]])
    made.mean.copy_(torch.randn(WIDTH))
    places = made.places(features)
    found = made(places, words, mask)
    assert found.abs().max() <= 1 + 1e-5
    for picture in range(3):
        for text in range(4):
            total, weights = [], []
            for word in words[text, mask[text]]:
                moved = word - made.mean
                moved = moved + made.moved(moved)
                query = F.normalize(made.query(moved), dim=0)
                keys = F.normalize(made.key(made.norm_key(places[picture])), dim=1)
                looked = (keys @ query * made.attention.exp()).softmax(0) @ places[picture]
                total.append(F.cosine_similarity(moved, looked, dim=0))
                weights.append(made.weight(moved)[0])
            expected = (torch.stack(weights).softmax(0) * torch.stack(total)).sum()
            assert found[picture, text] == pytest.approx(float(expected), abs=1e-4)


@torch.no_grad()
def test_padding_of_words_says_nothing() -> None:
    made = head()
    places, words = made.places(seen(2)), torch.randn(1, 3, WIDTH)
    alone = made(places, words, torch.ones(1, 3, dtype=torch.bool))
    padded = made(places, F.pad(words, (0, 0, 0, 4), value=9.0), torch.arange(7)[None] < 3)
    assert torch.allclose(alone, padded, atol=1e-6)


def test_with_one_place_it_compares_each_word_with_the_whole() -> None:
    made = head(grid=1)
    places, words = made.places(seen(1)), torch.randn(1, 1, WIDTH)
    moved = words[0, 0] + made.moved(words[0, 0])
    found = made(places, words, torch.ones(1, 1, dtype=torch.bool))
    assert found.item() == pytest.approx(F.cosine_similarity(moved, places[0, 0], dim=0).item(), abs=1e-5)


def test_a_grid_that_the_encoder_does_not_have() -> None:
    config = debug().override(["model.match.grid=5"])
    encoders = RetrievalData(config).encoders
    with pytest.raises(ConfigError, match="gives 4 places"):
        RetrievalNet(encoders.vision, encoders.text, config.model)


def test_a_level_is_the_mean_of_exponentials_over_the_crowd() -> None:
    crowd = Crowd(6)
    others, rows = (F.normalize(torch.randn(count, 6), dim=1) for count in (40, 3))
    assert torch.allclose(crowd(rows), torch.zeros(3), atol=1e-6)  # before there is one
    crowd.gather(others)
    taken = others[torch.arange(CROWD) % 40]
    expected = (CROWD_SCALE * rows @ taken.T).exp().mean(1).log() / CROWD_SCALE
    assert torch.allclose(crowd(rows), expected, atol=1e-5)
    crowd.gather(rows[:1])  # all alike
    assert crowd(rows[:1]).item() == pytest.approx(1, abs=1e-5)


def judged(weight: float, crowd: float = 0.0) -> Evaluation:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(150 + 300, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    owner = np.repeat(np.arange(150), 2)
    matches = random.uniform(-1, 1, (150, 300)).astype(np.float32)
    levels = random.uniform(0, 1, 150), random.uniform(0, 1, 300)
    return Evaluation("test", [""] * 150, vectors[:150], vectors[150:], owner, matches, levels, (weight, crowd))


@pytest.mark.parametrize(("weight", "crowd"), [(0.0, 0.0), (0.7, 0.0), (0.0, 1.0), (0.7, 0.5)])
def test_ranks_are_a_loop_over_the_first_hundred_and_then_the_rest(weight: float, crowd: float) -> None:
    made = judged(weight, crowd)
    assert made.matches is not None
    scores = (made.similarity + weight * made.matches) / (1 + weight)
    scores = scores - crowd * (made.levels[0][:, None] + made.levels[1])
    for picture in range(0, 150, 7):
        order = np.argsort(-made.similarity[picture], kind="stable")
        first = sorted(order[:AGAIN], key=lambda text: -scores[picture, text])
        place = min([*first, *order[AGAIN:]].index(own) for own in np.flatnonzero(made.owner == picture))
        assert made.ranks.to_text[picture] == place
    for text in range(0, 300, 11):
        order = np.argsort(-made.similarity[:, text], kind="stable")
        first = sorted(order[:AGAIN], key=lambda picture: -scores[picture, text])
        assert made.ranks.to_picture[text] == [*first, *order[AGAIN:]].index(made.owner[text])


def test_the_best_weight_is_none_for_noise_and_some_for_what_knows() -> None:
    made = judged(0.0)
    own = np.arange(150)[:, None] == made.owner
    made.matches = own.astype(np.float32)
    assert made.best_weights[0] > 0
    assert made.ranks_by(*made.best_weights).to_picture.mean() < made.ranks_by(0, 0).to_picture.mean()
    wrong = judged(0.0)
    wrong.matches = -own.astype(np.float32)
    assert wrong.best_weights[0] == 0


def test_chances_are_even_where_own_and_others_are_as_many() -> None:
    random = np.random.default_rng(0)
    own = random.random(4000) < 0.1
    curve = fitted(random.normal(np.where(own, 0.6, 0.2), 0.1).astype(np.float32), own)
    assert curve["middle"] == pytest.approx(0.4, abs=0.02)
    assert curve["slope"] == pytest.approx(0.4 / 0.1**2, rel=0.2)


@pytest.fixture(scope="module")
def network(trained: tuple[Path, dict[str, Any]]) -> RetrievalNet:
    made: RetrievalNet = network_of(APPLICATION, Path(trained[1]["run"]))
    return made.eval()


def predictor(
    trained: tuple[Path, dict[str, Any]], network: RetrievalNet, weight: float, crowd: float = 0.0
) -> RetrievalPredictor:
    run = Path(trained[1]["run"])
    constants = Run(run).read_json("constants.json")
    constants["match"] |= {"weight": weight, "crowd": crowd}
    return RetrievalPredictor(
        config_of(APPLICATION, run),
        constants,
        torch_session(pair_form(network)),
        version=f"20260101t00000{weight:.0f}-00000001",
    )


def test_a_score_is_the_cosine_and_the_heads_word(trained: tuple[Path, dict[str, Any]], network: RetrievalNet) -> None:
    scene = other_scenes(1)[0]
    from core.data.pictures import read_picture

    request = Request(read_picture(png(scene), num_channels=3), caption(scene))
    (plain,) = predictor(trained, network, 0)([request])
    assert plain.places is None
    assert plain.score == pytest.approx(float(plain.picture @ plain.text), abs=1e-6)  # type: ignore[operator]
    again = predictor(trained, network, 2, 0.5)
    (answer,) = again([request])
    match = again.matches(answer.places[None], [answer])[0, 0]  # type: ignore[index]
    levels = answer.picture_level + answer.text_level
    assert answer.picture_level != 0
    assert answer.text_level != 0
    assert answer.score == pytest.approx((plain.score + 2 * match) / 3 - 0.5 * levels, abs=1e-5)
    assert answer.chance == again.chance(answer.score)  # type: ignore[arg-type]


def test_a_collection_orders_what_a_text_finds_by_both(
    trained: tuple[Path, dict[str, Any]], network: RetrievalNet, tmp_path: Path
) -> None:
    made = other_scenes(30)
    model = predictor(trained, network, 2, 0.5)
    live = [model]
    collection = Collection(tmp_path, lambda: live[0], most_pixels=10**6, kept_pixels=128)
    collection.open(model)
    try:
        collection.add([Entry(png(scene), f"s{place}") for place, scene in enumerate(made)])
        for scene in made[:5]:
            _by_hand(collection, model, caption(scene), made)
        labels = ["red circle", "blue square"]
        found, _ = collection.classify(png(made[0]), labels, template="a {}")
        for one in found:
            assert one.score == pytest.approx(collection.match(png(made[0]), f"a {one.label}")[0].score, abs=1e-4)
        plain = predictor(trained, network, 0)  # the next model has no such head: the index moves to it
        collection.open(plain)
        live[0] = plain
        hits, _, _ = collection.search(text=caption(made[0]), count=5)
        assert all(hit.detail is not None and len(hit.detail) == 1 + plain.width for hit in hits)
        live[0] = back = predictor(trained, network, 3, 1.0)
        collection.open(back)
        _by_hand(collection, back, caption(made[3]), made)
    finally:
        collection.close()


def _by_hand(collection: Collection, model: RetrievalPredictor, text: str, scenes_: list[Any]) -> None:
    from core.data.pictures import read_picture

    hits, _, _ = collection.search(text=text, count=30)
    kept = [collection.get(f"s{place}") for place in range(30)]
    expected = {}
    for place, item in enumerate(kept):
        assert item.detail is not None
        (answer,) = model([Request(read_picture(png(scenes_[place]), num_channels=3), text)])
        expected[item.id] = answer.score
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    moved = model.version.startswith("20260101t000003")  # encoded again from what is kept of the pictures
    for hit in hits:
        assert hit.score == pytest.approx(expected[hit.id], abs=0.2 if moved else 2e-3)
