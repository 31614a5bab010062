from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from core import registry
from core.aliases import alias_file, store
from core.errors import ArtifactError

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "GitWildMatchPattern")  # BentoML's, at its import
    import bentoml.models

NAME = "finance.fraud"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run."""
    path = tmp_path / "run"
    path.mkdir()
    for name in registry.FILES:
        (path / name).write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(1000))
    (path / "report.json").write_text(json.dumps({"scores": {"average_precision": 0.7}}))
    (path / "code.json").write_text(json.dumps({"application": NAME, "commit": "abc", "dirty": False}))
    (path / "metrics.jsonl").write_text("not of the version")
    return path


def test_a_run_becomes_a_version_of_the_store(run: Path, home: Path) -> None:
    version = registry.register(run, NAME)
    found = registry.resolve(NAME, version)
    assert found.path == home / "models" / NAME / version
    assert found.report["scores"] == {"average_precision": 0.7}
    assert found.code["commit"] == "abc"
    assert (found.aliases, found.threshold) == ((), None)
    assert abs(found.created.timestamp() - time.time()) < 60
    assert {path.name for path in found.path.iterdir()} == {*registry.FILES, "manifest.json", "model.yaml"}
    assert (found.path / "model.safetensors").read_bytes() == bytes(1000)
    assert list((home / "verticals").glob("staging-*")) == []


def test_bentoml_knows_it_too(run: Path) -> None:
    from bentoml._internal.models import ModelStore

    versions = [registry.register(run, NAME) for _ in range(2)]
    opened = ModelStore(store())
    assert sorted(str(model.tag) for model in bentoml.models.list(NAME, _model_store=opened)) == sorted(
        f"{NAME}:{v}" for v in versions
    )
    assert bentoml.models.get(f"{NAME}:latest", _model_store=opened).tag.version == versions[-1]


def test_a_damaged_version_does_not_hide_the_others(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = registry.register(run, NAME), registry.register(run, NAME)
    (store() / NAME / bad / "manifest.json").write_text("{")
    assert [version.version for version in registry.versions(NAME)] == [good]
    assert bad in caplog.text


def test_versions_are_short_unique_and_sort_by_age(run: Path) -> None:
    names = [registry.register(run, NAME) for _ in range(3)]
    assert len(set(names)) == 3
    assert all(len(name) == 24 for name in names)
    listed = registry.versions(NAME)
    assert {version.version for version in listed} == set(names)
    assert [version.version for version in listed] == sorted(names)
    assert [v.created.replace(microsecond=0) for v in listed] == sorted(
        v.created.replace(microsecond=0) for v in listed
    )
    assert registry.versions("finance.aml") == []


@pytest.mark.parametrize("name", [*registry.FILES, "code.json"])
def test_an_unfinished_run_is_refused(run: Path, home: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(ArtifactError, match=f"has no {name}"):
        registry.register(run, NAME)
    assert not (home / "models" / NAME).exists()


def test_a_run_of_another_application_is_refused(run: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is a run of finance\.fraud, not of finance\.aml"):
        registry.register(run, "finance.aml")


def test_a_crash_while_copying_leaves_no_version(run: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "rename", crash)
    with pytest.raises(OSError, match="no space"):
        registry.register(run, NAME)
    assert registry.versions(NAME) == []
    assert list((home / "models").rglob("model.yaml")) == []


# resolving


def test_no_model_names_the_command_that_makes_one(home: Path) -> None:
    with pytest.raises(
        ArtifactError, match=rf"no model of finance\.fraud in {home}/models; .*verticals train finance\.fraud"
    ):
        registry.resolve(NAME)


def test_an_unknown_name_lists_what_there_is(run: Path) -> None:
    version = registry.register(run, NAME)
    registry.set_alias(NAME, "candidate", version)
    for name in ("production", "20200101t000000-00000000", "../../etc", ""):
        with pytest.raises(ArtifactError, match=f"versions {version} and the aliases candidate"):
            registry.resolve(NAME, name)


@pytest.mark.parametrize("name", registry.FILES)
def test_a_changed_file_is_named(run: Path, name: str) -> None:
    version = registry.register(run, NAME)
    path = store() / NAME / version / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        registry.resolve(NAME, version)


@pytest.mark.parametrize("name", [*registry.FILES, "manifest.json"])
def test_a_missing_file_is_named(run: Path, name: str) -> None:
    version = registry.register(run, NAME)
    (store() / NAME / version / name).unlink()
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        registry.resolve(NAME, version)


def test_a_truncated_weight_file_is_named(run: Path) -> None:
    version = registry.register(run, NAME)
    os.truncate(store() / NAME / version / "model.safetensors", 500)
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not what was registered"):
        registry.resolve(NAME, version)


def test_an_added_file_is_named(run: Path) -> None:
    version = registry.register(run, NAME)
    (store() / NAME / version / "model.pkl").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"model\.pkl was added"):
        registry.resolve(NAME, version)


def test_a_model_of_another_application_is_refused(run: Path) -> None:
    version = registry.register(run, NAME)
    shutil.copytree(store() / NAME, store() / "finance.aml")
    with pytest.raises(ArtifactError, match=r"a model of finance\.fraud, not of finance\.aml"):
        registry.resolve("finance.aml", version)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"layout": 2}, "layout 2; this code reads 1"),
        ({"created": "2020-01-01T00:00:00+00:00"}, "manifest.json is not"),
    ],
)
def test_a_changed_manifest_is_refused(run: Path, change: dict[str, object], text: str) -> None:
    version = registry.register(run, NAME)
    path = store() / NAME / version / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ArtifactError, match=text):
        registry.resolve(NAME, version)


@pytest.mark.parametrize("name", ["", "Finance", "a/b", "../x", "a" * 64, "-a"])
def test_names_that_are_no_folder_are_refused(run: Path, name: str) -> None:
    for call in (
        lambda: registry.register(run, name),
        lambda: registry.resolve(name),
        lambda: registry.set_alias(NAME, name, "x"),
    ):
        with pytest.raises(ArtifactError, match="is not allowed"):
            call()


# aliases and thresholds


def test_aliases_point_at_versions_and_at_each_other(run: Path) -> None:
    first, second = registry.register(run, NAME), registry.register(run, NAME)
    assert registry.set_alias(NAME, "candidate", first).aliases == ("candidate",)
    registry.set_alias(NAME, "production", "candidate")
    registry.set_alias(NAME, "candidate", second)
    assert registry.aliases(NAME) == {"production": first, "candidate": second}
    assert registry.resolve(NAME).version == first
    assert {v.version: v.aliases for v in registry.versions(NAME)} == {first: ("production",), second: ("candidate",)}


def test_an_alias_cannot_point_at_nothing_or_damage(run: Path) -> None:
    version = registry.register(run, NAME)
    registry.set_alias(NAME, "production", version)
    with pytest.raises(ArtifactError, match="has no 'nothing'"):
        registry.set_alias(NAME, "production", "nothing")
    with pytest.raises(ArtifactError, match="form of a version"):
        registry.set_alias(NAME, version, version)
    broken = registry.register(run, NAME)
    (store() / NAME / broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="safetensors"):
        registry.set_alias(NAME, "production", broken)
    assert registry.aliases(NAME) == {"production": version}


def test_a_threshold_belongs_to_the_version_it_was_chosen_on(run: Path) -> None:
    first, second = registry.register(run, NAME), registry.register(run, NAME)
    registry.set_alias(NAME, "production", first)
    registry.set_threshold(NAME, "production", 0.25)
    assert registry.resolve(NAME).threshold == 0.25
    registry.set_alias(NAME, "production", second)
    assert registry.resolve(NAME).threshold is None
    registry.set_threshold(NAME, second, 0.5)
    assert registry.thresholds(NAME) == {first: 0.25, second: 0.5}
    registry.set_alias(NAME, "production", first)
    assert registry.resolve(NAME).threshold == 0.25
    registry.set_threshold(NAME, first, None)
    assert registry.resolve(NAME).threshold is None


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_is_a_number(run: Path, threshold: float) -> None:
    version = registry.register(run, NAME)
    with pytest.raises(ArtifactError, match="not a finite number"):
        registry.set_threshold(NAME, version, threshold)


def test_a_version_in_use_is_not_deleted(run: Path) -> None:
    first, second = registry.register(run, NAME), registry.register(run, NAME)
    registry.set_alias(NAME, "production", first)
    registry.set_alias(NAME, "candidate", first)
    with pytest.raises(ArtifactError, match="is candidate and production"):
        registry.delete(NAME, first)
    registry.set_threshold(NAME, second, 0.5)
    registry.delete(NAME, second)
    assert [version.version for version in registry.versions(NAME)] == [first]
    assert registry.thresholds(NAME) == {}
    with pytest.raises(ArtifactError, match=f"production is an alias; give the version itself, {first}"):
        registry.delete(NAME, "production")
    for name in (second, "../x"):
        with pytest.raises(ArtifactError, match="has no"):
            registry.delete(NAME, name)


def test_an_alias_of_a_version_that_is_gone_says_so(run: Path) -> None:
    first, second = registry.register(run, NAME), registry.register(run, NAME)
    registry.set_alias(NAME, "production", first)
    shutil.rmtree(store() / NAME / first)
    with pytest.raises(
        ArtifactError, match=f"production of finance.fraud is {first}, which is gone; known are {second}"
    ):
        registry.resolve(NAME)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"layout": 2, "applications": {}}',
        '{"layout": 1}',
        '{"layout": 1, "applications": {"a.b": {"aliases": {}}}}',
        '{"layout": 1, "applications": {"a.b": {"aliases": {"production": "../../x"}, "thresholds": {}}}}',
        '{"layout": 1, "applications": {"a.b": {"aliases": {}, "thresholds": {"v": NaN}}}}',
        '{"layout": 1, "applications": {"a.b": {"aliases": {}, "thresholds": {"v": "high"}}}}',
        "\udcff",
    ],
)
def test_a_damaged_alias_file_says_what_to_do_and_is_not_overwritten(run: Path, text: str) -> None:
    version = registry.register(run, NAME)
    alias_file().write_bytes(text.encode(errors="surrogateescape"))
    before = alias_file().read_bytes()
    for call in (
        lambda: registry.resolve(NAME),
        lambda: registry.versions(NAME),
        lambda: registry.set_alias(NAME, "production", version),
    ):
        with pytest.raises(ArtifactError, match=r"aliases\.json is damaged .* restore it from a copy, or delete it"):
            call()
    assert alias_file().read_bytes() == before


WRITER = """
import sys
from core import registry
version, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for n in range(first, first + count):
    registry.set_alias("finance.fraud", f"alias-{n}", version)
