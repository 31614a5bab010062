"""Peers of the PCB benchmarks: torchvision's RetinaNet, a template difference, and SAHI's slices around a network of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from core.contract import Step
from verticals.manufacturing.boxes import Boxes, boxes_of
from verticals.manufacturing.golden import GateConfig, align, differences
from verticals.manufacturing.pcb.config import PcbConfig
from verticals.manufacturing.pcb.data import PcbData
from verticals.manufacturing.pcb.predictor import PcbPredictor, Request
from verticals.manufacturing.pcb.task import Batch

Detect = Callable[[Request], Boxes]
PEER_WIDTH = 64
"""Channels of the peer's pyramid and heads: with its backbone still more multiplications than our small network."""


class RetinaNet(nn.Module):
    """torchvision's, on a ResNet-18 that sees the template as further channels; anchors from 16 pixels on."""

    def __init__(self, num_classes: int, num_channels: int) -> None:
        super().__init__()
        from torchvision.models import resnet18
        from torchvision.models.detection import retinanet
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.backbone_utils import BackboneWithFPN
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        body = resnet18()
        body.conv1 = nn.Conv2d(num_channels, 64, 7, 2, 3, bias=False)
        backbone = BackboneWithFPN(
            body,
            {"layer2": "0", "layer3": "1", "layer4": "2"},
            [128, 256, 512],
            PEER_WIDTH,
            LastLevelP6P7(PEER_WIDTH, PEER_WIDTH),
        )
        sizes = tuple(tuple(int(side * 2 ** (step / 3)) for step in range(3)) for side in (16, 32, 64, 128, 256))
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
        self.net: Any = retinanet.RetinaNet(
            backbone,
            num_classes,
            anchor_generator=anchors,
            image_mean=[0.5] * num_channels,
            image_std=[0.5] * num_channels,
            _skip_resize=True,
        )
        self.to(memory_format=torch.channels_last)


