from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileMetaDataset

from core.errors import CapacityError, DataError, Unavailable
from tests.verticals.medical.connect.conftest import Log
from verticals.medical.connect.arrivals import Arrivals, identity

SENDER = "SCANNER@10.0.0.1"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def content(series: str, instance: str, note: str = "") -> bytes:
    """A DICOM file that says no more than who it is."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = instance
    dataset.SeriesInstanceUID = series
    dataset.PatientName, dataset.ImageComments = "Wodehouse", note
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


class Place:
    """Arrivals that can be started again on the same folder."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder, self.clock = folder, Clock()
        self.options = {
            "quiet_seconds": 10.0,
            "keep_seconds": 60.0,
            "most_instances": 100,
            "most_bytes": 10**6,
            **options,
        }
        self.restart()

    def restart(self) -> None:
        self.arrivals = Arrivals(self.folder, clock=self.clock, **self.options)

    def add(self, series: str, *instances: str, sender: str = SENDER, note: str = "") -> None:
        for instance in instances:
            self.arrivals.add(sender, series, instance, content(series, instance, note))

    def complete_after(self, seconds: float) -> list[list[str]]:
        """Instances of each round that is handed on then."""
        self.clock.now += seconds
        self.rounds = self.arrivals.complete()
        return [instances(one.folder) for one in self.rounds]


def instances(folder: Path) -> list[str]:
    return sorted(str(pydicom.dcmread(path).SOPInstanceUID) for path in folder.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "deep" / "arrivals")


@pytest.fixture(autouse=True)
def _private(log: Log) -> Iterator[None]:
    yield
    lines = [line for line in log.lines if not line.startswith(("Reading", "0000"))]  # pydicom's, of the tests
    assert not [line for line in lines if "Wodehouse" in line or "1.9" in line]


def test_a_series_is_complete_after_silence_and_given_once(place: Place) -> None:
    place.add("1.9.1", "1.9.1.1")
    assert place.complete_after(9.0) == []
    place.add("1.9.1", "1.9.1.2")  # begins the silence anew
    assert place.complete_after(9.0) == []
    assert place.complete_after(1.0) == [["1.9.1.1", "1.9.1.2"]]
    folder = place.rounds[0].folder
    assert place.complete_after(100.0) == []
    assert sorted(path.name for path in folder.iterdir()) == ["00001.dcm", "00002.dcm"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place.folder, folder)] == [0o700] * 2


def test_series_and_senders_are_apart(place: Place) -> None:
    place.add("1.9.1", "1.9.1.1")
    place.add("1.9.2", "1.9.2.1")
    place.add("1.9.1", "1.9.1.2", sender="OTHER@10.0.0.2")
    assert sorted(place.complete_after(10.0)) == [["1.9.1.1"], ["1.9.1.2"], ["1.9.2.1"]]


def test_what_was_taken_is_kept_and_then_removed(place: Place) -> None:
    place.add("1.9.1", "1.9.1.1")
    place.complete_after(10.0)
    place.arrivals.keep(place.rounds[0])
    assert place.complete_after(59.0) == []
    assert len(list(place.folder.iterdir())) == 2
    place.complete_after(1.0)
    assert list(place.folder.iterdir()) == []


@pytest.mark.parametrize("taken", [True, False])
def test_a_late_instance_starts_a_round_with_all(place: Place, taken: bool) -> None:
    place.add("1.9.1", "1.9.1.1", "1.9.1.2", note="old")
    place.complete_after(10.0)
    (first,) = place.rounds
    if taken:
        place.arrivals.keep(first)
    place.add("1.9.1", "1.9.1.3")
    place.add("1.9.1", "1.9.1.2", note="new")
    if not taken:  # the first round is still being read: it stays as it was
        assert instances(first.folder) == ["1.9.1.1", "1.9.1.2"]
        assert pydicom.dcmread(first.folder / "00002.dcm").ImageComments == "old"
        place.arrivals.keep(first)
    assert not first.folder.exists()
    assert place.complete_after(10.0) == [["1.9.1.1", "1.9.1.2", "1.9.1.3"]]
    (second,) = place.rounds
    assert pydicom.dcmread(second.folder / "00002.dcm").ImageComments == "new"
    assert second.num_bytes == sum(path.stat().st_size for path in second.folder.iterdir())


def test_what_cannot_be_taken_now_comes_again_in_the_same_folder(place: Place) -> None:
    place.add("1.9.1", "1.9.1.1")
    place.complete_after(10.0)
    folder = place.rounds[0].folder
    place.arrivals.postpone(place.rounds[0], 5.0)
    assert place.complete_after(4.0) == []
    assert place.complete_after(1.0) == [["1.9.1.1"]]
    assert place.rounds[0].folder == folder
    place.arrivals.drop(place.rounds[0])
    assert list(place.folder.iterdir()) == []


def test_a_restart_takes_up_what_was_there(place: Place) -> None:
    place.add("1.9.1", "1.9.1.1", "1.9.1.2")
    place.add("1.9.2", "1.9.2.1")
    place.complete_after(10.0)
    taken = next(one for one in place.rounds if one.series == "1.9.2")
    place.arrivals.keep(taken)
    handed = next(one for one in place.rounds if one.series == "1.9.1").folder  # and the process ends
    (handed / "00003.dcm.part").write_bytes(b"half")
    (place.folder / ("e" * 32)).mkdir()
    (place.folder / ("d" * 32 + ".json")).write_text("{}")
    place.restart()
    place.add("1.9.1", "1.9.1.3")
    assert place.complete_after(9.0) == []
    assert place.complete_after(1.0) == [["1.9.1.1", "1.9.1.2", "1.9.1.3"]]
    assert place.rounds[0].folder == handed
    assert len(list(place.folder.iterdir())) == 2  # the round that was taken is gone, not handed on again
    place.add("1.9.2", "1.9.2.2")
    assert place.complete_after(10.0) == [["1.9.2.2"]]


