"""A data set in nnU-Net v2's layout: its cases, which side of the split each is on, and a refusal of leaks.

`Dataset.open` reads names and headers only; voxels are read and checked by `Case.read`, every one of them by `fingerprint`.
Case names are shown in errors: the user chose them as ids of a training set (the one exception to showing no file name).
Beyond nnU-Net, dataset.json may hold "missing_labels" {case: [organ that nobody drew in it]} (which is not the same as an
organ that is absent) and "patients" {case: patient}, where a patient has several scans; splits.json holds the split.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import DataError, LeakError
from verticals.medical.nifti import inspect_nifti, read_labels, read_nifti
from verticals.medical.volume import Volume, to_ras

SIDES = ("train", "validation", "test")
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2
"""Of the patients, where the data set has no split of its own."""
NUM_THREADS = min(4, os.cpu_count() or 1)
"""Cases that are read at a time."""


@dataclass(frozen=True)
class Case:
    """One labelled scan."""

    name: str
    image_path: Path
    labels_path: Path
    names: tuple[str, ...]
    """[C] of the classes by number, the background first."""
    missing: tuple[str, ...] = ()
    """Classes that nobody drew in this case, whether they are there or not."""

    @property
    def known(self) -> tuple[bool, ...]:
        """[C] which classes are drawn where they are present."""
        return tuple(name not in self.missing for name in self.names)

    def read(self) -> tuple[Volume, Volume]:
        """Scan (int16 HU) and labels (uint8) as stored, on one grid.

        Raises:
            DataError: a damaged file, label values that are no class, or voxels of a class said to be missing.
        """
        try:
            scan, mask = read_nifti(self.image_path), read_labels(self.labels_path)
        except DataError as error:
            raise DataError(f"case {self.name}: {error}") from None
        largest = int(mask.array.max(initial=0))
        if largest >= len(self.names):
            raise DataError(
                f"case {self.name}: its labels hold the value {largest}, dataset.json has 0 to {len(self.names) - 1}; "
                "name the label there or correct the mask"
            )
        if self.missing:
            counts = np.bincount(mask.array.ravel(), minlength=len(self.names))
            drawn = [name for name in self.missing if counts[self.names.index(name)]]
            if drawn:
                raise DataError(
                    f"case {self.name}: missing_labels of dataset.json names {', '.join(drawn)}, and the mask has voxels "
                    "of it; correct one of them"
                )
        return scan, Volume(mask.array.astype(np.uint8, copy=False), scan.grid)


class Dataset:
    """The labelled cases of a folder by side of the split."""

    def __init__(
        self, name: str, labels: Mapping[str, int], sides: Mapping[str, Sequence[Case]], *, num_unused: int = 0
    ) -> None:
        """
        Args:
            name: what records call it.
            labels: number of each class, background 0.
            sides: cases of `train`, `validation` and `test`.
            num_unused: labelled cases that the split leaves out.
        """
        self.name = name
        self.labels = dict(labels)
        self.sides = {side: tuple(sides.get(side, ())) for side in SIDES}
        self.num_unused = num_unused

    @classmethod
    def open(cls, folder: str | Path, *, fold: int = 0, seed: int = 0, is_split: bool = True) -> Dataset:
        """Reads names and headers.

        Args:
            folder: holds dataset.json, imagesTr, labelsTr, and perhaps imagesTs, labelsTs, splits.json or splits_final.json.
            fold: which of nnU-Net's splits_final.json.
            seed: of the split by patient, where the data set has none of its own.
            is_split: whether cases are told apart by side; else all of them are for testing, to judge a model of another set.

        Raises:
            DataError: the first fault of the layout.
            LeakError: a case or patient on two sides.
        """
        folder = Path(folder)
        record = _json(folder, "dataset.json")
        names, ending = _classes(record), str(record.get("file_ending", ".nii.gz"))
        _check_channels(record)
        if ending not in (".nii.gz", ".nii"):
            raise DataError(
                f"dataset.json: file_ending is {ending!r}; allowed are .nii.gz and .nii: convert the images"
            )
        inside = _pairs(folder, "Tr", ending)
        outside = _pairs(folder, "Ts", ending) if (folder / "labelsTs").is_dir() else {}
        if twice := sorted(inside.keys() & outside.keys()):
            raise LeakError(f"case {twice[0]} is in imagesTr and in imagesTs; a case is for training or for testing")
        stated = record.get("numTraining")
        if stated is not None and stated != len(inside):
            raise DataError(
                f"dataset.json: numTraining is {stated}, imagesTr holds {len(inside)} cases; complete the copy or "
                "correct the number"
            )
        pairs = inside | outside
        missing = _missing(record, names, pairs)
        patients = {name: str(patient) for name, patient in _mapping(record, "patients").items()}
        split: Mapping[str, list[str]] = {"test": sorted(pairs)}
        if is_split:
            split = _stated_split(folder, pairs, outside, fold) or _drawn_split(inside, outside, patients, seed)
        _check_patients(split, patients)
        for name, (image, mask) in pairs.items():
            try:
                same = inspect_nifti(image).same_as(inspect_nifti(mask))
            except DataError as error:
                raise DataError(f"case {name}: {error}") from None
            if not same:
                raise DataError(
                    f"case {name}: image and labels lie on different grids; resample the labels to the image's"
                )
        sides = {
            side: [Case(name, *pairs[name], names, missing.get(name, ())) for name in chosen]
            for side, chosen in split.items()
        }
        num_unused = len(pairs) - sum(len(cases) for cases in sides.values())
        return cls(folder.resolve().name, {name: k for k, name in enumerate(names)}, sides, num_unused=num_unused)

    def cases(self, side: str) -> tuple[Case, ...]:
        """Raises DataError for another side, or one without a case."""
        if side not in self.sides:
            raise DataError(f"no split {side!r}; there are {', '.join(SIDES)}")
        if not self.sides[side]:
            raise DataError(f"no {side} cases: name some in splits.json, or put them into imagesTs and labelsTs")
        return self.sides[side]

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Cases by side, labels and a hash of all voxels, in whatever orientation they are stored. Reads everything.

        Raises:
            DataError: as `Case.read`.
            LeakError: a scan that is on two sides under two names.
        """
        placed = [(side, case) for side in SIDES for case in self.sides[side]]
        seen: dict[bytes, tuple[str, str]] = {}
        whole = hashlib.sha256(json.dumps(self.labels).encode())
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            hashes = pool.map(_content, (case for _, case in placed))
            for (side, case), (image, mask) in zip(placed, hashes, strict=True):
                first_side, first = seen.setdefault(image, (side, case.name))
                if first_side != side:
                    raise LeakError(
                        f"cases {first} ({first_side}) and {case.name} ({side}) are the same scan; keep it on one side"
                    )
                whole.update(f"\0{side}\0{case.name}\0{case.missing}\0".encode() + image + mask)
        return {
            "sources": [self.name],
            "cases": {side: len(cases) for side, cases in self.sides.items()},
            "unused": self.num_unused,
            "labels": self.labels,
            "sha256": whole.hexdigest(),
        }


