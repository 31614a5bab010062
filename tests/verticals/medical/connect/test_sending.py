"""What a peer may answer to what is sent to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE
from pynetdicom.sop_class import Verification

from core.errors import DataError, Unavailable
from tests.servers import free_port
from tests.verticals.medical.connect.conftest import Study, says_nothing_of
from verticals.medical.connect.receiver import Peer, send

US = "VERTICALS"
LEAK = "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
"""pynetdicom leaves the socket of a connection that failed to the garbage collector."""


@pytest.mark.filterwarnings(LEAK)
def test_a_peer_that_has_no_line_free_is_called_again(study: Study) -> None:
    busy = AE("ORTHANC")
    busy.maximum_associations = 1
    busy.add_supported_context(Verification)
    server: Any = busy.start_server(("127.0.0.1", 0), block=False)
    port = server.socket.getsockname()[1]
    caller = AE("OTHER")
    caller.add_requested_context(Verification)
    open_one = caller.associate("127.0.0.1", port)
    try:
        with pytest.raises(Unavailable, match="takes no further call now"):
            send([study.seg], Peer("ORTHANC", "127.0.0.1", port), ae_title=US)
    finally:
        open_one.release()
        busy.shutdown()


@pytest.mark.filterwarnings(LEAK)
def test_sending_says_what_is_wrong(study: Study, tmp_path: Path) -> None:
    away = Peer("ORTHANC", "127.0.0.1", free_port())
    with pytest.raises(Unavailable, match=rf"ORTHANC@127.0.0.1 does not answer at port {away.port}"):
        send(study.paths, away, ae_title=US)
    text = tmp_path / "Wodehouse"
    text.write_text("x")
    with pytest.raises(DataError, match="file 2 of 2 is no DICOM file .*; nothing was sent") as caught:
        send([study.seg, text], away, ae_title=US)
    assert says_nothing_of(study, str(caught.value))
