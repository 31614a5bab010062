from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from core.errors import CapacityError, ConfigError, DataError, Unavailable
from tests.servers import Orthanc, free_port
from tests.verticals.medical.connect.conftest import NUM_SLICES, Archive, Log, Study, says_nothing_of
from verticals.medical.connect import dicomweb
from verticals.medical.connect.dicomweb import DicomWeb, Found, choose_series
from verticals.medical.dicom.series import read_series
from verticals.medical.dicom.write import write_series


@pytest.fixture
def web(orthanc: Orthanc, log: Log) -> Iterator[DicomWeb]:
    with DicomWeb(f"{orthanc.url}/dicom-web/") as web:
        yield web


def test_a_series_goes_in_comes_out_and_its_segmentation_goes_in(
    web: DicomWeb, archive: Archive, study: Study, tmp_path: Path, log: Log
) -> None:
    web.store(study.paths)
    (found,) = web.find_series(study.study_uid)
    assert (found.uid, found.num_instances) == (study.series_uid, NUM_SLICES)
    folder = tmp_path / "fetched"
    folder.mkdir()
    paths = web.fetch_series(study.study_uid, found, folder)
    assert [path.name for path in paths] == [f"{n:05}.dcm" for n in range(1, NUM_SLICES + 1)]
    series = read_series(folder)
    np.testing.assert_array_equal(series.volume.array, study.volume.array)
    assert series.volume.grid.same_as(study.volume.grid)
    web.store([study.seg])
    assert archive.modalities_of(study) == {"CT": NUM_SLICES, "SEG": 1}
    assert [one.uid for one in web.find_series(study.study_uid)] == [study.series_uid]  # of CT only
    assert says_nothing_of(study, "\n".join(log.lines) + repr(found))


