from __future__ import annotations

import copy
import json
import re
import tracemalloc

import numpy as np
import pydicom
import pytest

from core.errors import ConfigError, DataError, Unavailable
from tests.verticals.medical.answers import BALLS, LABELS, grid_of, mask_on, scan_on, series_in
from verticals.medical import answer as module
from verticals.medical.answer import FRAME_BYTES, answer_bytes, write_answer
from verticals.medical.dicom.rtstruct_read import read_rtstruct
from verticals.medical.dicom.seg_check import read_back
from verticals.medical.dicom.series import Series, read_series
from verticals.medical.dicom.source import GeometryError
from verticals.medical.dicom.write import write_series
from verticals.medical.labels import structures
from verticals.medical.nifti import read_labels
from verticals.medical.volume import Grid, Volume

STRUCTURES = structures(LABELS, {"lens_left": "78076003"})
MODEL = {"algorithm": "debug model", "version": "1.2"}
ALL = {"answer.json", "mask.nii.gz", "preview.png", "rtstruct.dcm", "seg.dcm"}


@pytest.fixture(scope="module")
def tilted(tmp_path_factory):
    return series_in(tmp_path_factory.mktemp("tilted"), "tilted")


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_all_formats_tell_the_same(tmp_path, tilted):
    series, mask = tilted
    folder = tmp_path / "deep" / "answer"
    answer = write_answer(series, mask, STRUCTURES, folder, **MODEL)
    assert names(folder) == set(answer.files) == ALL
    assert names(folder.parent) == {"answer"}
    record = json.loads((folder / "answer.json").read_text())
    assert record["empty"] == list(answer.empty) == ["lens_left"]
    assert record["uncoded"] == []
    assert (record["algorithm"], record["version"]) == ("debug model", "1.2")
    assert "RESEARCH USE ONLY" in record["notice"]
    stored = read_labels(folder / "mask.nii.gz")
    segments = read_back(folder / "seg.dcm", mask.grid)
    contours = read_rtstruct(folder / "rtstruct.dcm", mask.grid, series.sources)
    assert [one["name"] for one in record["structures"]] == ["kidney_right", "kidney_left", "SpinalCord"]
    for one in record["structures"]:
        count = int((mask.array == one["number"]).sum())
        centre, radius = BALLS[one["number"]]
        assert one["voxels"] == count == segments[one["name"]][1] == contours[one["name"]].array.sum()
        assert one["voxels"] == (stored.array == one["number"]).sum()
        assert one["volume_ml"] == pytest.approx(count * 2 * 2.5 * 3 / 1000, abs=1e-4)  # a shear keeps the volume
        assert one["volume_ml"] == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.05)
        assert one["centroid_mm"] == pytest.approx(centre, abs=1)
        assert stored.centroid_mm(one["number"]) == pytest.approx(one["centroid_mm"], abs=1e-2)
        assert segments[one["name"]][0] == pytest.approx(one["centroid_mm"], abs=1e-2)
    assert record["structures"][0]["side"] == "right"
    assert record["structures"][0]["code"] == "SCT:64033007"


def test_the_record_and_the_names_hold_no_patient(tmp_path, tilted):
    series, mask = tilted
    write_answer(series, mask, STRUCTURES, tmp_path / "answer", **MODEL)
    source = series.sources[0]
    text = (tmp_path / "answer/answer.json").read_text() + str(names(tmp_path / "answer"))
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "StudyDate",
    ):
        assert str(source[keyword].value) not in text


def test_a_scan_without_dicom_has_no_dicom_answer(tmp_path):
    grid = grid_of("oblique")
    answer = write_answer(scan_on(grid), mask_on(grid), STRUCTURES, tmp_path / "answer", **MODEL)
    assert set(answer.files) == names(tmp_path / "answer") == {"mask.nii.gz", "preview.png", "answer.json"}
    with pytest.raises(ConfigError, match=r"\['seg'\] refer to the slices of a DICOM series"):
        write_answer(scan_on(grid), mask_on(grid), STRUCTURES, tmp_path / "other", formats=["seg", "nifti"], **MODEL)
    with pytest.raises(ConfigError, match=r"formats \['stl'\]; allowed are \['nifti', 'seg', 'rtstruct', 'preview'\]"):
        write_answer(scan_on(grid), mask_on(grid), STRUCTURES, tmp_path / "other", formats=["stl"], **MODEL)
    assert names(tmp_path) == {"answer"}


