"""The debug recipe learns what a fixed rule does not know, and parts of the line agree with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import complete_box_iou_loss

from core.errors import ConfigError
from core.inference.session import TorchSession
from verticals.manufacturing.boxes import boxes_of, overlap
from verticals.manufacturing.golden import GateConfig
from verticals.manufacturing.pcb.assignment import assign
from verticals.manufacturing.pcb.augment import turned
from verticals.manufacturing.pcb.config import debug
from verticals.manufacturing.pcb.data import visible
from verticals.manufacturing.pcb.evaluation import thresholds_of
from verticals.manufacturing.pcb.model import STRIDES, PcbDetector, TileForm
from verticals.manufacturing.pcb.predictor import PcbPredictor, Request
from verticals.manufacturing.pcb.synthetic import CLASSES, SyntheticConfig, make_board
from verticals.manufacturing.pcb.task import complete_overlap


def test_the_debug_recipe_finds_most_defects(trained: tuple[Path, dict[str, Any]]) -> None:
    """The baseline: a detector that knows every place and guesses the class of six."""
    figures = trained[1]["figures"]
    assert figures["map50"]["value"] > 0.5
    assert figures["map50"]["n"] == 4


def test_what_a_defect_changed_lies_in_its_box() -> None:
    config = SyntheticConfig(shape=(400, 500), clean=0.0, noise=0.0)
    for seed in range(5):
        made = make_board(config, seed, num_defects=12)
        clean = make_board(config, seed, num_defects=0)
        differs = np.abs(made.picture.astype(int) - clean.golden.astype(int))[..., 0] > 60
        inside = np.zeros_like(differs)
        for x1, y1, x2, y2 in made.boxes.corners.astype(int):
            assert differs[y1:y2, x1:x2].any()
            inside[y1:y2, x1:x2] = True
        assert not (differs & ~inside).any()
        assert set(made.boxes.classes.tolist()) == set(range(len(CLASSES)))


@pytest.mark.parametrize("number", range(8))
def test_boxes_go_with_their_tile(number: int) -> None:
    tile = np.zeros((64, 64, 1), np.uint8)
    tile[10:20, 30:60] = 255
    after, boxes = turned(tile, boxes_of([[30, 10, 60, 20]], [0]), number)
    x1, y1, x2, y2 = boxes.corners[0].astype(int)
    assert after[y1:y2, x1:x2].min() == 255
    assert int((after > 0).sum()) == (y2 - y1) * (x2 - x1)


def test_what_a_tile_shows_too_little_of_is_left_out() -> None:
    boxes = boxes_of([[-30, 0, 10, 20], [-10, 0, 30, 20], [-500, 5, 40, 10], [70, 0, 90, 10]], [0, 1, 2, 3])
    shown = visible(boxes, (64, 64), 0.3)
    assert shown.classes.tolist() == [1, 2]  # a long one is shown where its whole width is
    assert shown.corners.tolist() == [[0, 0, 30, 20], [0, 5, 40, 10]]


def test_the_overlap_loss_is_torchvisions() -> None:
    random = torch.Generator().manual_seed(0)
    one, other = (torch.rand(50, 4, generator=random) * 50 for _ in range(2))
    one, other = (torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:] + 1), 1) for boxes in (one, other))
    theirs = complete_box_iou_loss(one, other)
    torch.testing.assert_close(1 - complete_overlap(one, other), theirs, atol=1e-4, rtol=1e-4)


def test_every_drawn_box_has_an_anchor_that_answers_for_it() -> None:
    network = PcbDetector(3, num_channels=1, width=0.125).eval()
    with torch.no_grad():
        raw = network(torch.zeros(1, 1, 128, 128, dtype=torch.uint8))
    drawn = torch.tensor([[[10.0, 10, 13, 13], [40, 40, 100, 90], [3, 100, 120, 106], [0, 0, 0, 0]]])
    classes, is_box = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[True, True, True, False]])
    reach = 3 * raw.places[:, 2:]
    boxes = torch.cat((raw.places[:, :2] - reach, raw.places[:, :2] + reach), 1)[None]
    found = assign(raw.logits.sigmoid(), boxes, raw.places, drawn, classes, is_box)
    assert set(found.box[found.weight > 0].tolist()) == {0, 1, 2}
    for place in range(3):  # the best anchor of a box weighs as much as it overlaps
        fit = overlap(drawn[0, place].numpy(), boxes[0].numpy())
        weight = found.weight[0][(found.box[0] == place) & (found.weight[0] > 0)]
        assert 0 < float(weight.max()) <= fit.max() + 1e-5


def test_a_tile_has_an_anchor_at_every_stride_and_timm_is_an_alternative() -> None:
    form = TileForm(PcbDetector(2, num_channels=2, tile=96, width=0.125).eval())
    logits, boxes = form(torch.zeros(3, 2, 96, 96, dtype=torch.uint8))
    count = sum((96 // stride) ** 2 for stride in STRIDES)
    assert (tuple(logits.shape), tuple(boxes.shape)) == ((3, count, 2), (3, count, 4))
    other = PcbDetector(2, num_channels=2, tile=96, backbone="mobilenetv3_small_050").eval()
    assert other(torch.zeros(1, 2, 96, 96, dtype=torch.uint8)).logits.shape == (1, count, 2)
    with pytest.raises(ConfigError, match="multiples of 32"):
        PcbDetector(2, tile=100)
    with pytest.raises(ConfigError, match="no_such_net"):
        PcbDetector(2, backbone="no_such_net")


def test_thresholds_keep_the_escape_rate() -> None:
    drawn = [boxes_of([[0, 0, 10, 10]], [0]) for _ in range(10)]
    found = [boxes_of([[0, 0, 10, 10]], [0], [(number + 1) / 10]) for number in range(10)]
    (threshold,) = thresholds_of(found, drawn, ["a"], escape=0.2).values()
    assert sum(boxes.scores[0] < threshold for boxes in found) == 2
    assert thresholds_of(found, drawn, ["a"], escape=0.05)["a"] < 0.1
    assert thresholds_of(found, drawn, ["a", "b"], escape=0.2)["b"] == 0.5


def test_the_gate_skips_clean_tiles_and_the_verdict_of_a_clean_board_is_pass() -> None:
    config = debug().override(["predict.gate={}", "predict.tile=128"])
    made = {"classes": list(CLASSES), "thresholds": dict.fromkeys(CLASSES, 0.0)}
    network = PcbDetector(len(CLASSES), num_channels=2, tile=128, width=0.125)
    predictor = PcbPredictor(config, made, TorchSession(TileForm(network)))
    synthetic = SyntheticConfig(shape=(600, 600), clean=1.0)
    clean = make_board(synthetic, 0)
    (answer,) = predictor([Request(clean.picture, clean.golden)])
    assert (answer.verdict, answer.num_skipped) == ("pass", answer.num_tiles)
    spoiled = make_board(synthetic.model_copy(update={"clean": 0.0}), 0, num_defects=2)
    (answer,) = predictor([Request(spoiled.picture, spoiled.golden)])
    assert 0 < answer.num_tiles - answer.num_skipped <= 12
    assert isinstance(config.predict.gate, GateConfig)
