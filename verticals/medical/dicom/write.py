"""A volume as a CT series on disk: for tests, for trying things out, and for data that must look as a scanner's does.

Patient and study are synthetic and say so. The affine may be any: turned, flipped, oblique, or sheared by a tilted gantry.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

from core.errors import DataError
from verticals.medical.volume import MAX_SHEAR, Axes, Grid, Volume

_SLICE_AXIS_LAST = ((0, 1, 2), (0, 2, 1), (1, 2, 0))


def write_series(
    volume: Volume,
    folder: Path,
    *,
    seed: int | None = None,
    slope: float = 1.0,
    intercept: float = 0.0,
    patient_name: str = "Synthetic^Phantom",
    study_uid: str | None = None,
    series_uid: str | None = None,
) -> None:
    """Writes HU as CT Image Storage in explicit VR little endian, one file a slice, into `folder` (made if missing).

    Slices lie along the volume's last axis, or along another where only that leaves slices with perpendicular edges. Stored
    are 16 bits, with a sign where the values need one.

    Args:
        seed: shuffles names of files and InstanceNumber, each in its own way; in order where None.
        slope: HU of one stored step, at any sign but not 0.
        intercept: HU of stored 0.
        study_uid: and `series_uid`: made up where None. All other UIDs follow from these two.

    Raises:
        DataError: HU that 16 bits cannot hold with this slope and intercept, or no two perpendicular axes.
    """
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise DataError(f"slope {slope}, intercept {intercept}; allowed are finite numbers, the slope not 0")
    volume = volume.turned(_stacked(volume.grid))
    signed = _is_signed(volume.array, slope, intercept)
    columns, rows, num_slices = volume.grid.shape
    study = study_uid or str(generate_uid())
    series = series_uid or str(generate_uid())
    shared = _shared(volume.grid, patient_name=patient_name, study=study, series=series)
    shared.RescaleSlope, shared.RescaleIntercept = _ds(slope), _ds(intercept)
    shared.Rows, shared.Columns = rows, columns
    shared.PixelRepresentation = int(signed)
    random = np.random.default_rng(seed)
    names, numbers = np.arange(num_slices), np.arange(num_slices)
    if seed is not None:
        names, numbers = random.permutation(names), random.permutation(numbers)
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(num_slices):
        header = Dataset(shared)
        header.SOPInstanceUID = generate_uid(entropy_srcs=[series, f"slice {k}"])
        header.InstanceNumber = int(numbers[k]) + 1
        header.ImagePositionPatient = _lps(volume.grid.world(np.array([0, 0, k])))
        stored = np.rint((volume.array[:, :, k].astype(np.float64) - intercept) / slope)
        header.PixelData = np.ascontiguousarray(stored.T).astype("<i2" if signed else "<u2").tobytes()
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{int(names[k]) + 1:06d}.dcm"
        FileDataset(str(path), header, preamble=bytes(128), file_meta=meta).save_as(path, enforce_file_format=True)


def _stacked(grid: Grid) -> Axes:
    """The turn after which the first two axes are perpendicular."""
    for order in _SLICE_AXIS_LAST:
        if abs(float(grid.directions[:, order[0]] @ grid.directions[:, order[1]])) <= MAX_SHEAR:
            return Axes(order, (False, False, False))
    raise DataError("no two axes of the volume are perpendicular, as the edges of a DICOM slice are; resample it")


def _is_signed(array: NDArray[np.generic], slope: float, intercept: float) -> bool:
    """Whether the stored numbers take a sign."""
    ends = np.rint((np.array([array.min(), array.max()], np.float64) - intercept) / slope)
    low, high = float(ends.min()), float(ends.max())
    if low >= 0 and high <= np.iinfo(np.uint16).max:
        return False
    if np.iinfo(np.int16).min <= low and high <= np.iinfo(np.int16).max:
        return True
    raise DataError(
        f"values from {low:g} to {high:g} would be stored; 16 bits hold -32,768 to 32,767 or 0 to 65,535: "
        "choose another slope and intercept"
    )


def _shared(grid: Grid, *, patient_name: str, study: str, series: str) -> Dataset:
    """What all slices have in common."""
    across, down = grid.directions[:, 0], grid.directions[:, 1]
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    header.SOPClassUID = CTImageStorage
    header.StudyDate = header.SeriesDate = header.AcquisitionDate = header.ContentDate = "20000101"
    header.StudyTime = header.SeriesTime = header.AcquisitionTime = header.ContentTime = "000000"
    header.AccessionNumber = "SYNTHETIC"
    header.Modality = "CT"
    header.Manufacturer = "verticals, synthetic"
    header.ManufacturerModelName = "none"
    header.ReferringPhysicianName = ""
    header.StudyDescription = "Synthetic study"
    header.SeriesDescription = "Synthetic CT"
    header.PatientName = patient_name
    header.PatientID = "SYNTHETIC-000001"
    header.PatientBirthDate = "19000101"
    header.PatientSex = "O"
    header.SliceThickness = _ds(abs(float(grid.affine[:3, 2] @ normal)))
    header.KVP = "120"
    header.PatientPosition = "HFS"
    header.StudyInstanceUID = study
    header.SeriesInstanceUID = series
    header.StudyID = "1"
    header.SeriesNumber = 1
    header.AcquisitionNumber = 1
    header.ImageOrientationPatient = [*_lps(across), *_lps(down)]
    header.FrameOfReferenceUID = generate_uid(entropy_srcs=[study, "frame of reference"])
    header.PositionReferenceIndicator = ""
    header.SamplesPerPixel = 1
    header.PhotometricInterpretation = "MONOCHROME2"
    header.PixelSpacing = [_ds(grid.spacing_mm[1]), _ds(grid.spacing_mm[0])]  # between rows, between columns
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit = 15
    header.RescaleType = "HU"
    return header


def _lps(ras: NDArray[np.float64]) -> list[str]:
    return [_ds(-ras[0]), _ds(-ras[1]), _ds(ras[2])]


def _ds(value: float) -> str:
    return format_number_as_ds(float(value) + 0.0)  # no negative zero
