"""The command as a user types it: results, exit codes, and what it must not load."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet
import pytest

from core import registry
from pipelines import cli, data
from pipelines.train import train
from tests.pipelines.command import run

NAME = "finance.fraud"
TINY = ["--recipe", "debug", "--set", "fit.max_steps=8"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENTOML_HOME", str(folder))
        train(NAME, recipe="debug", settings=["fit.max_steps=8"], runs=str(folder / "runs"), alias="production")
        yield folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    assert cli.main(["data", NAME, "--recipe", "debug", "--synthetic", str(path)]) == 0
    return path


@pytest.mark.parametrize("words", [["--help"], ["list"], ["train", "--help"], ["list", "--json"]])
def test_help_and_list_load_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\nfrom pipelines.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'bentoml', 'pyarrow', 'duckdb', 'matplotlib', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    command.stdout.close()  # `verticals list | head -0`
    assert command.stderr is not None
    assert (command.stderr.read(), command.wait()) == ("", 0)
    command.stderr.close()


def test_a_command_that_is_ended_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reading(*_: object, **__: object) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        return {}

    monkeypatch.setattr(data, "data", reading)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["data", NAME, "--check", "rows.csv"]) == 130
    assert capsys.readouterr().err == "stopped\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_list_names_the_applications(capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run(capsys, "list")
    assert code == 0
    assert NAME in result


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["train", "finance.nothing"], 2, "there are: finance.fraud"),
        (["train", NAME, "--recipe", "huge"], 2, "there are: debug, default"),
        (["train", NAME, "--set", "fit.speed=1"], 2, "allowed here: epochs"),
        (["train", NAME, "--device", "cuda:99"], 2, "CUDA|unknown"),
        (["train", NAME, "--processes", "0"], 2, "--processes 0; allowed are 1 and more"),
        (["data", NAME, "--check", "nowhere.csv"], 1, "no such file"),
        (["data", NAME, "--check", "README.md"], 1, "unknown kind of file"),
        (["release", NAME, "--threshold", "7"], 2, "0 to 1"),
        (["evaluate", NAME, "--run", "nowhere"], 1, "no run directory"),
    ],
)
def test_misuse_is_2_and_a_refused_input_is_1(
    words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str], home: Path, tmp_path: Path
) -> None:
    given = [*words, "--runs", str(tmp_path)] if words[0] == "train" else words
    assert cli.main(given) == code
    error = capsys.readouterr().err
    assert re.search(text, error)
    assert "Traceback" not in error


def test_a_training_leaves_a_whole_run_and_a_candidate(
    home: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = run(capsys, "train", NAME, *TINY, "--data", str(rows), "--runs", str(tmp_path))
    assert code == 0
    path = Path(result["run"])
    names = {
        "config.yaml",
        "code.json",
        "data.json",
        "metrics.jsonl",
        "model.safetensors",
        "constants.json",
        "report.json",
        "report.html",
    }
    assert names <= {file.name for file in path.iterdir()}
    assert json.loads((path / "data.json").read_text())["rows"] == pyarrow.parquet.read_metadata(rows).num_rows
    assert registry.aliases(NAME)["candidate"] == result["version"]
    assert registry.aliases(NAME)["production"] != result["version"]
    page = (path / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "average_<wbr>precision" in page
    figure = result["figures"]["average_precision"]
    assert figure["low"] <= figure["value"] <= figure["high"]


def test_a_refused_training_leaves_nothing(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "few.csv"
    path.write_text("TRANSACTION_ID,TX_DATETIME,CUSTOMER_ID,TERMINAL_ID,TX_AMOUNT,TX_FRAUD\n1,2026-01-01,a,b,2.5,0\n")
    runs = tmp_path / "runs"
    for words in (["--data", str(path)], ["--data", "nowhere.csv"], ["--device", "cuda:99"]):
        assert cli.main(["train", NAME, *TINY, "--runs", str(runs), *words]) != 0
        assert not [file for file in runs.rglob("*") if file.is_file()]
        assert "Traceback" not in capsys.readouterr().err


def test_a_finished_training_resumed_is_the_same_model(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, first = run(capsys, "train", NAME, *TINY, "--runs", str(tmp_path), "--alias", "none")
    weights = (Path(first["run"]) / "model.safetensors").read_bytes()
    code, again = run(capsys, "train", NAME, "--resume", first["run"], "--alias", "none")
    assert code == 0
    assert (Path(again["run"]) / "model.safetensors").read_bytes() == weights
    assert cli.main(["train", NAME, "--resume", first["run"], "--set", "fit.epochs=9"]) == 2


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_predict_answers_every_row(
    home: Path, rows: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"scores{suffix}"
    code, result = run(capsys, "predict", NAME, "-i", str(rows), "-o", str(out))
    assert code == 0
    assert result["rows"] == pyarrow.parquet.read_metadata(rows).num_rows
    if suffix == ".parquet":
        table = pyarrow.parquet.read_table(out)
    elif suffix == ".csv":
        table = pyarrow.csv.read_csv(out)
    else:
        table = [json.loads(line) for line in out.read_text().splitlines()]
        assert set(table[0]) == {"transaction_id", "time", "score", "decision", "threshold", "version"}
    assert len(table) == result["rows"]
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def test_a_fault_in_the_file_leaves_no_output(
    home: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pyarrow.parquet.read_table(rows)
    amounts = table.column("TX_AMOUNT").to_pylist()
    amounts[1234] = -3.0
    bad = tmp_path / "bad.parquet"
    index = table.schema.get_field_index("TX_AMOUNT")
    pyarrow.parquet.write_table(table.set_column(index, "TX_AMOUNT", pyarrow.array(amounts)), bad)
    assert cli.main(["predict", NAME, "-i", str(bad), "-o", str(tmp_path / "out.csv")]) == 1
    error = capsys.readouterr().err
    assert "row 1235" in error
    assert "TX_AMOUNT" in error
    assert [file.name for file in tmp_path.iterdir()] == ["bad.parquet"]
    assert cli.main(["predict", NAME, "-i", str(rows), "-o", str(tmp_path / "out.xlsx")]) == 1


def test_a_german_bank_s_file_reads_and_its_faults_name_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bank.csv"
    lines = [f"{k};2026-03-{k % 28 + 1:02d} 10:00:00;karte-{k % 7};t;{k},50;{k % 2};x" for k in range(1, 300)]
    path.write_text("\n".join(["TRANSACTION_ID;TX_DATETIME;CUSTOMER_ID;TERMINAL_ID;BETRAG;TX_FRAUD;NO", *lines, ""]))
    given: list[str] = []
    for words, setting in [
        ("is not divided by ','", "data.delimiter=;"),
        ("lacks column TX_AMOUNT (amount)", "data.columns.amount=BETRAG"),
        ("unexpected column NO", 'data.ignore_columns=["NO"]'),  # a bare NO is YAML's false
        ("'1,50' is not a number with a decimal point", "data.decimal=,"),
    ]:
        assert cli.main(["data", NAME, "--check", str(path), *given]) == 1
        error = capsys.readouterr().err
        assert words in error
        advice = shlex.split(error[error.index("--set ") :])
        assert advice[0] == "--set"
        assert advice[1].replace('="', "=").removesuffix('"') == setting
        given += advice[:2]
    code, found = run(capsys, "data", NAME, "--check", str(path), *given)
    assert (code, found["rows"], found["total_amount"]) == (0, 299, sum(range(1, 300)) + 299 * 0.5)


def test_evaluate_repeats_the_report_and_takes_another_file(
    home: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = registry.resolve(NAME).report["figures"]
    page = tmp_path / "report.html"
    code, result = run(capsys, "evaluate", NAME, "--report", str(page))
    assert code == 0
    assert result["figures"]["average_precision"] == pytest.approx(kept["average_precision"], rel=1e-6)
    assert page.exists()
    code, result = run(capsys, "evaluate", NAME, "-i", str(rows))
    assert code == 0
    assert result["split"] == "all"


def test_release_moves_the_alias_and_sets_the_threshold(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version = registry.aliases(NAME)["production"]
    code, result = run(capsys, "release", NAME, "--version", version, "--alias", "production", "--threshold", "0.25")
    assert code == 0
    assert next(row for row in result["versions"] if "production" in row["aliases"])["threshold"] == 0.25
    registry.set_threshold(NAME, "production", None)


def test_predict_decides_at_the_threshold_that_was_released(
    home: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.parquet"
    registry.set_threshold(NAME, "production", 0.0)
    try:
        _, result = run(capsys, "predict", NAME, "-i", str(rows), "-o", str(out))
    finally:
        registry.set_threshold(NAME, "production", None)
    assert result["alerts"] == result["rows"]
    assert set(pyarrow.parquet.read_table(out).column("threshold").to_pylist()) == {0.0}


def test_history_is_loaded_once(home: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "store.sqlite")
    code, first = run(capsys, "data", NAME, "--recipe", "debug", "--load", str(rows), "--store", store)
    assert (code, first["inserted"]) == (0, first["rows"])
    code, again = run(capsys, "data", NAME, "--recipe", "debug", "--load", str(rows), "--store", store)
    assert (code, again["inserted"], again["resumed"]) == (0, 0, first["rows"])
