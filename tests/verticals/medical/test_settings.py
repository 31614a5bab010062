"""What the environment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import ConfigError
from verticals.medical import settings
from verticals.medical.connect.receiver import Peer
from verticals.medical.settings import from_environment

GOOD = {"VERTICALS_DICOM_AE": "US", "VERTICALS_DICOM_PEERS": "PACS@10.0.0.5:104, OTHER@host"}


def test_settings_are_what_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path))
    given = from_environment()
    assert given.folder == tmp_path / "verticals" / "medical"
    assert (given.upload_bytes, given.node) == (2 * 10**9, None)
    for name, value in {**GOOD, "VERTICALS_JOBS_KEEP_HOURS": "2"}.items():
        monkeypatch.setenv(name, value)
    given = from_environment()
    assert given.keep_seconds == 7200
    assert given.node is not None
    assert given.node.peers == (Peer("PACS", "10.0.0.5", 104), Peer("OTHER", "host", 104))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"VERTICALS_UPLOAD_GB": "0"}, "VERTICALS_UPLOAD_GB is '0'; allowed is a number above 0"),
        ({"VERTICALS_MEMORY_GB": "nan"}, "VERTICALS_MEMORY_GB is 'nan'"),
        ({"VERTICALS_THREADS": "1.5"}, "VERTICALS_THREADS is '1.5'; allowed is a whole number"),
        ({"VERTICALS_SEGMENT_SECONDS": "-1"}, "VERTICALS_SEGMENT_SECONDS is '-1'"),
        ({"VERTICALS_JOBS_KEEP_HOURS": "day"}, "VERTICALS_JOBS_KEEP_HOURS is 'day'"),
        ({"VERTICALS_QUEUE_JOBS": ""}, "VERTICALS_QUEUE_JOBS is ''"),
        ({"VERTICALS_DICOM_PORT": "99"}, "VERTICALS_DICOM_PORT is set, but not VERTICALS_DICOM_AE"),
        ({**GOOD, "VERTICALS_DICOM_AE": "seventeen letters"}, "AE title 'seventeen letters'"),
        ({**GOOD, "VERTICALS_DICOM_PEERS": ""}, "names no node that may send"),
        ({**GOOD, "VERTICALS_DICOM_PEERS": "PACS"}, "names 'PACS'; allowed is TITLE@HOST:PORT"),
        ({**GOOD, "VERTICALS_DICOM_PEERS": "PACS@host:x"}, "allowed is TITLE@HOST:PORT"),
        ({**GOOD, "VERTICALS_DICOM_PEERS": "PACS@host:99999"}, "a port from 1 to 65535"),
        ({**GOOD, "VERTICALS_DICOM_PEERS": "PACS@host,PACS@host:1"}, "names a node twice"),
        ({**GOOD, "VERTICALS_DICOM_PORT": "70000"}, "VERTICALS_DICOM_PORT is 70000; allowed are 1 to 65535"),
        ({**GOOD, "VERTICALS_DICOM_QUIET_SECONDS": "inf"}, "VERTICALS_DICOM_QUIET_SECONDS is 'inf'"),
    ],
)
def test_a_setting_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], text: str) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        settings.from_environment()
    assert text in str(raised.value)