def test_instances_stay_compressed_as_they_are(
    web: DicomWeb, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in study.paths:
        dataset = pydicom.dcmread(path)
        dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
        dataset.save_as(path)
    web.store(study.paths)
    monkeypatch.setattr(web._client, "_chunk_size", 100)  # parts that lie across many chunks
    paths = web.fetch_series(study.study_uid, web.find_series(study.study_uid)[0], tmp_path)
    assert {pydicom.dcmread(path).file_meta.TransferSyntaxUID for path in paths} == {"1.2.840.10008.1.2.5"}
    np.testing.assert_array_equal(read_series(paths).volume.array, study.volume.array)


def test_of_two_series_one_is_chosen(web: DicomWeb, study: Study, tmp_path: Path) -> None:
    web.store(study.paths)
    other = str(generate_uid())
    write_series(study.volume, tmp_path / "other", study_uid=study.study_uid, series_uid=other)
    for path in (tmp_path / "other").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SeriesNumber = 7
        dataset.save_as(path)
    web.store(sorted((tmp_path / "other").iterdir())[:4])
    found = web.find_series(study.study_uid)
    with pytest.raises(
        DataError, match=r"2 CT series: .*number 7 \(4 slices\).*choose one by its number or UID"
    ) as caught:
        choose_series(found)
    assert says_nothing_of(study, str(caught.value))
    assert choose_series(found, "7").uid == choose_series(found, other).uid == other


def test_choosing_says_what_there_is() -> None:
    one, two = Found("1.2.3", 2, 60), Found("1.2.4", None, None)
    assert choose_series([one]) is one
    with pytest.raises(DataError, match="no CT series; name a study with one"):
        choose_series([])
    with pytest.raises(
        DataError, match=r"no CT series as given by --series, of 2: number 2 \(60 slices\), without a number"
    ):
        choose_series([one, two], "5")
    with pytest.raises(DataError, match=r"2 CT series as given .*; choose it by its UID"):
        choose_series([one, Found("1.2.5", 2, 3)], "2")
    with pytest.raises(DataError, match=r"number 20 \(1 slices\) and more;"):
        choose_series([Found(f"1.{n}", n, 1) for n in range(1, 30)])


def test_bounds_hold_and_nothing_is_left(web: DicomWeb, study: Study, tmp_path: Path) -> None:
    web.store(study.paths)
    found = web.find_series(study.study_uid)[0]
    folder = tmp_path / "fetched"
    folder.mkdir()
    with pytest.raises(CapacityError, match="the series has 6 instances; allowed are 5"):
        web.fetch_series(study.study_uid, found, folder, most_instances=5)
    with pytest.raises(CapacityError, match="over 5 instances"):
        web.fetch_series(study.study_uid, Found(found.uid, 1, None), folder, most_instances=5)
    with pytest.raises(CapacityError, match="over 1000 bytes"):
        web.fetch_series(study.study_uid, found, folder, most_bytes=1000)
    with pytest.raises(DataError, match=r"sent 6 of 7 instances .*fetch it again"):
        web.fetch_series(study.study_uid, Found(found.uid, 1, 7), folder)
    with pytest.raises(Unavailable, match="files cannot be written"):
        web.fetch_series(study.study_uid, found, folder / "none")
    assert list(folder.iterdir()) == []


def test_what_is_not_there(web: DicomWeb, study: Study, tmp_path: Path) -> None:
    assert web.find_series(study.study_uid) == []
    with pytest.raises(DataError, match=r"nothing there \(HTTP 404\)|sent 0 of") as caught:
        web.fetch_series(study.study_uid, Found(study.series_uid, 1, 6), tmp_path)
    assert says_nothing_of(study, str(caught.value))
    for wrong in ("Wodehouse", "1.2/../3", "", "1." + "2" * 70):
        with pytest.raises(DataError, match="the UID of the study is none; allowed are numbers") as caught:
            web.find_series(wrong)
        assert not wrong or wrong not in str(caught.value)


def test_files_that_are_none_or_refused(web: DicomWeb, study: Study, tmp_path: Path) -> None:
    text = tmp_path / "Wodehouse.dcm"
    text.write_text("no DICOM")
    with pytest.raises(DataError, match="file 2 of 2 is no DICOM file") as caught:
        web.store([study.seg, text])
    assert says_nothing_of(study, str(caught.value))
    dataset = pydicom.dcmread(study.seg)
    del dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.PatientID
    dataset.save_as(text)
    with pytest.raises(DataError, match=r"refuses the request \(HTTP 400\)"):
        web.store([text])


@pytest.mark.parametrize(
    "url", ["ftp://pacs/x", "file:///etc/passwd", "pacs:8042", "http://", "http://u:s3cret@pacs:port/", "http://a/?x=1"]
)
def test_urls_that_are_not_allowed(url: str) -> None:
    with pytest.raises(ConfigError, match="allowed is http") as caught:
        DicomWeb(url)
    assert "s3cret" not in str(caught.value)


Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Starts a server that answers every request so; gives its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                answer(self)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.close_connection = True
                answer(self)

            def log_message(self, *given: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def saying(status: int, body: bytes = b"", kind: str = "application/dicom+json", **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [
        (401, DataError, r"does not let us in \(HTTP 401\); set VERTICALS_DICOMWEB_TOKEN, or"),
        (403, DataError, "does not let us in"),
        (404, DataError, "nothing there .* see that the URL and the study's UID are right"),
        (400, DataError, r"refuses the request \(HTTP 400\); look into its log"),
        (413, DataError, "takes no file of this size"),
        (429, Unavailable, r"cannot answer now \(HTTP 429\); try again later"),
        (503, Unavailable, "cannot answer now"),
    ],
)
def test_http_errors_say_what_to_do(
    serve: Callable[[Answer], str], study: Study, log: Log, status: int, kind: type[Exception], text: str
) -> None:
    with DicomWeb(serve(saying(status, b"Wodehouse"))) as web:
        for call in (lambda: web.find_series(study.study_uid), lambda: web.store([study.seg])):
            with pytest.raises(kind, match=text) as caught:
                call()
            assert says_nothing_of(study, str(caught.value) + "\n".join(log.lines))
            assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    "body", [b"<html>", b'["x"]', b'[{"0020000E": 5}]', b'[{"0020000E": {"Value": [null]}}]', b"\xff\xfe"]
)
def test_what_is_no_dicomweb(serve: Callable[[Answer], str], study: Study, body: bytes) -> None:
    url = serve(saying(200, body))
    with DicomWeb(url) as web, pytest.raises(DataError, match="is not DICOMweb|UID of the series is none"):
        web.find_series(study.study_uid)


def test_a_transfer_that_breaks_off_leaves_nothing(
    serve: Callable[[Answer], str], study: Study, tmp_path: Path
) -> None:
    part = b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n" + study.paths[0].read_bytes()

    def broken(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", 'multipart/related; type="application/dicom"; boundary=b')
        request.send_header("Content-Length", str(10 * len(part)))
        request.end_headers()
        request.wfile.write(part + part[: len(part) // 2])
        request.close_connection = True

    folder = tmp_path / "fetched"
    folder.mkdir()
    with DicomWeb(serve(broken)) as web, pytest.raises(Unavailable, match="does not answer, or broke off"):
        web.fetch_series(study.study_uid, Found(study.series_uid, 1, 2), folder)
    assert list(folder.iterdir()) == []
    for body in (part[2:-500] + b"\r\n--b--\r\n", b"--b\r\nnothing\r\n--b--"):
        answer = saying(200, body, 'multipart/related; type="application/dicom"; boundary=b')
        with DicomWeb(serve(answer)) as web, pytest.raises(DataError):
            web.fetch_series(study.study_uid, Found(study.series_uid, 1, 2), folder)
        assert list(folder.iterdir()) == []


PARTS = 'multipart/related; type="application/dicom"; boundary=b'


def test_a_series_that_was_not_asked_for_is_not_kept(
    serve: Callable[[Answer], str], study: Study, tmp_path: Path
) -> None:
    """A cache between us and the archive may mix up patients."""
    body = b"".join(
        b"--b\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes() + b"\r\n" for path in study.paths
    )
    url = serve(saying(200, body + b"--b--", PARTS))
    asked = [(generate_uid(), study.series_uid), (study.study_uid, generate_uid())]
    for study_uid, series_uid in asked:
        with (
            DicomWeb(url) as web,
            pytest.raises(DataError, match="another study or series than was asked for") as caught,
        ):
            web.fetch_series(study_uid, Found(series_uid, 1, len(study.paths)), tmp_path)
        assert says_nothing_of(study, str(caught.value))
        assert list(tmp_path.glob("0*.dcm")) == []
    with DicomWeb(url) as web:
        assert len(web.fetch_series(study.study_uid, Found(study.series_uid, 1, len(study.paths)), tmp_path)) > 1


def test_what_is_held_at_a_time_is_bounded(
    serve: Callable[[Answer], str], study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", PARTS)
        request.end_headers()
        request.close_connection = True
        request.wfile.write(b"--b\r\nContent-Type: application/dicom\r\n\r\n")
        with suppress(OSError):
            for _ in range(100):
                sent.append(request.wfile.write(b"x" * 2**20))

    monkeypatch.setattr(dicomweb, "MAX_FILE_BYTES", 3 * 2**20)
    with DicomWeb(serve(endless)) as web, pytest.raises(CapacityError, match="an instance of over 4 MiB"):
        web.fetch_series(study.study_uid, Found(study.series_uid, 1, 2), tmp_path)
    assert len(sent) < 50
    packed = gzip.compress(b"[" + b" " * (dicomweb.MOST_LISTED_BYTES + 10**6) + b"]")
    with (
        DicomWeb(serve(saying(200, packed, **{"Content-Encoding": "gzip"}))) as web,
        pytest.raises(CapacityError, match="an answer of over 16 MiB"),
    ):
        web.find_series(study.study_uid)


@pytest.mark.parametrize("status", [202, 409])
def test_what_a_server_refuses_is_told(serve: Callable[[Answer], str], study: Study, status: int) -> None:
    body = (
        '{"00081198": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["' + study.series_uid + '"]},'
        '"00081197": {"vr": "US", "Value": [42752]}}]}}'
    )
    url = serve(saying(status, body.encode()))
    with (
        DicomWeb(url) as web,
        pytest.raises(DataError, match=r"refused file 1 of 2: out of resources \(0xA700\); file 2") as caught,
    ):
        web.store([study.seg, study.paths[0]])
    assert says_nothing_of(study, str(caught.value))
    with DicomWeb(serve(saying(200, b"{}"))) as web, pytest.raises(DataError, match="does not say that it is stored"):
        web.store([study.seg])


def test_servers_that_are_away_or_slow_or_elsewhere(serve: Callable[[Answer], str], study: Study) -> None:
    with DicomWeb(f"http://user:s3cret@127.0.0.1:{free_port()}/x") as web:
        with pytest.raises(Unavailable, match=r"http://127.0.0.1:\d+ does not answer") as caught:
            web.find_series(study.study_uid)
        assert "s3cret" not in str(caught.value) + web.name
    ending = threading.Event()
    with DicomWeb(serve(lambda request: ending.wait(10) and None), timeout_seconds=0.1) as web:
        with pytest.raises(Unavailable, match="did not answer in time"):
            web.find_series(study.study_uid)
        ending.set()
    url = serve(saying(302, Location="http://127.0.0.1:1/elsewhere"))
    with DicomWeb(url) as web, pytest.raises(DataError, match="sends us on to another address"):
        web.find_series(study.study_uid)


def test_credentials_come_from_argument_url_and_environment(
    serve: Callable[[Answer], str], study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        assert f"http://{request.headers['Host']}" == url
        seen.append(f"{request.headers['Authorization']} {request.headers['X-Gate']}")
        saying(200, b"[]")(request)

    url = serve(answer)

    def ask(url: str, **options: Any) -> str:
        with DicomWeb(url, **options) as web:
            web.find_series(study.study_uid)
        return seen[-1]

    assert ask(url) == "None None"
    monkeypatch.setenv("VERTICALS_DICOMWEB_USER", "a")
    monkeypatch.setenv("VERTICALS_DICOMWEB_PASSWORD", "b")
    assert ask(url, headers={"X-Gate": "k"}) == "Basic YTpi k"
    monkeypatch.setenv("VERTICALS_DICOMWEB_TOKEN", "t")
    assert ask(url) == "Bearer t None"
    assert ask(url.replace("//", "//c:d%40@")) == "Basic YzpkQA== None"
    assert ask(url.replace("//", "//c:d@"), auth=("e", "f")) == "Basic ZTpm None"