@pytest.mark.parametrize("characters", ["ISO_IR 100", "ISO_IR 192", None])
def test_names_with_umlauts_stay_what_they_are(tmp_path, tilted, characters):
    series, mask = tilted
    sources = [copy.deepcopy(source) for source in series.sources]
    for source in sources:
        source.SpecificCharacterSet = characters
        source.PatientName = "Müller^Jürgen" if characters else "Mueller^Juergen"
    write_answer(Series(series.volume, sources), mask, STRUCTURES, tmp_path / "answer", **MODEL)
    for name in ("seg.dcm", "rtstruct.dcm"):
        assert pydicom.dcmread(tmp_path / "answer" / name).PatientName == sources[0].PatientName


def test_only_what_was_asked_for(tmp_path, tilted):
    series, mask = tilted
    write_answer(series, mask, STRUCTURES, tmp_path / "answer", formats=["seg"], **MODEL)
    assert names(tmp_path / "answer") == {"seg.dcm", "answer.json"}


def test_a_mask_that_holds_nothing_is_an_answer(tmp_path, tilted):
    series, mask = tilted
    empty = Volume(np.zeros_like(mask.array), mask.grid)
    answer = write_answer(series, empty, STRUCTURES, tmp_path / "answer", **MODEL)
    assert names(tmp_path / "answer") == {"mask.nii.gz", "preview.png", "answer.json"}
    assert answer.findings == ()
    assert answer.empty == ("kidney_right", "kidney_left", "SpinalCord", "lens_left")


def test_uncoded_names_are_listed(tmp_path, tilted):
    series, mask = tilted
    known = structures({"foo": 1, "liver": 2, "bar": 3})
    answer = write_answer(series, mask, known, tmp_path / "answer", formats=["seg"], **MODEL)
    assert answer.uncoded == ("foo", "bar")
    segments = pydicom.dcmread(tmp_path / "answer/seg.dcm").SegmentSequence
    assert [one.SegmentedPropertyTypeCodeSequence[0].CodeValue for one in segments] == [
        "91723000",
        "10200004",
        "91723000",
    ]


@pytest.mark.parametrize("step", ["verify", "verify_rtstruct", "write_preview", "write_nifti"])
def test_a_failure_leaves_nothing(tmp_path, tilted, monkeypatch, step):
    def fails(*_, **__):
        raise GeometryError("elsewhere")

    series, mask = tilted
    monkeypatch.setattr(module, step, fails)
    with pytest.raises(GeometryError):
        write_answer(series, mask, STRUCTURES, tmp_path / "answer", **MODEL)
    assert not list(tmp_path.iterdir())


def test_a_segmentation_that_lies_elsewhere_is_refused(tmp_path, tilted, monkeypatch):
    series, mask = tilted
    monkeypatch.setattr(
        module, "write_seg", lambda mask, sources, known, path, **options: wrong(mask, sources, known, path, options)
    )

    def wrong(mask, sources, known, path, options):
        from verticals.medical.dicom.seg import write_seg

        return write_seg(Volume(mask.array[:, ::-1], mask.grid), sources, known, path, **options)

    with pytest.raises(GeometryError, match="voxels from that of the mask's"):
        write_answer(series, mask, STRUCTURES, tmp_path / "answer", **MODEL)
    assert not list(tmp_path.iterdir())


def test_thick_slices_that_creep_are_answered(tmp_path):
    """Every step is within 1 %, and in the end slices lie more than half a pixel from an even stack: that is half a pixel across,
    a tenth of the distance of slices along."""
    affine = np.diag([0.43, 0.43, 5.0, 1.0])
    scan = scan_on(Grid((24, 24, 40), affine))
    write_series(scan, tmp_path / "series")
    for path in sorted((tmp_path / "series").iterdir()):
        dataset = pydicom.dcmread(path)
        place = float(dataset.ImagePositionPatient[2])
        dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], place + 0.04 * max(0.0, place / 5 - 20)]
        dataset.save_as(path)
    series = read_series(tmp_path / "series")
    array = np.zeros(series.volume.grid.shape, np.uint8)
    array[5:15, 5:15, 15:25] = 1
    mask = Volume(array, series.volume.grid)
    made = write_answer(series, mask, STRUCTURES, tmp_path / "answer", **MODEL)
    assert {"seg.dcm", "rtstruct.dcm"} <= set(made.files)