def _content(case: Case) -> tuple[bytes, bytes]:
    """Hashes of a case's voxels with axes turned to RAS: of the scan, and of labels and spacing."""
    scan, mask = case.read()
    axes = to_ras(scan.grid)
    found = []
    for array, beside in ((scan.array, ""), (mask.array, str(scan.grid.turned(axes).spacing_mm.round(3)))):
        turned = np.ascontiguousarray(axes(array))
        hasher = hashlib.sha256(f"{turned.shape}{beside}".encode())
        hasher.update(turned.data)
        found.append(hasher.digest())
    return found[0], found[1]


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        record = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"the folder has no {name}; give a data set in nnU-Net's layout") from None
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from None
    except ValueError:
        raise DataError(f"{name} is not JSON; correct it") from None
    if not isinstance(record, dict):
        raise DataError(f"{name} is a JSON {type(record).__name__}; it has to be an object")
    return record


def _mapping(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key, {})
    if not isinstance(value, dict):
        raise DataError(f"dataset.json: {key} has to be an object of cases, it is a {type(value).__name__}")
    return value


def _classes(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Names by number, the background first."""
    labels = record.get("labels")
    if not isinstance(labels, dict) or len(labels) < 2:
        raise DataError('dataset.json: labels has to be an object like {"background": 0, "Liver": 1}')
    for name, number in labels.items():
        if isinstance(number, list):
            raise DataError(
                f"dataset.json: label {name} is a region of several values, which is not supported; give each value a "
                "label of its own"
            )
        if not isinstance(number, int) or isinstance(number, bool):
            raise DataError(f"dataset.json: label {name} is not a whole number; nnU-Net v2 writes name: number")
        if name == "ignore":
            raise DataError("dataset.json: nnU-Net's ignore label is not supported; use missing_labels")
    if sorted(labels.values()) != list(range(len(labels))) or labels.get("background") != 0 or len(labels) > 255:
        raise DataError(
            f"dataset.json: labels are numbered {sorted(labels.values())}; allowed are background 0, then 1, 2, 3 and on "
            "without a gap, at most 254"
        )
    return tuple(sorted(labels, key=lambda name: int(labels[name])))


def _check_channels(record: Mapping[str, Any]) -> None:
    channels = record.get("channel_names", record.get("modality", {"0": "CT"}))
    kinds = list(channels.values()) if isinstance(channels, dict) else []
    if len(kinds) != 1:
        raise DataError(
            f"dataset.json: {len(kinds)} channels; one is supported: make a data set of the CT channel alone"
        )
    if str(kinds[0]).lower() != "ct":
        raise DataError(f"dataset.json: the channel is {kinds[0]!r}; allowed is CT, in Hounsfield units")


def _pairs(folder: Path, part: str, ending: str) -> dict[str, tuple[Path, Path]]:
    """Image and labels of each case of `Tr` or `Ts`, by name."""
    images, masks = _files(folder / f"images{part}", ending), _files(folder / f"labels{part}", ending)
    found: dict[str, Path] = {}
    for stem, path in images.items():
        name, _, channel = stem.rpartition("_")
        if not name or len(channel) != 4 or not channel.isdigit():
            raise DataError(
                f"images{part}: {stem} does not end in the channel; it has to be called {stem}_0000{ending}"
            )
        if channel != "0000":
            raise DataError(f"images{part}: case {name} has channel {channel}; only one, 0000, is supported")
        found[name] = path
    if lonely := sorted(found.keys() - masks.keys()):
        raise DataError(f"images{part}: case {lonely[0]} has no labels ({len(lonely)} such cases); add or remove them")
    if lonely := sorted(masks.keys() - found.keys()):
        raise DataError(f"labels{part}: case {lonely[0]} has no image ({len(lonely)} such cases); add or remove them")
    return {name: (found[name], masks[name]) for name in sorted(found)}


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """Files by name without the ending; other files and hidden ones are left alone."""
    if not folder.is_dir():
        raise DataError(f"the data set has no folder {folder.name}; nnU-Net's layout needs it")
    names = (path for path in folder.iterdir() if path.name.endswith(ending) and not path.name.startswith("."))
    return {path.name[: -len(ending)]: path for path in names}


def _missing(record: Mapping[str, Any], names: Sequence[str], cases: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Labels that are not drawn, by case."""
    found = {}
    for case, listed in _mapping(record, "missing_labels").items():
        unknown = [name for name in listed if name not in names[1:]] if isinstance(listed, list) else []
        if case not in cases or unknown or not isinstance(listed, list):
            what = (
                f"no labelled case is called {case}"
                if case not in cases
                else f"{unknown[0]} is no organ of labels"
                if unknown
                else f"what is given for case {case} is no list"
            )
            raise DataError(f'dataset.json: missing_labels: {what}; write {{"case": ["organ"]}}')
        found[case] = tuple(listed)
    return found


def _stated_split(
    folder: Path, pairs: Mapping[str, Any], outside: Mapping[str, Any], fold: int
) -> dict[str, list[str]] | None:
    """The split that the data set comes with: splits.json, or a fold of nnU-Net's splits_final.json."""
    if (folder / "splits.json").exists():
        source, sides = "splits.json", _json(folder, "splits.json")
    elif (folder / "splits_final.json").exists():
        source = "splits_final.json"
        try:
            part = json.loads((folder / source).read_text(encoding="utf-8"))[fold]
            sides = {"train": part["train"], "validation": part["val"]}
        except (ValueError, LookupError, TypeError):
            raise DataError(f"{source} has no fold {fold} with train and val; correct it or choose another") from None
    else:
        return None
    sides = {"test": sorted(outside), **sides}
    if set(sides) != set(SIDES) or not all(isinstance(names, list) for names in sides.values()):
        raise DataError(
            f"{source} has to hold lists of cases called train, validation and test; it has {sorted(sides)}"
        )
    where: dict[str, str] = {}
    for side in SIDES:
        for name in sides[side]:
            if not isinstance(name, str) or name not in pairs:
                raise DataError(f"{source}: no labelled case is called {name}; correct the name")
            if where.setdefault(name, side) != side:
                raise LeakError(f"{source}: case {name} is in {where[name]} and in {side}; keep it on one side")
        if twice := [name for name, count in Counter(sides[side]).items() if count > 1]:
            raise DataError(f"{source}: case {twice[0]} is in {side} twice")
    if empty := [side for side in SIDES if not sides[side]]:
        labelled = ", or put labelled cases into imagesTs and labelsTs" if empty == ["test"] and not outside else ""
        raise DataError(
            f"{source} names no case for {' and '.join(empty)}; each side needs one: write splits.json{labelled}"
        )
    return {side: sides[side] for side in SIDES}


def _drawn_split(
    inside: Mapping[str, Any], outside: Mapping[str, Any], patients: Mapping[str, str], seed: int
) -> dict[str, list[str]]:
    """A split by patient in the order of a hash; the cases of imagesTs are the test where they have labels."""
    groups: dict[str, list[str]] = {}
    for name in sorted(inside):
        groups.setdefault(patients.get(name, f"case {name}"), []).append(name)
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    num_test = 0 if outside else max(1, round(TEST_SHARE * len(order)))
    num_validation = max(1, round(VALIDATION_SHARE * len(order)))
    if len(order) <= num_test + num_validation:
        raise DataError(f"{len(order)} patients are too few to split; give 3 at least, or write splits.json")
    ends = {"test": order[:num_test], "validation": order[num_test : num_test + num_validation]}
    sides = {**ends, "train": order[num_test + num_validation :]}
    drawn = {side: sorted(name for group in sides[side] for name in groups[group]) for side in SIDES}
    return drawn | ({"test": sorted(outside)} if outside else {})


def _check_patients(split: Mapping[str, Sequence[str]], patients: Mapping[str, str]) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for side, name in [(part, name) for part in split for name in split[part]]:
        if name in patients:
            first_side, first = seen.setdefault(patients[name], (side, name))
            if first_side != side:
                raise LeakError(
                    f"cases {first} ({first_side}) and {name} ({side}) are of one patient; keep them on one side"
                )
