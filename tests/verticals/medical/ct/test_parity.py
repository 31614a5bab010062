"""The gate names what an artifact does otherwise to a scan: its Hounsfield units, its axes, its mask's place."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.contract import Application
from core.inference.model import config_of, network_of
from core.inference.parity import Report, Side, compare
from core.inference.session import TorchSession
from core.run import Run
from pipelines.export import export
from pipelines.train import train
from verticals.medical.ct import APPLICATION
from verticals.medical.ct.config import CtConfig
from verticals.medical.ct.data import CtData
from verticals.medical.ct.predictor import CtPredictor, Segmentation
from verticals.medical.volume import Grid, Volume

SETTINGS = [
    "fit.epochs=5",
    "data.synthetic.num_cases=6",
    "data.synthetic.spacing_mm=[6,6]",  # cubes: a turned scan holds the same voxels
    "plan.spacing_mm=[6,6,6]",
    "plan.windows_hu=[[-160,240]]",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the debug recipe, cut short: it finds every organ."""
    runs = str(tmp_path_factory.mktemp("runs"))
    return Path(train("medical.ct", recipe="debug", settings=SETTINGS, runs=runs, alias="none")["run"])


@pytest.fixture(scope="module")
def data(run: Path) -> CtData:
    return CtData(config_of(APPLICATION, run))


Change = Callable[[dict[str, Any]], object]
ARTIFACT = "artifact"


def compared(
    run: Path,
    data: CtData,
    *,
    predictor: type[CtPredictor] = CtPredictor,
    constants: Change = lambda made: None,
) -> Report:
    """The gate's report on an artifact of the same network behind another predictor or other constants."""

    def made(config: CtConfig, record: Mapping[str, Any], session: Any, *, version: str) -> CtPredictor:
        return (predictor if version == ARTIFACT else CtPredictor)(config, record, session, version=version)

    app: Application = dataclasses.replace(APPLICATION, predictor=made)
    config, true = config_of(app, run), Run(run).read_json("constants.json")
    given = json.loads(json.dumps(true))
    constants(given)
    session = TorchSession(network_of(app, run))
    sides = Side("original", config, true, session), Side(ARTIFACT, config, given, session)
    return compare(app, *sides, data, "test", precision="float32").report


def said(report: Report, stage: str) -> list[str]:
    assert not report.passed
    return [line.partition(": ")[2] for line in report.findings if line.startswith(f"{stage}: ")]


def test_what_agrees_passes_and_counts_scans(run: Path, data: CtData) -> None:
    report = compared(run, data)
    assert report.findings == []
    assert report.samples == len(data.samples("test")) == 1
    assert len(report.answers["mask"]["labels"]) >= 2
    assert report.answers["centroid_mm"]["difference"] == 0


@pytest.mark.parametrize(
    ("format", "precision"), [("onnx", "float32"), ("openvino", "float32"), ("openvino", "bfloat16")]
)
def test_a_sound_export_passes(run: Path, tmp_path: Path, format: str, precision: str) -> None:
    made = export(str(run), format=format, precision=precision, output=str(tmp_path / "artifact"))
    report = made["parity"]
    assert report["passed"]
    assert report["samples"] == 1
    assert 0 < report["tensors"]["logits"]["error"] <= APPLICATION.limits[precision].tensor
    assert set(report["answers"]) == {"centroid_mm", "volume_ml", "mask"}


def test_hounsfield_units_centred_otherwise_in_the_constants(run: Path, data: CtData) -> None:
    def change(made: dict[str, Any]) -> None:
        made["plan"]["hu_mean"] += 1024

    report = compared(run, data, constants=change)
    (line,) = said(report, "constants")
    assert line.startswith("plan.hu_mean is ")
    (line,) = said(report, "prepare")
    assert line.startswith("image is the original plus -")
    assert line.endswith("it is centred otherwise")
    assert not said(report, "network")


class Shifted(CtPredictor):
    """Stored values for Hounsfield units: the intercept was forgotten."""

    offset = 1024

    def __call__(self, requests: Sequence[Volume], **options: Any) -> list[Segmentation]:
        moved = [Volume((volume.array + self.offset).astype(np.int16), volume.grid) for volume in requests]
        return super().__call__(moved, **options)


