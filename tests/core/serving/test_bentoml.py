"""The private names of BentoML that core.serving and core.registry rely upon: read this first when the pin moves."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from pathlib import Path

import pytest
from _bentoml_impl.server.app import ServiceAppFactory
from _bentoml_sdk.service import Service
from bentoml._internal.context import server_context
from bentoml._internal.models import ModelStore
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware
from bentoml._internal.server.http.traffic import MaxConcurrencyMiddleware, TimeoutMiddleware
from bentoml._internal.utils.analytics.usage_stats import do_not_track
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.requests import Request

from core.aliases import store
from core.serving.uploads import Upload
from tests.core.serving import echo


def test_it_is_the_version_that_was_read() -> None:
    assert version("bentoml") == "1.4.39"


def test_the_service_is_wrapped_where_it_becomes_an_application() -> None:
    assert list(inspect.signature(Service.to_asgi).parameters) == ["self", "is_main"]
    assert callable(Service.inject_config)
    assert callable(Service.__attrs_post_init__)


def test_errors_pass_through_api_endpoint() -> None:
    assert list(inspect.signature(ServiceAppFactory.api_endpoint).parameters) == ["self", "name", "request"]
    assert inspect.iscoroutinefunction(ServiceAppFactory.api_endpoint)
    assert "self.api_endpoint(name, request)" in inspect.getsource(ServiceAppFactory.api_endpoint_wrapper)


def test_the_layers_that_are_replaced_are_there() -> None:
    service = echo.service()
    service.inject_config()
    assert isinstance(ServiceAppFactory.middlewares, property)
    layers = [layer.cls for layer in ServiceAppFactory(service).middlewares]
    assert layers[0] is RunnerTrafficMetricsMiddleware
    assert {OpenTelemetryMiddleware, TimeoutMiddleware, MaxConcurrencyMiddleware} <= set(layers)
    assert not any(layer.__name__ == "AccessLogMiddleware" for layer in layers)  # off by default


def test_a_worker_knows_that_it_is_one() -> None:
    assert server_context.worker_index is None  # here nobody started us


def test_a_service_reports_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENTOML_DO_NOT_TRACK", raising=False)
    do_not_track.cache_clear()
    assert do_not_track() is False  # as the command asks before it imports the service
    echo.service()
    assert do_not_track() is True


async def test_an_upload_reaches_its_endpoint_unread() -> None:
    class Form(Upload):
        scan: Path
        note: str = ""

    assert list(inspect.signature(Upload.from_http_request).parameters) == ["request", "serde"]
    assert "input_spec.from_http_request(request, serde)" in inspect.getsource(ServiceAppFactory.api_endpoint)
    assert Form.multipart_fields == ["scan"]
    assert Form.mime_type() == "multipart/form-data"
    unread = await Form.from_http_request(Request({"type": "http", "headers": [(b"content-length", b"7")]}), None)
    assert unread.num_bytes == 7


def test_the_model_store_is_a_folder(tmp_path: Path, home: Path) -> None:
    from bentoml.models import create, delete

    assert "_model_store" in inspect.signature(create).parameters
    assert "_model_store" in inspect.signature(delete).parameters
    with create("a.b:1", _model_store=ModelStore(tmp_path / "models")):
        pass
    assert (tmp_path / "models/a.b/1/model.yaml").is_file()
    assert store() == home / "models"
