"""The command as tests type it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipelines import cli


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the JSON on stdout."""
    code = cli.main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)
