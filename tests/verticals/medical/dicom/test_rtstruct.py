from __future__ import annotations

import copy
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.dataset import Dataset
from scipy import ndimage

from core.errors import DataError
from tests.verticals.medical.answers import BALLS, LABELS, ORIENTATIONS, series_in
from verticals.medical.dicom.rtstruct import polygons, write_rtstruct
from verticals.medical.dicom.rtstruct_read import read_rtstruct, verify_rtstruct
from verticals.medical.dicom.seg import write_seg
from verticals.medical.dicom.seg_check import read_back
from verticals.medical.dicom.series import read_series
from verticals.medical.dicom.source import GeometryError, planes
from verticals.medical.dicom.write import write_series
from verticals.medical.labels import structures
from verticals.medical.volume import Grid, Volume

STRUCTURES = structures(LABELS)
MODEL = {"algorithm": "debug model", "version": "1.2"}


@pytest.fixture(scope="module")
def axial(tmp_path_factory):
    return series_in(tmp_path_factory.mktemp("axial"))


@pytest.fixture
def written(tmp_path, axial):
    """A structure set that a test may change, its series and mask."""
    series, mask = axial
    path = tmp_path / "rtstruct.dcm"
    write_rtstruct(mask, series.sources, STRUCTURES, path, **MODEL)
    return path, series, mask


def inside(polygon: np.ndarray, column: float, row: float) -> bool:
    """The textbook's even-odd rule, one point and one edge at a time."""
    odd = False
    for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y1 > row) != (y2 > row) and column < (x2 - x1) * (row - y1) / (y2 - y1) + x1:
            odd = not odd
    return odd


def area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return float(abs((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2)


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7))))
def test_exactly_the_true_pixels_lie_inside_of_one_polygon(pixels):
    found = polygons(pixels)
    for column in range(pixels.shape[0]):
        for row in range(pixels.shape[1]):
            assert sum(inside(polygon, column, row) for polygon in found) == pixels[column, row]
    assert all(len(polygon) >= 3 for polygon in found)
    assert len(found) <= ndimage.label(pixels)[1]  # of parts joined by their edges: holes have no polygon of their own


def test_the_area_is_half_a_pixel_less_than_the_voxels():
    y, x = np.mgrid[:40, :50]
    disk = np.hypot(x - 25, y - 20) < 15
    (found,) = polygons(disk)
    assert area(found) == disk.sum() - 0.5
    ring = disk & ~(np.hypot(x - 27, y - 18) < 6) & ~(np.hypot(x - 15, y - 22) < 3)
    (found,) = polygons(ring)  # each hole is half a pixel smaller too
    assert area(found) == ring.sum() - 0.5 + 2 * 0.5


def test_straight_lines_have_two_points():
    (found,) = polygons(np.ones((20, 30), bool))
    assert len(found) == 8  # four sides, four cut corners


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_contours_give_the_mask_back(tmp_path, name):
    series, mask = series_in(tmp_path / "ct", name)
    mask.array[20:30, 12:20, 5:15] = 3  # a box with two holes, one of them filled by another structure
    mask.array[22:25, 14:17, 8:12] = 0
    mask.array[27:29, 15:18, 8:12] = 1
    path = tmp_path / "rtstruct.dcm"
    empty = write_rtstruct(mask, series.sources, STRUCTURES, path, **MODEL)
    assert [one.name for one in empty] == ["lens_left"]
    verify_rtstruct(path, mask, series.sources, STRUCTURES)
    found = read_rtstruct(path, series.volume.grid, series.sources)
    assert set(found) == {"kidney_right", "kidney_left", "SpinalCord"}
    for structure in STRUCTURES[:3]:
        assert np.array_equal(found[structure.name].array, mask.array == structure.number)