def test_what_was_taken_goes_when_nobody_listens_any_more(place: Place) -> None:
    place.add("1.9.1", "1.9.1.1")
    place.complete_after(10.0)
    place.arrivals.keep(place.rounds[0])
    place.add("1.9.2", "1.9.2.1")
    place.arrivals.forget()
    assert len(list(place.folder.iterdir())) == 2, "a series that is still arriving stays"
    assert place.complete_after(10.0) == [["1.9.2.1"]]


def test_after_a_restart_the_newer_round_counts(place: Place) -> None:
    place.add("1.9.1", "1.9.1.1")
    place.complete_after(10.0)
    place.add("1.9.1", "1.9.1.2")
    assert len(list(place.folder.glob("*.json"))) == 2
    place.restart()
    assert len(list(place.folder.glob("*.json"))) == 1
    assert place.complete_after(10.0) == [["1.9.1.1", "1.9.1.2"]]


def test_leftovers_that_are_damaged_are_removed(place: Place, log: Log) -> None:
    place.add("1.9.1", "1.9.1.1")
    place.add("1.9.2", "1.9.2.1")
    notes = sorted(place.folder.glob("*.json"))
    (notes[0].with_suffix("") / "00001.dcm").write_bytes(b"Wodehouse")
    notes[1].write_text(json.dumps({"sender": SENDER}))
    place.restart()
    assert list(place.folder.iterdir()) == []
    assert "a series left from before cannot be read; it was removed: send it again" in log.lines


@pytest.mark.parametrize("options", [{"most_instances": 2}, {"most_bytes": 2 * len(content("1.9.1", "1.9.1.1"))}])
def test_a_series_that_is_too_large_is_refused_as_a_whole(tmp_path: Path, log: Log, options: dict[str, int]) -> None:
    place = Place(tmp_path / "arrivals", **options)
    place.add("1.9.1", "1.9.1.1", "1.9.1.2")
    for instance in ("1.9.1.3", "1.9.1.1"):
        with pytest.raises(CapacityError, match=r"a series may have \d+ instances and \d+ bytes; this one has more"):
            place.add("1.9.1", instance)
    place.add("1.9.2", "1.9.2.1")
    assert place.complete_after(10.0) == [["1.9.2.1"]]
    assert f"a series of 2 instances from {SENDER} outgrew the limits: not taken" in log.lines
    assert len(list(place.folder.iterdir())) == 2


def test_a_full_disk_refuses_the_series_until_all_has_come(
    place: Place, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "/secret/Wodehouse.dcm")

    def refused(series: str, instance: str, name: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(Unavailable, match=r"cannot be written \(ENOSPC\)"):
                place.add(series, instance)

    refused("1.9.1", "1.9.1.1", "mkdir")
    place.add("1.9.1", "1.9.1.2")
    refused("1.9.1", "1.9.1.3", "fsync")
    assert place.complete_after(10.0) == []
    assert f"a series of 1 instances from {SENDER} lacks 2 that were refused: not taken" in log.lines
    assert list(place.folder.iterdir()) == []
    place.add("1.9.1", "1.9.1.2")
    refused("1.9.1", "1.9.1.3", "fsync")
    place.add("1.9.1", "1.9.1.3")
    assert place.complete_after(10.0) == [["1.9.1.2", "1.9.1.3"]]


def test_a_disk_that_is_nearly_full_counts_as_full(tmp_path: Path) -> None:
    place = Place(tmp_path / "arrivals", least_free_bytes=2**60)
    with pytest.raises(Unavailable, match="less than 1152921504606846976 bytes free; free space, send it again"):
        place.add("1.9.1", "1.9.1.1")
    assert place.complete_after(10.0) == []


@pytest.mark.parametrize("stored", [None, b"", b"Wodehouse", b"1", b"1.2/../3", b"1." + b"2" * 70, b"1.2\\1.3"])
def test_an_instance_that_does_not_say_who_it_is(stored: bytes | None) -> None:
    dataset = pydicom.dcmread(io.BytesIO(content("1.9.1", "1.9.1.1")))
    assert identity(dataset) == ("1.9.1", "1.9.1.1")
    if stored is None:
        del dataset.SeriesInstanceUID
    else:
        element = dataset.get_item("SeriesInstanceUID")
        dataset._dict[element.tag] = element._replace(value=stored)
    with pytest.raises(DataError, match="does not say its own UID and that of its series"):
        identity(dataset)


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 4)),
            st.tuples(st.sampled_from(["quiet", "restart"]), st.just(0)),
        ),
        max_size=15,
    )
)
def test_every_round_has_all_that_came(steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory) -> None:
    place = Place(tmp_path_factory.mktemp("arrivals"), keep_seconds=10**9)
    came: set[str] = set()
    is_new = False
    for step, number in steps:
        if step == "add":
            place.add("1.9.1", f"1.9.1.{number}")
            came.add(f"1.9.1.{number}")
            is_new = True
        elif step == "restart":
            place.restart()
            if not is_new:
                came.clear()  # what was taken is kept for late instances, but not beyond a restart
        else:
            assert place.complete_after(10.0) == ([sorted(came)] if is_new else [])
            for one in place.rounds:
                place.arrivals.keep(one)
            is_new = False