class LittleShifted(Shifted):
    offset = 60


class Scaled(CtPredictor):
    """A slope that was applied twice."""

    def __call__(self, requests: Sequence[Volume], **options: Any) -> list[Segmentation]:
        doubled = [Volume((2 * volume.array).clip(-1024, 3071).astype(np.int16), volume.grid) for volume in requests]
        return super().__call__(doubled, **options)


@pytest.mark.parametrize(
    ("predictor", "words"),
    [
        (Shifted, "image holds its largest value in "),
        (LittleShifted, "it is centred otherwise before it is clipped"),
        (Scaled, "it is scaled otherwise before it is clipped"),
    ],
)
def test_hounsfield_units_prepared_otherwise(run: Path, data: CtData, predictor: type[CtPredictor], words: str) -> None:
    report = compared(run, data, predictor=predictor)
    assert not said(report, "constants")
    (line,) = said(report, "prepare")
    assert words in line
    if predictor is LittleShifted:
        std = float(Run(run).read_json("constants.json")["plan"]["hu_std"])
        shift = float(line.removeprefix("image is the original plus ").partition(":")[0])
        assert shift * std == pytest.approx(60, rel=0.02)
    assert not said(report, "network")


class Transposed(CtPredictor):
    """An affine whose first two columns stand in each other's place."""

    def __call__(self, requests: Sequence[Volume], **options: Any) -> list[Segmentation]:
        answers = super().__call__(
            [Volume(one.array, Grid(one.grid.shape, _exchanged(one))) for one in requests], **options
        )
        return [_on(answer, volume) for answer, volume in zip(answers, requests, strict=True)]


def _exchanged(volume: Volume) -> np.ndarray:
    return volume.grid.affine[:, [1, 0, 2, 3]]


class Flipped(CtPredictor):
    """DICOM's LPS taken for RAS: an affine whose first two rows are negated."""

    def __call__(self, requests: Sequence[Volume], **options: Any) -> list[Segmentation]:
        moved = [
            Volume(one.array, Grid(one.grid.shape, np.diag([-1.0, -1, 1, 1]) @ one.grid.affine)) for one in requests
        ]
        answers = super().__call__(moved, **options)
        return [_on(answer, volume) for answer, volume in zip(answers, requests, strict=True)]


def _on(answer: Segmentation, volume: Volume) -> Segmentation:
    return answer._replace(mask=Volume(answer.mask.array, volume.grid))


@pytest.mark.parametrize(
    ("predictor", "words"),
    [(Transposed, ["axes exchanged: axis ", " holds axis "]), (Flipped, ["is mirrored along axes 0 and 1"])],
)
def test_an_affine_that_is_transposed_or_flipped(
    run: Path, data: CtData, predictor: type[CtPredictor], words: list[str]
) -> None:
    report = compared(run, data, predictor=predictor)
    (line,) = said(report, "prepare")
    assert all(word in line for word in words), line
    assert not said(report, "network")
    assert any("centroid_mm" in line for line in said(report, "finish"))


class Mirrored(CtPredictor):
    """A mask that is mirrored when it is brought back."""

    axis = 2

    def __call__(self, requests: Sequence[Volume], **options: Any) -> list[Segmentation]:
        answers = super().__call__(requests, **options)
        masks = [np.ascontiguousarray(np.flip(answer.mask.array, self.axis)) for answer in answers]
        return [
            answer._replace(mask=Volume(mask, answer.mask.grid)) for answer, mask in zip(answers, masks, strict=True)
        ]


def test_a_mask_mirrored_at_the_end(run: Path, data: CtData) -> None:
    report = compared(run, data, predictor=Mirrored)
    assert not said(report, "prepare")
    assert not said(report, "network")
    lines = said(report, "finish")
    assert any(line.startswith("mask share unlike") and line.endswith("it is mirrored along axis 2") for line in lines)
    assert any(line.startswith("centroid_mm differs by ") for line in lines)
    assert any("dice falls" in line for line in said(report, "score"))