@pytest.mark.parametrize("name", ["coronal", "oblique", "tilted"])
def test_contours_lie_where_the_balls_are_in_the_patient(tmp_path, name):
    series, mask = series_in(tmp_path / "ct", name)
    path = tmp_path / "rtstruct.dcm"
    write_rtstruct(mask, series.sources, STRUCTURES, path, **MODEL)
    file = pydicom.dcmread(path)
    for number, drawn in enumerate(file.ROIContourSequence, 1):
        points = np.concatenate([np.array(one.ContourData, float).reshape(-1, 3) for one in drawn.ContourSequence])
        centre, radius = BALLS[number]
        off = np.linalg.norm(points * [-1, -1, 1] - np.array(centre), axis=1)
        assert off.max() < radius + 2.5
    planes_of = {one.SOPInstanceUID: plane for one, plane in zip(series.sources, planes(series.sources), strict=True)}
    for one in file.ROIContourSequence[1].ContourSequence:
        plane = planes_of[one.ContourImageSequence[0].ReferencedSOPInstanceUID]
        off = (np.array(one.ContourData, float).reshape(-1, 3) - plane.origin) @ plane.normal
        assert np.abs(off).max() < 1e-3


def test_coordinates_stay_bytes_until_they_are_written(tmp_path):
    grid = Grid((90, 90, 3), np.diag([-1.0, -1.0, 3.0, 1.0]))
    write_series(Volume(np.zeros(grid.shape, np.int16), grid), tmp_path / "ct")
    series = read_series(tmp_path / "ct")
    blobs = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=grid.shape), (1, 1, 0)) > 0
    mask = Volume(blobs.astype(np.uint8), series.volume.grid)
    tracemalloc.start()
    write_rtstruct(mask, series.sources, STRUCTURES, tmp_path / "rt.dcm", **MODEL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * (tmp_path / "rt.dcm").stat().st_size  # as pydicom's numbers: 55 times


def test_what_the_file_says(written):
    path, series, _ = written
    file, source = pydicom.dcmread(path), series.sources[0]
    assert file.file_meta.TransferSyntaxUID.is_implicit_VR
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate"):
        assert file[keyword].value == source[keyword].value
    assert "RESEARCH USE" in file.StructureSetLabel
    assert len(file.StructureSetLabel) <= 16
    for text in (file.SeriesDescription, file.StructureSetName, file.StructureSetDescription):
        assert "RESEARCH USE ONLY" in text
    assert file.ApprovalStatus == "UNAPPROVED"
    frame = file.ReferencedFrameOfReferenceSequence[0]
    assert frame.FrameOfReferenceUID == source.FrameOfReferenceUID
    referred = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == source.SeriesInstanceUID
    assert len(referred.ContourImageSequence) == len(series.sources)
    rois = file.StructureSetROISequence
    assert [(one.ROINumber, one.ROIName) for one in rois] == [
        (1, "kidney_right"),
        (2, "kidney_left"),
        (3, "SpinalCord"),
    ]
    assert {one.ROIGenerationAlgorithm for one in rois} == {"AUTOMATIC"}
    assert [list(map(int, one.ROIDisplayColor)) for one in file.ROIContourSequence] == [
        list(one.color) for one in STRUCTURES[:3]
    ]
    observed = file.RTROIObservationsSequence[0]
    assert observed.RTROIInterpretedType == "ORGAN"
    assert observed.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "91723000"
    code = observed.RTROIIdentificationCodeSequence[0]
    assert (code.CodeValue, code.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("64033007", "Right")
    for drawn in file.ROIContourSequence:
        for one in drawn.ContourSequence:
            assert one.ContourGeometricType == "CLOSED_PLANAR"
            assert len(one.ContourData) == 3 * one.NumberOfContourPoints


def test_a_finding_has_no_role_in_a_plan(tmp_path, axial):
    series, mask = axial
    known = structures({"tumor": 1, "kidney_left": 2, "ptv": 3})
    write_rtstruct(mask, series.sources, known, tmp_path / "rt.dcm", **MODEL)
    kinds = [one.RTROIInterpretedType for one in pydicom.dcmread(tmp_path / "rt.dcm").RTROIObservationsSequence]
    assert kinds == ["", "ORGAN", ""]


def test_an_empty_mask_is_an_outcome_without_a_file(tmp_path, axial):
    series, mask = axial
    empty = Volume(np.zeros_like(mask.array), mask.grid)
    assert write_rtstruct(empty, series.sources, STRUCTURES, tmp_path / "rt.dcm", **MODEL) is None
    assert not list(tmp_path.iterdir())


def test_a_refused_header_is_not_quoted_and_leaves_no_file(tmp_path, axial, monkeypatch):
    series, mask = axial

    def refused(_):
        raise ValueError("Miller^Jane is no value")

    monkeypatch.setattr("verticals.medical.dicom.source.software", refused)
    with pytest.raises(DataError, match="headers hold values that DICOM does not allow in a structure set") as caught:
        write_rtstruct(mask, series.sources, STRUCTURES, tmp_path / "rt.dcm", **MODEL)
    assert caught.value.__suppress_context__
    assert "Miller" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_nested_contours_are_holes(written):
    path, series, mask = written
    plane = planes(series.sources)[6]
    file = pydicom.dcmread(path)
    made = []
    for low, high in ((2.5, 20.5), (5.5, 12.5), (7.5, 9.5)):
        one = Dataset()
        one.ContourGeometricType = "CLOSED_PLANAR"
        square = plane.lps(np.array([(low, low), (high, low), (high, high), (low, high)]))
        one.ContourData = [f"{value:.3f}" for value in square.ravel()]
        made.append(one)
    file.ROIContourSequence[0].ContourSequence = made
    file.save_as(path)
    found = read_rtstruct(path, mask.grid, series.sources, names=["kidney_right"])["kidney_right"].array
    expected = np.zeros_like(found)
    expected[3:21, 3:21, 6] = True
    expected[6:13, 6:13, 6] = False
    expected[8:10, 8:10, 6] = True
    assert np.array_equal(found, expected)


def test_contours_that_leave_the_picture_are_cut_at_its_edge(written):
    path, series, mask = written
    file = pydicom.dcmread(path)
    plane = planes(series.sources)[3]
    one = copy.deepcopy(file.ROIContourSequence[0].ContourSequence[0])
    square = plane.lps(np.array([(-9.2, -7.3), (4.5, -7.3), (4.5, 99.0), (-9.2, 99.0)]))
    one.ContourData = [f"{value:.3f}" for value in square.ravel()]
    file.ROIContourSequence[0].ContourSequence = [one]
    file.save_as(path)
    found = read_rtstruct(path, mask.grid, series.sources, names=["kidney_right"])["kidney_right"].array
    assert found[:5, :, 3].all()
    assert found.sum() == 5 * mask.array.shape[1]


def test_points_are_left_out(written):
    path, series, mask = written
    file = pydicom.dcmread(path)
    one = Dataset()
    one.ContourGeometricType, one.ContourData = "POINT", ["1", "2", "3"]
    file.ROIContourSequence[0].ContourSequence = [one]
    file.save_as(path)
    assert set(read_rtstruct(path, mask.grid, series.sources)) == {"kidney_left", "SpinalCord"}


def change(file: Dataset, fault: str) -> None:
    contour = file.ROIContourSequence[0].ContourSequence[0]
    if fault == "open":
        contour.ContourGeometricType = "OPEN_PLANAR"
    elif fault == "off the slices":
        points = np.array(contour.ContourData, float).reshape(-1, 3) + np.array([0, 0, 1.1])
        contour.ContourData = [f"{value:.3f}" for value in points.ravel()]
    elif fault == "frame of reference":
        file.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"
    elif fault == "twice":
        file.StructureSetROISequence[1].ROIName = file.StructureSetROISequence[0].ROIName
    elif fault == "two points":
        contour.ContourData = contour.ContourData[:6]
    elif fault == "not in threes":
        contour.ContourData = contour.ContourData[:10]
    elif fault == "modality":
        file.Modality = "RTPLAN"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("open", "ROI 1 of 3 has contours of the type 'OPEN_PLANAR'; allowed are CLOSED_PLANAR"),
        ("off the slices", "contour 1 of .* of ROI 1 of 3 lies 1.1 mm off the nearest slice; allowed is 0.3 mm"),
        ("frame of reference", "ROI 1 of 3 has another frame of reference"),
        ("twice", "ROI 1 of 3 has a name that another one has too"),
        ("two points", "has 2 points; a closed contour has at least 3"),
        ("not in threes", "does not hold coordinates in threes"),
        ("modality", "no RT Structure Set"),
    ],
)
def test_structure_sets_that_cannot_be_read(written, fault, says):
    path, series, mask = written
    file = pydicom.dcmread(path)
    file.StructureSetROISequence[0].ROIName = "Miller left"
    change(file, fault)
    file.save_as(path)
    with pytest.raises(DataError, match=says) as caught:
        read_rtstruct(path, mask.grid, series.sources)
    assert "Miller" not in str(caught.value)
    assert str(path) not in str(caught.value)