class RetinaNetTask(nn.Module):
    """torchvision's own losses."""

    def __init__(self, model: RetinaNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Step:
        targets = [
            {"boxes": drawn[kinds >= 0], "labels": kinds[kinds >= 0]}
            for drawn, kinds in zip(batch.drawn, batch.classes, strict=True)
        ]
        losses = self.model.net(list(batch.picture.float() / 255), targets)
        return Step(sum(losses.values()), {name: value.detach() for name, value in losses.items()})


def find_retinanet(task: Any, config: PcbConfig, data: PcbData, device: torch.device) -> Detect:
    net = task.model.net.eval()

    @torch.inference_mode()
    def found(request: Request) -> Boxes:
        parts = [request.picture]
        if request.golden is not None:
            parts.append(align(request.picture, request.golden, search=config.predict.search).golden)
        picture = torch.from_numpy(np.concatenate(parts, 2).transpose(2, 0, 1).copy()).to(device).float() / 255
        (answer,) = net([picture])
        boxes = boxes_of(*(answer[name].cpu().numpy() for name in ("boxes", "labels", "scores")))
        return boxes.take(np.argsort(-boxes.scores, kind="stable"))

    return found


def difference(request: Request, classes: tuple[str, ...], *, dark: bool, margin: float = 10) -> Boxes:
    """The old way: what differs from the template, and what the copper's pieces say of it. The score is its size.

    Added copper is an island (copper), joins two pieces (short) or one (spur); missing copper is a hole (pin-hole), parts a
    piece (open) or bites into it (mousebite). Source: Wu, Wang and Liu 1996, the subtraction and classification of two-level pictures.

    Args:
        dark: whether copper is the darker level.
        margin: pixels that people leave around a defect (chosen on the validation pictures).
    """
    if request.golden is None:
        return boxes_of([], [])
    golden = align(request.picture, request.golden, search=32).golden
    board, twin = (((part[..., 0] > 127) ^ dark).astype(np.uint8) for part in (request.picture, golden))
    beyond = differences(request.picture, golden, GateConfig(least_pixels=4)).astype(np.uint8)
    differs = cv2.morphologyEx(beyond, cv2.MORPH_OPEN, np.ones((2, 2), np.uint8))
    joined = cv2.morphologyEx(differs, cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    number, labels, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    _, of_twin = cv2.connectedComponents(twin, connectivity=8)
    _, of_board = cv2.connectedComponents(board, connectivity=8)
    corners, kinds, scores = [], [], []
    for label in range(1, number):
        x, y, width, height = (int(value) for value in stats[label, :4])
        changed = (labels[y : y + height, x : x + width] == label) & (differs[y : y + height, x : x + width] > 0)
        size = int(changed.sum())
        if size < 12:
            continue
        around = slice(max(0, y - 4), y + height + 4), slice(max(0, x - 4), x + width + 4)
        added = float(board[y : y + height, x : x + width][changed].mean()) > 0.5
        met = np.unique(of_twin[around][(labels[around] != label) & (twin[around] > 0)])
        left = np.unique(of_board[around][(labels[around] != label) & (board[around] > 0)])
        if added:
            name = (
                "copper" if not _touches(labels[around] == label, twin[around]) else "short" if len(met) > 1 else "spur"
            )
        elif not _touches(labels[around] == label, 1 - twin[around]):
            name = "pin-hole"
        else:
            name = "open" if len(left) > len(met) else "mousebite"
        corners.append([x - margin, y - margin, x + width + margin, y + height + margin])
        kinds.append(classes.index(name))
        scores.append(1 - 1 / (1 + size / 50))
    found = boxes_of(corners, kinds, scores).within(*board.shape[::-1])
    return found.take(np.argsort(-found.scores, kind="stable"))


def _touches(part: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    grown = cv2.dilate(part.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    return bool((other[grown & ~part] > 0).any())


def by_sahi(predictor: PcbPredictor, request: Request, *, overlap: float) -> Boxes:
    """The same network on slices of the same size, put together by SAHI with its defaults."""
    from sahi.models.base import DetectionModel
    from sahi.predict import get_sliced_prediction
    from sahi.prediction import ObjectPrediction

    class Model(DetectionModel):
        def load_model(self) -> None:
            self.model = predictor

        def perform_inference(self, image: np.ndarray[Any, Any]) -> None:
            tile = np.ascontiguousarray(image[..., :2].transpose(2, 0, 1))[None]
            answer = predictor._session({"picture": tile})
            self._original_predictions = predictor._decoded(answer["logits"][0], answer["boxes"][0])

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None
        ) -> None:
            found = self._original_predictions
            self._object_prediction_list_per_image = [
                [
                    ObjectPrediction(
                        bbox=corners.tolist(),
                        category_id=int(kind),
                        category_name=predictor.classes[kind],
                        score=float(score),
                        shift_amount=shift_amount_list[0]
                        if isinstance(shift_amount_list[0], list)
                        else shift_amount_list,
                        full_shape=full_shape_list[0] if isinstance(full_shape_list[0], list) else full_shape_list,
                    )
                    for corners, kind, score in zip(found.corners, found.classes, found.scores, strict=True)
                ]
            ]

    assert request.golden is not None
    tile = int(predictor.inputs[0].shape[-1])
    golden = align(request.picture, request.golden, search=predictor.config.predict.search).golden
    image = np.concatenate((request.picture, golden, golden), axis=2)
    answer = get_sliced_prediction(
        image,
        Model(confidence_threshold=predictor.config.predict.least_score),
        slice_height=tile,
        slice_width=tile,
        overlap_height_ratio=overlap,
        overlap_width_ratio=overlap,
        perform_standard_pred=False,
        verbose=0,
    )
    rows = answer.object_prediction_list
    boxes = boxes_of([r.bbox.to_xyxy() for r in rows], [r.category.id for r in rows], [r.score.value for r in rows])
    return boxes.take(np.argsort(-boxes.scores, kind="stable"))
