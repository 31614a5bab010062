from __future__ import annotations

import copy

import highdicom
import numpy as np
import pydicom
import pytest

from core.errors import CapacityError, DataError
from tests.verticals.medical.answers import BALLS, LABELS, ORIENTATIONS, mask_on, series_in
from verticals.medical.dicom import seg
from verticals.medical.dicom.rtstruct import write_rtstruct
from verticals.medical.dicom.seg import write_seg
from verticals.medical.dicom.seg_check import centroids, read_back, verify
from verticals.medical.dicom.series import read_series
from verticals.medical.dicom.source import GeometryError
from verticals.medical.labels import structures
from verticals.medical.volume import Grid, Volume

STRUCTURES = structures(LABELS)
MODEL = {"algorithm": "debug model", "version": "1.2"}


@pytest.fixture(scope="module")
def axial(tmp_path_factory):
    return series_in(tmp_path_factory.mktemp("axial"))


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("name", ORIENTATIONS)
def test_each_ball_lies_where_it_was_put_in_the_patient(tmp_path, name, kind):
    series, mask = series_in(tmp_path / "ct", name)
    path = tmp_path / "seg.dcm"
    assert [one.name for one in write_seg(mask, series.sources, STRUCTURES, path, kind=kind, **MODEL)] == ["lens_left"]
    verify(path, mask, STRUCTURES)
    found = read_back(path, mask.grid)
    assert set(found) == {"kidney_right", "kidney_left", "SpinalCord"}
    for structure in STRUCTURES[:3]:
        centroid, voxels = found[structure.name]
        assert np.linalg.norm(centroid - np.array(BALLS[structure.number][0])) < 1
        assert centroid == pytest.approx(mask.centroid_mm(structure.number), abs=1e-3)
        assert voxels == (mask.array == structure.number).sum()


@pytest.mark.parametrize("name", ["sagittal", "oblique", "tilted"])
def test_highdicom_and_pydicom_read_the_same_frames(tmp_path, name):
    series, mask = series_in(tmp_path / "ct", name)
    path = tmp_path / "seg.dcm"
    write_seg(mask, series.sources, STRUCTURES, path, **MODEL)
    read = highdicom.seg.segread(path)
    uids = [source.SOPInstanceUID for source in series.sources]
    frames = read.get_pixels_by_source_instance(uids, combine_segments=True, assert_missing_frames_are_empty=True)
    assert np.array_equal(np.asarray(frames).transpose(2, 1, 0), mask.array)
    plain = pydicom.dcmread(path)
    assert plain.pixel_array.sum() == (mask.array > 0).sum()