def test_memory_is_within_what_is_promised(tmp_path):
    def traced(name, shape, num_organs):
        grid = Grid(shape, np.diag([1.0, 1.0, 2.0, 1.0]))
        write_series(Volume(np.zeros(shape, np.int16), grid), tmp_path / name)
        series = read_series(tmp_path / name)
        array = np.zeros(series.volume.grid.shape, np.uint8)
        array[:num_organs, :4] = np.arange(1, num_organs + 1)[:, None, None]  # every organ in every slice
        known = structures({"background": 0} | {f"part {k}": k for k in range(1, num_organs + 1)})
        tracemalloc.start()
        write_answer(series, Volume(array, series.volume.grid), known, tmp_path / f"{name} answer", **MODEL)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak, answer_bytes(series.volume.grid, num_organs)

    traced("first", (8, 8, 2), 2)  # what is loaded when it is first used
    peaks = []
    for shape, num_organs in (((40, 40, 20), 25), ((40, 40, 80), 25), ((160, 160, 50), 2)):
        peak, promised = traced(f"{num_organs} in {shape[2]}", shape, num_organs)
        assert peak <= promised
        peaks.append(peak)
    assert 4_000 < (peaks[1] - peaks[0]) / (60 * 25) < FRAME_BYTES


def test_a_mask_of_specks_has_no_structure_set(tmp_path):
    """A network that knows nothing of a scan finds thousands of pieces: their contours would take what was promised many times."""
    grid = Grid((384, 384, 3), np.diag([1.0, 1.0, 2.0, 1.0]))
    write_series(Volume(np.zeros(grid.shape, np.int16), grid), tmp_path / "series")
    series = read_series(tmp_path / "series")
    array = np.zeros(series.volume.grid.shape, np.uint8)
    array[::4, ::4] = 1
    mask = Volume(array, series.volume.grid)
    tracemalloc.start()
    made = write_answer(series, mask, structures({"background": 0, "a": 1}), tmp_path / "answer", **MODEL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= answer_bytes(series.volume.grid, 1)
    assert "rtstruct.dcm" not in made.files
    assert {"seg.dcm", "mask.nii.gz"} <= set(made.files)
    (why,) = json.loads((tmp_path / "answer" / "answer.json").read_text())["left_out"].values()
    assert re.fullmatch(r"the mask has [\d,]+ contours in its first \d of 3 slices, .*; take the SEG or NIfTI", why)


def test_writing_can_be_ended_between_its_parts(tmp_path, tilted):
    class Ended(Exception):
        pass

    calls = []

    def tell():
        calls.append(len(calls))
        if len(calls) == 4:
            raise Ended

    series, mask = tilted
    with pytest.raises(Ended):
        write_answer(series, mask, STRUCTURES, tmp_path / "answer", tell=tell, **MODEL)
    assert not list(tmp_path.iterdir())


def test_a_full_disk(tmp_path, tilted, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", str(tmp_path / "secret"))

    series, mask = tilted
    monkeypatch.setattr(module, "write_preview", full)
    with pytest.raises(Unavailable, match="No space left on device") as caught:
        write_answer(series, mask, STRUCTURES, tmp_path / "answer", **MODEL)
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_requests_that_cannot_be(tmp_path, tilted):
    series, mask = tilted
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="exists already"):
        write_answer(series, mask, STRUCTURES, tmp_path / "there", **MODEL)
    with pytest.raises(DataError, match="type int64; allowed are uint8 and uint16"):
        write_answer(series, Volume(mask.array.astype(np.int64), mask.grid), STRUCTURES, tmp_path / "a", **MODEL)
    with pytest.raises(GeometryError, match="not on the scan's grid"):
        write_answer(series, mask_on(grid_of("axial")), STRUCTURES, tmp_path / "a", **MODEL)
    with pytest.raises(DataError, match="label 3, which no structure has"):
        write_answer(series, mask, structures({"a": 1, "b": 2}), tmp_path / "a", **MODEL)
    assert names(tmp_path) == {"there"}