def test_a_file_that_is_cut_short_is_never_read_as_a_smaller_one(written, tmp_path):
    path, series, mask = written
    whole = path.read_bytes()
    full = read_rtstruct(path, mask.grid, series.sources)
    for length in range(200, len(whole), len(whole) // 40):
        (tmp_path / "cut.dcm").write_bytes(whole[:length])
        try:
            found = read_rtstruct(tmp_path / "cut.dcm", mask.grid, series.sources)
        except DataError:
            continue
        assert all(np.array_equal(found[name].array, full[name].array) for name in full)


def test_a_name_that_is_not_there_and_files_that_are_none(written, tmp_path):
    path, series, mask = written
    with pytest.raises(DataError, match="3 ROIs, none of the name 'liver'"):
        read_rtstruct(path, mask.grid, series.sources, names=["liver"])
    with pytest.raises(DataError, match="contours need the series"):
        read_rtstruct(path, mask.grid, [])
    for content in (b"", b"hello", path.read_bytes()[: path.stat().st_size // 2]):
        broken = tmp_path / "private name.dcm"
        broken.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_rtstruct(broken, mask.grid, series.sources)
        assert "private" not in str(caught.value)
    with pytest.raises(DataError, match="no such file"):
        read_rtstruct(tmp_path / "none.dcm", mask.grid, series.sources)


@pytest.mark.parametrize("fault", ["moved", "missing", "unknown", "more"])
def test_the_check_finds_other_voxels(written, fault):
    path, series, mask = written
    verify_rtstruct(path, mask, series.sources, STRUCTURES)
    wrong, known = Volume(mask.array.copy(), mask.grid), STRUCTURES
    if fault == "moved":
        wrong = Volume(np.roll(mask.array, 1, axis=0), mask.grid)
    elif fault == "missing":
        wrong.array[0, 0, 0] = 4
    elif fault == "more":
        k = int(np.flatnonzero((mask.array == 1).any((0, 1)))[0])
        wrong.array[0, 0, k] = 1
    else:
        known = structures({"kidney_right": 1, "kidney_left": 2, "cord": 3})
    with pytest.raises(GeometryError):
        verify_rtstruct(path, wrong, series.sources, known)


DATA = os.environ.get("VERTICALS_DATA")


@pytest.mark.skipif(not DATA, reason="VERTICALS_DATA names no folder with the IBSI soft-tissue sarcoma scans")
def test_the_contours_of_a_clinic_come_back_through_mask_and_segmentation(tmp_path):
    root = Path(str(DATA)) / "ct/ibsi_sts/dicom/STS_001/CT"
    series = read_series(root / "image")
    (path,) = (root / "mask").iterdir()
    ((name, found),) = read_rtstruct(path, series.volume.grid, series.sources).items()
    total, moment = 0.0, np.zeros(3)
    for contour in pydicom.dcmread(path).ROIContourSequence[0].ContourSequence:
        x, y, z = np.array(contour.ContourData, float).reshape(-1, 3).T
        cross = x * np.roll(y, -1) - np.roll(x, -1) * y
        signed = cross.sum() / 2
        centre = [((x + np.roll(x, -1)) * cross).sum(), ((y + np.roll(y, -1)) * cross).sum()]
        total += abs(signed)
        moment += abs(signed) * np.array([centre[0] / (6 * signed), centre[1] / (6 * signed), z[0]])
    expected = moment / total * [-1, -1, 1]
    mask = Volume(found.array.astype(np.uint8), found.grid)
    allowed = series.volume.grid.spacing_mm.min() / 2
    assert np.linalg.norm(mask.centroid_mm(1) - expected) < allowed
    pixel_mm2 = series.volume.grid.spacing_mm[0] * series.volume.grid.spacing_mm[1]
    assert found.array.sum() * pixel_mm2 == pytest.approx(total, rel=2e-3)
    known = structures({"tumor": 1})
    write_seg(mask, series.sources, known, tmp_path / "seg.dcm", **MODEL)
    assert np.linalg.norm(read_back(tmp_path / "seg.dcm", mask.grid)["tumor"][0] - expected) < allowed
    write_rtstruct(mask, series.sources, known, tmp_path / "rt.dcm", **MODEL)
    again = read_rtstruct(tmp_path / "rt.dcm", mask.grid, series.sources)["tumor"]
    assert np.array_equal(again.array, found.array)
    assert name