def test_what_the_file_says(tmp_path, axial):
    series, mask = axial
    path = tmp_path / "seg.dcm"
    before = [copy.deepcopy(source) for source in series.sources]
    write_seg(mask, series.sources, STRUCTURES, path, **MODEL)
    assert series.sources == before
    file, source = pydicom.dcmread(path), series.sources[0]
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "StudyDate"):
        assert file[keyword].value == source[keyword].value
    assert file.SeriesInstanceUID != source.SeriesInstanceUID
    assert file.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert len(file.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == len(series.sources)
    assert (file.Rows, file.Columns, file.BitsAllocated) == (source.Rows, source.Columns, 1)
    assert (file.Manufacturer, file.ManufacturerModelName) == ("verticals", "debug model")
    assert file.SoftwareVersions[1] == "model 1.2"
    assert file.SegmentsOverlap == "NO"
    for text in (file.SeriesDescription, file.ContentDescription):
        assert "RESEARCH USE ONLY" in text
        assert len(text) <= 64
    segments = file.SegmentSequence
    assert [int(one.SegmentNumber) for one in segments] == [1, 2, 3]
    assert [one.SegmentLabel for one in segments] == ["kidney_right", "kidney_left", "SpinalCord"]
    right = segments[0].SegmentedPropertyTypeCodeSequence[0]
    assert (right.CodeValue, right.CodingSchemeDesignator) == ("64033007", "SCT")
    assert right.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "24028007"
    assert "SegmentedPropertyTypeModifierCodeSequence" not in segments[2].SegmentedPropertyTypeCodeSequence[0]
    assert segments[0].SegmentAlgorithmType == "AUTOMATIC"
    identification = segments[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (identification.AlgorithmName, identification.AlgorithmVersion) == ("debug model", "1.2")
    items = file.PerFrameFunctionalGroupsSequence
    assert (
        len(items)
        == file.NumberOfFrames
        == sum((mask.array[:, :, k] == n).any() for k in range(mask.array.shape[2]) for n in (1, 2, 3))
    )
    place = {str(one.SOPInstanceUID): one.ImagePositionPatient for one in series.sources}
    for item in items:
        referred = item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert item.PlanePositionSequence[0].ImagePositionPatient == place[referred]


def test_gaps_in_the_numbers_close_and_names_stay(tmp_path, axial):
    series, _ = axial
    mask = mask_on(series.volume.grid, {7: BALLS[1], 300: BALLS[3]})
    known = structures({"a": 3, "b": 300, "c": 7, "d": 5})
    path = tmp_path / "seg.dcm"
    assert [one.name for one in write_seg(mask, series.sources, known, path, **MODEL)] == ["a", "d"]
    verify(path, mask, known)
    assert [(one.SegmentNumber, one.SegmentLabel) for one in pydicom.dcmread(path).SegmentSequence] == [
        (1, "c"),
        (2, "b"),
    ]


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_one_segment_alone_and_one_slice_of_it(tmp_path, axial, kind):
    series, _ = axial
    array = np.zeros(series.volume.grid.shape, np.uint8)
    array[3:6, 2:9, 11] = 1
    mask = Volume(array, series.volume.grid)
    write_seg(mask, series.sources, STRUCTURES, tmp_path / "seg.dcm", kind=kind, **MODEL)
    verify(tmp_path / "seg.dcm", mask, STRUCTURES)


@pytest.mark.parametrize("count", [255, 256, 300])
def test_many_structures_in_a_label_map(tmp_path, axial, count):
    series, _ = axial
    array = np.zeros(series.volume.grid.shape, np.uint16)
    array.reshape(-1)[: 2 * count : 2] = np.arange(1, count + 1)
    mask = Volume(array, series.volume.grid)
    known = structures({f"s{number}": number for number in range(1, count + 1)})
    write_seg(mask, series.sources, known, tmp_path / "seg.dcm", kind="LABELMAP", **MODEL)
    verify(tmp_path / "seg.dcm", mask, known)


def test_an_empty_mask_is_an_outcome_without_a_file(tmp_path, axial):
    series, mask = axial
    empty = Volume(np.zeros_like(mask.array), mask.grid)
    assert write_seg(empty, series.sources, STRUCTURES, tmp_path / "seg.dcm", **MODEL) is None
    assert not list(tmp_path.iterdir())


def test_headers_of_real_scanners_do_not_stop_it_and_nothing_is_said_about_them(tmp_path, axial, caplog, recwarn):
    series, mask = axial
    sources = [copy.deepcopy(source) for source in series.sources]
    for source in sources:
        source.PatientName = "Singlename"
        for keyword in ("StudyID", "AccessionNumber", "PatientBirthDate", "StudyTime", "SliceThickness"):
            del source[keyword]
        source.ImageOrientationPatient = [1, 0, 1e-7 * int(source.InstanceNumber), 0, 1, 0]
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
        source.add_new("PatientSex", "CS", "U")
    pydicom.config.settings.reading_validation_mode = pydicom.config.WARN
    write_seg(mask, sources, STRUCTURES, tmp_path / "seg.dcm", **MODEL)
    verify(tmp_path / "seg.dcm", mask, STRUCTURES)
    file = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (str(file.PatientName), file.PatientSex, file.StudyID) == ("Singlename", "", "")
    assert not caplog.records
    assert not list(recwarn)


@pytest.mark.parametrize(
    ("sets", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("", "Doe^Jane"),
        ("ISO_IR 6", "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jürgen"),
        ("GB18030", "王^小东"),
    ],
    ids=str,
)
def test_names_in_any_character_set_come_through(tmp_path, sets, name):
    series, mask = series_in(tmp_path / "ct")
    for path in sorted((tmp_path / "ct").iterdir()):
        stored = pydicom.dcmread(path)
        stored.SpecificCharacterSet = sets
        stored.PatientName = name
        stored.save_as(path)
    series = read_series(tmp_path / "ct")
    write_seg(mask, series.sources, STRUCTURES, tmp_path / "seg.dcm", **MODEL)
    write_rtstruct(mask, series.sources, STRUCTURES, tmp_path / "rtstruct.dcm", **MODEL)
    for answer in ("seg.dcm", "rtstruct.dcm"):
        file = pydicom.dcmread(tmp_path / answer)
        assert file.SpecificCharacterSet == "ISO_IR 192"
        assert str(file.PatientName) == name


def test_of_several_values_where_one_belongs_the_first_is_taken(tmp_path, axial):
    series, mask = axial
    sources = [copy.deepcopy(source) for source in series.sources]
    for source in sources:
        source.PatientName = ["One^Name", "Another^Name"]
        source.AccessionNumber = ["A1", "A2"]
    write_seg(mask, sources, STRUCTURES, tmp_path / "seg.dcm", **MODEL)
    file = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (str(file.PatientName), file.AccessionNumber) == ("One^Name", "A1")


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "PixelSpacing", "ImagePositionPatient", "SOPInstanceUID"])
def test_a_header_that_lacks_what_an_answer_needs(tmp_path, axial, keyword):
    series, mask = axial
    sources = [copy.deepcopy(source) for source in series.sources]
    del sources[4][keyword]
    with pytest.raises(DataError, match=f"slice 5 of 27 lacks {keyword}"):
        write_seg(mask, sources, STRUCTURES, tmp_path / "seg.dcm", **MODEL)


