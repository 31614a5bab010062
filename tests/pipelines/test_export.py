"""From a run to an artifact, to the service's registry, to a smaller model; and what is refused on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from core import registry
from core.compression import sensitivity
from core.inference import program
from pipelines import cli
from pipelines.chain import Chain
from pipelines.compress import compress
from pipelines.train import train
from tests.pipelines.command import run

NAME = "finance.fraud"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A registry whose production version is the debug recipe's, and its run."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(folder))
        made = train(NAME, recipe="debug", runs=str(folder / "runs"), alias="production")
        (folder / "runs" / "latest").symlink_to(Path(made["run"]).resolve())
        yield folder


@pytest.fixture(scope="module")
def onnx(home: Path) -> Path:
    """An artifact of the production version."""
    path = home / "artifacts" / "onnx"
    assert cli.main(["export", NAME, "-o", str(path)]) == 0
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A day of transactions, none of them a fraud."""
    path = tmp_path / "rows.csv"
    lines = ["TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD"]
    lines += [
        f"{k},2025-01-01 {k // 4:02d}:{k % 4 * 15:02d}:00,card-{k % 5},terminal-{k % 3},{5 + k},0" for k in range(90)
    ]
    path.write_text("\n".join(lines))
    return path


def test_an_artifact_answers_files_and_is_served_by_its_alias(
    home: Path, onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, scores = tmp_path / "rows.parquet", [tmp_path / "run.csv", tmp_path / "artifact.csv"]
    assert cli.main(["data", NAME, "--recipe", "debug", "--synthetic", str(rows)]) == 0
    assert cli.main(["predict", NAME, "-i", str(rows), "-o", str(scores[0])]) == 0
    assert cli.main(["predict", NAME, "--run", str(onnx), "-i", str(rows), "-o", str(scores[1])]) == 0
    capsys.readouterr()
    answers = [[line.split(",")[2:4] for line in path.read_text().splitlines()[1:]] for path in scores]
    assert len(answers[0]) == len(answers[1]) > 1000
    assert max(abs(float(a[0]) - float(b[0])) for a, b in zip(*answers, strict=True)) < 1e-4
    path = home / "again"
    code, result = run(capsys, "export", NAME, "--format", "torch", "-o", str(path), "--alias", "candidate")
    assert code == 0
    assert registry.resolve(NAME, "candidate").version == result["version"]
    code, found = run(capsys, "evaluate", NAME, "--version", "candidate")
    assert code == 0
    assert found["figures"]["auc_roc"]["value"] == pytest.approx(result["parity"]["score"]["original"], abs=1e-4)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["export", "nothing"], 2, "neither the directory of a run"),
        (
            ["export", NAME, "--format", "tflite"],
            2,
            "format 'tflite' is unknown; allowed: torch, onnx, openvino, tensorrt",
        ),
        (["export", NAME, "--form", "huge"], 2, "no form 'huge'; there are: step, window"),
        (["export", NAME, "--precision", "int8"], 2, "made by `verticals compress`"),
        (
            ["export", NAME, "--format", "onnx", "--precision", "bfloat16"],
            2,
            "no precision 'bfloat16' here; allowed: float32",
        ),
        (["export", f"{NAME}:never"], 1, "has no 'never'"),
        (["bench", NAME, "--requests", "3"], 2, "--requests 3; allowed is 10 and more"),
        (["bench", NAME, "--batches", "0"], 2, "allowed is 1 and more"),
        (["compress", NAME, "--prune", "1.5"], 2, "--prune 1.5; allowed is a share"),
        (["compress", NAME, "--prune", "-0.1"], 2, "--prune -0.1; allowed is a share"),
        (["compress", NAME, "--bits", "4"], 2, "--bits 4; allowed are 8"),
        (["compress", NAME, "--method", "magic"], 2, "--method magic; allowed are dynamic, static and weights"),
        (["compress", NAME, "--method", "dynamic", "--format", "openvino"], 2, "it goes with onnx"),
        (["compress", NAME, "--precision", "bfloat16"], 2, "only openvino has bfloat16"),
        (["compress", NAME, "--teacher", "nobody"], 2, "neither the directory"),
        (["compress", NAME, "--set", "fit.epochs=1"], 2, "without --prune or --teacher nothing is trained"),
        (["compress", NAME, "--method", "static", "-o", "int8"], 1, "run-openvino was not written"),
        (["compress", NAME, "--prune", "0.3", "--set", "fit.speed=1", "-o", "small"], 2, "allowed here: epochs"),
        (["compress", NAME, "--method", "static", "-o", "/dev/null/int8"], 1, "/dev/null"),
        (["export", NAME, "-o", "/dev/null/onnx"], 1, "/dev/null"),
    ],
)
def test_what_is_refused_names_what_is_allowed(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == code
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_that_exists_is_not_overwritten(home: Path, onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (onnx / "artifact.json").read_bytes()
    assert cli.main(["export", NAME, "-o", str(onnx)]) == 1
    assert "exists; give another --output" in capsys.readouterr().err
    assert (onnx / "artifact.json").read_bytes() == before


def test_bench_puts_models_side_by_side(home: Path, onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(
        capsys, "bench", NAME, str(onnx), "--requests", "20", "--batches", "1", "8", "--threads", "1", "2"
    )
    assert code == 0
    assert len(result["rows"]) == 2 * 2 * 2
    for row in result["rows"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["per_second"] == pytest.approx(row["batch"] / row["p50_ms"] * 1e3)
    scores = [score["value"] for score in result["scores"].values()]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    for cost in result["models"].values():
        assert cost["bytes"] > 0
        assert 0 < cost["peak_added_bytes"] < cost["peak_bytes"]


def test_a_chain_prunes_learns_and_shows_what_it_paid(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, folder = str(home / "runs" / "latest"), home / "chain"
    result = compress(
        run, prune=0.3, bits=32, teacher=run, max_score_drop=0.2, settings=["fit.max_steps=20"], output=str(folder)
    )
    rows = {row["model"]: row for row in result["rows"]}
    assert list(rows) == ["run", "run-onnx", "small", "small-onnx"]
    assert "kept their width: history" in result["text"] or "kept their width: embed" in result["text"]
    assert rows["small"]["bytes"] < 0.85 * rows["run"]["bytes"]
    assert rows["small"]["macs"] < rows["run"]["macs"]
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows.values())
    assert json.loads((folder / "table.json").read_text())["rows"] == result["rows"]
    assert "<svg" in (folder / "frontier.svg").read_text()
    assert registry.register(folder / "small-onnx", NAME)  # its parity with the smaller run was shown
    with pytest.raises(Exception, match="exists; give another --output"):
        compress(run, output=str(folder))


def test_the_step_that_loses_too_much_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "broken"
    words = ["compress", str(home / "runs" / "latest"), "--prune", "0.9", "--bits", "32", "-o", str(folder)]
    code = cli.main([*words, "--max-score-drop", "0.001", "--set", "fit.max_steps=1", "--set", "fit.optim.lr=0.3"])
    said = capsys.readouterr().err
    assert code == 1
    assert "step small breaks the limit: auc_roc of the validation days falls from" in said
    assert json.loads((folder / "table.json").read_text())["rows"][-1]["broke_the_limit"]


def test_int8_that_keeps_no_limit_is_named_with_what_was_made(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home / "lost"
    score = Chain._score_of
    monkeypatch.setattr(sensitivity, "sensitivity", lambda *_: {"one": 1.0})
    monkeypatch.setattr(Chain, "_score_of", lambda *given: score(*given) - 0.5)
    code = cli.main(
        ["compress", str(home / "runs" / "latest"), "--method", "static", "--format", "onnx", "-o", str(folder)]
    )
    said = capsys.readouterr().err
    assert code == 1
    assert "step run-onnx-int8 breaks the limit: --max-score-drop is 0.01 and the run has 0." in said
    assert f"What was made is in {folder}:\nmodel " in said
    assert [row["model"] for row in json.loads((folder / "table.json").read_text())["rows"]] == ["run", "run-onnx"]
    assert not (folder / "trial").exists()


def test_a_full_disk_is_said_and_leaves_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(program, "save_file", full)
    assert cli.main(["export", NAME, "--format", "torch", "-o", str(tmp_path / "a")]) == 1
    assert "model.safetensors cannot be written: No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_that_answers_otherwise_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = train(
        NAME,
        recipe="debug",
        settings=["model.num_members=3", "fit.max_steps=2"],
        runs=str(home / "other"),
        alias="none",
    )
    words = ["compress", str(home / "runs" / "latest"), "--teacher", made["run"], "-o", str(home / "untaught")]
    assert cli.main([*words, "--set", "fit.max_steps=2"]) == 2
    assert "have to answer the same question" in capsys.readouterr().err
    assert {row["model"] for row in json.loads((home / "untaught/table.json").read_text())["rows"]} == {
        "run",
        "run-onnx",
    }


def test_an_artifact_is_neither_compressed_nor_a_teacher(
    home: Path, onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = registry.resolve(NAME).version
    for words in (
        ["compress", str(onnx)],
        ["compress", NAME, "--teacher", str(onnx)],
        ["export", str(onnx), "-o", str(home / "twice")],
    ):
        assert cli.main(words) in (1, 2)
        assert source in capsys.readouterr().err  # what to give in its place
    assert not (home / "twice").exists()


def test_samples_of_one_class_are_named(
    home: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", NAME, "-i", str(rows), "-o", str(tmp_path / "a")]) == 1
    assert "samples: auc_roc does not exist on them: they hold one class only" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_any_model_file_becomes_int8(onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "int8"
    code, result = run(capsys, "compress", str(onnx / "model.onnx"), "--method", "dynamic", "-o", str(target))
    assert code == 0
    assert result["bytes"] == (target / "model.onnx").stat().st_size < (onnx / "model.onnx").stat().st_size
    assert cli.main(["compress", str(onnx / "model.onnx"), "--prune", "0.3", "-o", str(tmp_path / "pruned")]) == 2
    assert "--prune with a model file: it is quantized, and nothing else" in capsys.readouterr().err
    pickle = tmp_path / "model.pt"
    pickle.write_bytes(b"\x80\x04")
    assert cli.main(["compress", str(pickle)]) == 2
    assert "a pickle is never loaded" in capsys.readouterr().err
