"""A PACS by DICOMweb: find the CT series of a study, fetch one to disk, store results.

Messages name the server's address, series numbers and counts; never a UID, a description or a patient. Credentials come as
arguments, in the URL, or from VERTICALS_DICOMWEB_TOKEN (a bearer token) or VERTICALS_DICOMWEB_USER with _PASSWORD.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import pydicom
import requests
from dicomweb_client.web import DICOMwebClient
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from core.durable.files import written
from core.errors import CapacityError, ConfigError, DataError, Unavailable
from verticals.medical.connect import is_uid, reason, silence
from verticals.medical.dicom.headers import FAULTS, MAX_FILE_BYTES, quiet

TOKEN, USER, PASSWORD = (f"VERTICALS_DICOMWEB_{name}" for name in ("TOKEN", "USER", "PASSWORD"))
CONNECT_SECONDS = 5.0
AS_STORED = (("application/dicom", "*"),)
"""Any transfer syntax."""
MOST_INSTANCES = 5000
MOST_BYTES = 8 * 2**30
MOST_LISTED_BYTES = 2**24
"""Of an answer that lists something."""


@dataclass(frozen=True)
class Found:
    """A CT series of a study, as the server lists it."""

    uid: str = field(repr=False)
    number: int | None
    """The series number that workstations show."""
    num_instances: int | None
    """Slices, where the server tells."""

    def __str__(self) -> str:
        number = "without a number" if self.number is None else f"number {self.number}"
        return f"{number} ({'?' if self.num_instances is None else self.num_instances} slices)"


def choose_series(found: Sequence[Found], wanted: str | None = None) -> Found:
    """The one series, or the one that is wanted by its number or UID.

    Raises:
        DataError: there is none, or more than one that fits.
    """
    if not found:
        raise DataError("the study holds no CT series; name a study with one")
    listed = ", ".join(map(str, found[:20])) + (" and more" if len(found) > 20 else "")
    fits = [one for one in found if wanted is None or wanted in (one.uid, str(one.number))]
    if len(fits) == 1:
        return fits[0]
    if wanted is None:
        raise DataError(f"the study holds {len(found)} CT series: {listed}; choose one by its number or UID (--series)")
    amount = f"{len(fits)} CT series" if fits else "no CT series"
    hint = "choose it by its UID" if fits else "choose one of these"
    raise DataError(f"the study holds {amount} as given by --series, of {len(found)}: {listed}; {hint}")


class _Bearer(AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class DicomWeb:
    """A server's DICOMweb root, such as `https://pacs.example/dicom-web`, until `close`. For one thread at a time."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        """
        Args:
            headers: sent with every request, such as a gateway's key.
            auth: user and password; before those of the URL, and these before the environment's.
            timeout_seconds: longest silence of the server.

        Raises:
            ConfigError: the URL is none of http or https. It is not repeated: it may hold a password.
        """
        silence("dicomweb_client", "urllib3", "pydicom")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise ConfigError(
                "the DICOMweb URL is not usable; allowed is http://HOST[:PORT]/PATH or https://..., without ? and #"
            )
        place = f"[{host}]" if ":" in host else host
        self.name = f"{parts.scheme}://{place}" + (f":{port}" if port else "")
        session = requests.Session()
        session.max_redirects = 0  # another host would get the patient's data
        session.auth = _auth(auth, unquote(parts.username or ""), unquote(parts.password or ""))
        again = Retry(
            2, read=False, status_forcelist=(502, 503, 504), allowed_methods=("GET",), backoff_factor=0.2,
            raise_on_status=False, respect_retry_after_header=False,
        )  # fmt: skip
        session.hooks["response"].append(self._bounded)
        session.mount(f"{parts.scheme}://", HTTPAdapter(max_retries=again))
        self._client = DICOMwebClient(
            self.name + parts.path.rstrip("/"),
            session=session,
            headers=dict(headers or {}),
            timeout=(CONNECT_SECONDS, timeout_seconds),
        )
        self._client.set_http_retry_params(retry=False)  # it would send a large file's second try empty
        self._client.host = self.name.partition("//")[2]  # it would leave out the port, and cut an IPv6 address
        self._session = session
        self._read = 0

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def find_series(self, study_uid: str) -> list[Found]:
        """The CT series of a study, by number.

        Raises:
            Unavailable: the server does not answer, or says that it cannot now.
            DataError: it refuses, or knows no such study.
        """
        _check("study", study_uid)
        with self._translated():
            answer = self._client.search_for_series(
                study_uid,
                fields=["SeriesNumber", "NumberOfSeriesRelatedInstances"],
                search_filters={"Modality": "CT"},
            )
            found = [
                Found(str(_value(row, "0020000E")), _integer(row, "00200011"), _integer(row, "00201209"))
                for row in answer
                if _value(row, "00080060") in ("CT", None)  # some servers ignore the filter
            ]
        for one in found:
            _check("series", one.uid)
        return sorted(found, key=lambda one: (one.number is None, one.number or 0))

    def fetch_series(
        self,
        study_uid: str,
        series: Found,
        folder: Path,
        *,
        most_instances: int = MOST_INSTANCES,
        most_bytes: int = MOST_BYTES,
    ) -> list[Path]:
        """Write a series into a folder as 00001.dcm, 00002.dcm and so on, one instance in memory at a time.

        Instances are kept as the server holds them, compressed ones too. Where it raises, nothing is left.

        Raises:
            Unavailable: as above, or the disk is full.
            DataError: as above, or the server sent fewer instances than it lists, or those of another series.
            CapacityError: the series is larger than allowed.
        """
        _check("study", study_uid)
        _check("series", series.uid)
        if (series.num_instances or 0) > most_instances:
            raise CapacityError(f"the series has {series.num_instances} instances; allowed are {most_instances}")
        paths: list[Path] = []
        try:
            with self._translated():
                self._receive(study_uid, series, folder, paths, most_instances, most_bytes)
            if not paths or (series.num_instances is not None and len(paths) < series.num_instances):
                raise DataError(
                    f"{self.name} sent {len(paths)} of {series.num_instances or '?'} instances of the series; fetch it again, "
                    "and look whether it is still being stored"
                )
        except BaseException:
            for path in paths:
                path.unlink(missing_ok=True)
            raise
        return paths

    def store(self, paths: Sequence[Path]) -> None:
        """Store DICOM files on the server, one a request.

        Raises:
            Unavailable: the server does not answer; what came before may be stored: storing again does no harm.
            DataError: files that the server refused, by their place among the given ones, and its reasons.
        """
        refused: list[str] = []
        for number, path in enumerate(paths, 1):
            with self._translated():
                try:
                    with quiet():
                        dataset = pydicom.dcmread(path)
                except FAULTS:
                    raise DataError(
                        f"file {number} of {len(paths)} is no DICOM file; nothing more was stored"
                    ) from None
                answer = self._store(dataset)
            for item in answer.get("FailedSOPSequence", []):
                refused.append(f"file {number} of {len(paths)}: {reason(int(item.get('FailureReason', 0)))}")
            if "FailedSOPSequence" not in answer and not answer.get("ReferencedSOPSequence"):
                refused.append(f"file {number} of {len(paths)}: the server does not say that it is stored")
        if refused:
            raise DataError(f"{self.name} refused {'; '.join(refused[:5])}; look into its log for the cause")

    def _receive(
        self, study_uid: str, series: Found, folder: Path, paths: list[Path], most_instances: int, most_bytes: int
    ) -> None:
        size = 0
        for dataset in self._client.iter_series(study_uid, series.uid, media_types=AS_STORED):
            if len(paths) == most_instances:
                raise CapacityError(f"the series has over {most_instances} instances, which is the limit")
            self._read = 0
            if (dataset.get("StudyInstanceUID"), dataset.get("SeriesInstanceUID")) != (study_uid, series.uid):
                raise DataError(
                    f"{self.name} sent an instance of another study or series than was asked for: it may be another patient's, "
                    "and nothing of it was kept; look into what stands between us and the archive"
                )
            paths.append(folder / f"{len(paths) + 1:05}.dcm")
            with written(), quiet():
                dataset.save_as(paths[-1], enforce_file_format=True)
                size += paths[-1].stat().st_size
            if size > most_bytes:
                raise CapacityError(f"the series has over {most_bytes} bytes, which is the limit")

    def _bounded(self, response: requests.Response, **_: Any) -> requests.Response:
        """The response, whose body raises CapacityError once more comes at a time than a slice, or a list, may have."""
        chunks = response.iter_content
        is_multipart = response.headers.get("content-type", "").startswith("multipart/")
        most = MAX_FILE_BYTES + 2**20 if is_multipart else MOST_LISTED_BYTES
        self._read = 0

        def counted(*given: Any, **options: Any) -> Iterator[bytes]:
            for chunk in chunks(*given, **options):
                self._read += len(chunk)
                if self._read > most:
                    what = "an instance" if is_multipart else "an answer"
                    raise CapacityError(f"{self.name} sends {what} of over {most / 2**20:.0f} MiB, which is the limit")
                yield chunk

        response.iter_content = counted  # type: ignore[method-assign]
        return response

    def _store(self, dataset: pydicom.Dataset) -> pydicom.Dataset:
        """What the server says to a dataset."""
        try:
            return self._client.store_instances([dataset])
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code != 409:  # 409 names what was refused
                raise
            return pydicom.Dataset.from_json(error.response.json())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what libraries raise, whose texts hold URLs with UIDs, into errors that say what to do."""
        try:
            yield
        except requests.HTTPError as error:
            raise self._refusal(0 if error.response is None else error.response.status_code) from None
        except requests.TooManyRedirects:
            raise DataError(f"{self.name} sends us on to another address; give the URL that it sends to") from None
        except requests.exceptions.SSLError:
            raise DataError(
                f"the certificate of {self.name} is not accepted; name its authority in REQUESTS_CA_BUNDLE"
            ) from None
        except requests.Timeout:
            raise Unavailable(f"{self.name} did not answer in time; try again, or allow more time") from None
        except requests.exceptions.InvalidJSONError:
            raise self._strange() from None
        except (requests.RequestException, OSError):
            raise Unavailable(
                f"{self.name} does not answer, or broke off; see that it runs and can be reached, try again"
            ) from None
        except FAULTS:
            raise self._strange() from None

    def _strange(self) -> DataError:
        return DataError(f"{self.name} answers something that is not DICOMweb; give the URL of its DICOMweb root")

    def _refusal(self, status: int) -> DataError | Unavailable:
        """What an HTTP status stands for."""
        if status in (401, 403):
            return DataError(f"{self.name} does not let us in (HTTP {status}); set {TOKEN}, or {USER} and {PASSWORD}")
        if status == 404:
            return DataError(
                f"{self.name} has nothing there (HTTP 404); see that the URL and the study's UID are right"
            )
        if status == 413:
            return DataError(f"{self.name} takes no file of this size (HTTP 413); raise its limit")
        if status in (408, 429) or status >= 500:
            return Unavailable(f"{self.name} cannot answer now (HTTP {status}); try again later")
        return DataError(f"{self.name} refuses the request (HTTP {status}); look into its log for the cause")


def _auth(given: tuple[str, str] | None, user: str, password: str) -> AuthBase | tuple[str, str] | None:
    if given or user:
        return given or (user, password)
    if token := os.environ.get(TOKEN):
        return _Bearer(token)
    if name := os.environ.get(USER):
        return name, os.environ.get(PASSWORD, "")
    return None


def _check(what: str, uid: str) -> None:
    if not is_uid(uid):
        raise DataError(f"the UID of the {what} is none; allowed are numbers with dots between, up to 64 characters")


def _value(row: Mapping[str, Any], tag: str) -> Any:
    """First value of an element in DICOM's JSON, None where it is empty."""
    return next(iter(row.get(tag, {}).get("Value", ())), None)


def _integer(row: Mapping[str, Any], tag: str) -> int | None:
    value = _value(row, tag)
    return None if value is None else int(value)