def test_a_refused_header_is_not_quoted(tmp_path, axial):
    series, mask = axial
    sources = [copy.deepcopy(source) for source in series.sources]
    for source in sources:
        source.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"  # multi-frame, which these headers are not
    with pytest.raises(DataError, match="headers hold values that DICOM does not allow") as caught:
        write_seg(mask, sources, STRUCTURES, tmp_path / "seg.dcm", **MODEL)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert not list(tmp_path.iterdir())


def test_a_mask_of_another_series(tmp_path, axial):
    series, mask = axial
    path = tmp_path / "seg.dcm"
    with pytest.raises(GeometryError, match="27 slices of"):
        write_seg(
            Volume(mask.array[:, :, 1:], Grid((37, 31, 26), mask.grid.affine)),
            series.sources,
            STRUCTURES,
            path,
            **MODEL,
        )
    with pytest.raises(GeometryError, match="voxels from where the mask has it"):
        write_seg(mask, series.sources[::-1], STRUCTURES, path, **MODEL)
    with pytest.raises(DataError, match="label 3, which no structure has"):
        write_seg(mask, series.sources, structures({"a": 1, "b": 2}), path, **MODEL)
    assert not list(tmp_path.iterdir())


def test_more_frames_than_a_file_holds(tmp_path, axial, monkeypatch):
    series, mask = axial
    write_seg(mask, series.sources, STRUCTURES, tmp_path / "seg.dcm", **MODEL)
    assert pydicom.dcmread(tmp_path / "seg.dcm").SegmentationType == "BINARY"
    pixels, held = mask.array.shape[0] * mask.array.shape[1], (mask.array > 0).any((0, 1)).sum()
    monkeypatch.setattr(seg, "_MAX_BYTES", pixels * held)
    many = structures({"background": 0} | {f"part {k}": k for k in range(1, 31)})
    random = np.random.default_rng(0).integers(1, 31, mask.array.shape).astype(np.uint8)
    scattered = Volume(np.where(mask.array > 0, random, 0).astype(np.uint8), mask.grid)
    write_seg(scattered, series.sources, many, tmp_path / "many.dcm", **MODEL)  # the kind that is smaller then
    assert pydicom.dcmread(tmp_path / "many.dcm").SegmentationType == "LABELMAP"
    verify(tmp_path / "many.dcm", scattered, many)
    monkeypatch.setattr(seg, "_MAX_BYTES", 1000)
    with pytest.raises(CapacityError, match="exceed the 4 GiB of a DICOM file; split the series"):
        write_seg(mask, series.sources, STRUCTURES, tmp_path / "no.dcm", **MODEL)


def test_a_failure_while_writing_leaves_no_file(tmp_path, axial, monkeypatch):
    series, mask = axial
    monkeypatch.setattr(seg, "_write_binary", lambda *_: 1)
    with pytest.raises(GeometryError, match="1 bytes of frames were written"):
        write_seg(mask, series.sources, STRUCTURES, tmp_path / "seg.dcm", **MODEL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", ["moved", "mirrored", "renamed", "missing", "flipped bit", "outside"])
def test_the_check_finds_what_lies_elsewhere(tmp_path, axial, fault):
    series, mask = axial
    path = tmp_path / "seg.dcm"
    write_seg(mask, series.sources, STRUCTURES, path, **MODEL)
    verify(path, mask, STRUCTURES)
    wrong, grid = mask, mask.grid
    if fault == "moved":
        wrong = Volume(np.roll(mask.array, 1, axis=2), grid)
    elif fault == "mirrored":
        wrong = Volume(mask.array[::-1], grid)
    elif fault == "flipped bit":
        data = bytearray(path.read_bytes())
        data[-700] ^= 1
        path.write_bytes(bytes(data))
    elif fault == "outside":
        file = pydicom.dcmread(path)
        for item in file.PerFrameFunctionalGroupsSequence:
            item.PlanePositionSequence[0].ImagePositionPatient[2] += 60
        file.save_as(path)
    else:
        file = pydicom.dcmread(path)
        if fault == "renamed":
            file.SegmentSequence[0].SegmentLabel = "liver"
        else:
            write_seg(Volume(np.where(mask.array == 1, 0, mask.array), grid), series.sources, STRUCTURES, path, **MODEL)
            file = pydicom.dcmread(path)
        file.save_as(path)
    with pytest.raises(GeometryError):
        verify(path, wrong, STRUCTURES)


def test_centroids_are_those_of_the_volume():
    grid = Grid((9, 8, 7), ORIENTATIONS["oblique"])
    mask = Volume(np.random.default_rng(0).integers(0, 5, grid.shape).astype(np.uint8), grid)
    mask.array[mask.array == 4] = 0
    found = centroids(mask, STRUCTURES)
    for structure in STRUCTURES[:3]:
        assert found[structure.name][0] == pytest.approx(mask.centroid_mm(structure.number))
    assert np.isnan(found["lens_left"][0]).all()