"""


def test_concurrent_writers_lose_nothing_and_readers_never_see_half(run: Path) -> None:
    version = registry.register(run, NAME)
    registry.set_alias(NAME, "production", version)
    done, reads = threading.Event(), list[int]()

    def read() -> None:
        while not done.is_set():
            known = registry.aliases(NAME)
            assert known["production"] == version
            reads.append(len(known))

    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, version, str(first), "20"], cwd=ROOT) for first in (100, 200)
    ]
    with ThreadPoolExecutor(3) as threads:
        reader = threads.submit(read)
        writers = [
            threads.submit(
                lambda first=first: [registry.set_alias(NAME, f"alias-{n}", version) for n in range(first, first + 20)]
            )  # type: ignore[misc]
            for first in (300, 400)
        ]
        for writer in writers:
            writer.result()
        assert [process.wait(60) for process in processes] == [0, 0]
        done.set()
        reader.result()
    assert len(registry.aliases(NAME)) == 81
    assert reads == sorted(reads)
    assert len(set(reads)) > 3


def test_importing_and_reading_it_is_cheap(run: Path) -> None:
    version = registry.register(run, NAME)
    registry.set_alias(NAME, "production", version)
    code = (
        "import sys; from core import registry; registry.versions('finance.fraud'); registry.resolve('finance.fraud'); "
        "print([name for name in ('bentoml', 'torch', 'numpy', 'pydantic') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
