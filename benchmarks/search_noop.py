"""The multimodal service with one endpoint more that does nothing, to be served beside `search_by_text` by vector_search.py.

`noop` takes the same question through the same layers (HTTP, limits, parsing, checking, answer): what searching adds can be read off.
"""

from __future__ import annotations

import bentoml

from verticals.multimodal.requests import Answer, TextQuery
from verticals.multimodal.service import Multimodal, MultimodalService


class WithNoop(Multimodal):
    @bentoml.api  # type: ignore[untyped-decorator]
    async def noop(self, request: TextQuery, /) -> Answer:
        """Answers without doing anything."""
        return Answer(hits=[], items=0, version="", text_cut=False, seconds=0.0)


svc = bentoml.service(
    service_class=MultimodalService, name="multimodal_noop", workers=1, traffic={"timeout": 120, "max_concurrency": 512}
)(WithNoop)
