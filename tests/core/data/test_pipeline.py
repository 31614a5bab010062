"""Scaling and encoding against numpy's own words, round trips, records, and the refusal to see test days."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from core.data import pipeline as module
from core.data.pipeline import CategoricalEncoder, DataPipeline, FeatureScaler
from core.errors import ArtifactError, ConfigError, DataError, LeakError

METHODS = ["standard", "minmax", "robust", "log_standard"]


def data(rows: int = 500) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {
        "amount": rng.lognormal(3, 2, rows),
        "city": rng.choice(np.array(["Ulm", "Bonn", "Köln"], dtype=object), rows),
        "age": rng.integers(18, 90, rows),
        "constant": np.full(rows, 0.1),
    }


@pytest.mark.parametrize("method", METHODS)
def test_scaling_is_what_it_says(method: Any) -> None:
    values = np.random.default_rng(0).normal(3, 5, (2, 1001))
    scaled = FeatureScaler(method).fit(values, ["a", "b"]).apply_(values.copy())
    logs = np.sign(values) * np.log1p(np.abs(values))
    expected = {
        "standard": lambda x: (x - x.mean()) / x.std(),
        "minmax": lambda x: (x - x.min()) / (x.max() - x.min()),
        "robust": lambda x: (x - np.median(x)) / (np.quantile(x, 0.75) - np.quantile(x, 0.25)),
        "log_standard": lambda x: (x - x.mean()) / x.std(),
    }[method]
    for row, source in zip(scaled, logs if method == "log_standard" else values, strict=True):
        np.testing.assert_allclose(row, expected(source), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@settings(deadline=None)
@given(values=hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.floats(-1e6, 1e6)))
def test_scaling_is_finite_and_reads_back(method: Any, values: NDArray[np.float64]) -> None:
    names = [f"f{k}" for k in range(len(values))]
    scaler = FeatureScaler.from_record(json.loads(json.dumps(FeatureScaler(method).fit(values, names).record())))
    scaled = scaler.apply_(values.copy())
    assert np.isfinite(scaled).all()
    np.testing.assert_allclose(scaler.restore(scaled), values, rtol=1e-6, atol=1e-6)
    for row, given_ in zip(scaled, values, strict=True):
        assert given_.min() < given_.max() or (row == 0).all()


def test_blocks_and_single_events_are_scaled_alike_and_in_place() -> None:
    rows = np.random.default_rng(0).lognormal(2, 3, (6, 300)).astype(np.float32)
    scaler = FeatureScaler("log_standard", clip=2.0).fit(rows, [f"f{k}" for k in range(6)])
    whole = scaler.apply_(rows.copy())
    assert np.abs(whole).max() == 2.0
    parts = rows.copy()
    for first in (0, 4):
        part = parts[first : first + 4]
        assert np.shares_memory(scaler.apply_(part, first), parts)
    np.testing.assert_array_equal(parts, whole)
    for event in range(5):
        np.testing.assert_allclose(scaler.apply_(rows[:, event].copy()), whole[:, event], rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match="features 4 to 7 of 6"):
        scaler.apply_(rows[:3].copy(), 4)


def test_robust_scaling_of_mostly_equal_values_is_finite() -> None:
    row = np.r_[np.zeros(99), 1000.0]
    scaled = FeatureScaler("robust").fit([row], ["a"]).apply_(row[None].copy())
    assert scaled[0, -1] == pytest.approx(1000 / row.std())


@given(
    st.lists(st.text(max_size=3), min_size=1, max_size=60),
    st.lists(st.text(max_size=3), max_size=20),
    st.integers(1, 5),
)
def test_encoding_reads_back(seen: list[str], later: list[str], most: int) -> None:
    encoder = CategoricalEncoder(max_categories=most).fit({"c": np.array(seen, dtype=object)})
    encoder = CategoricalEncoder.from_record(json.loads(json.dumps(encoder.record())))
    names = encoder.names_of("c")
    assert len(names) == encoder.width("c") <= most + 1
    values = [*seen, *later]
    ones = encoder.encode("c", np.array(values, dtype=object))
    counts = {value: seen.count(value) for value in seen}
    own = sorted(counts, key=lambda value: (-counts[value], value))[:most]
    for value, row in zip(values, ones, strict=True):
        place = own.index(value) if value in own else most if value in counts else None
        assert row.tolist() == [float(k == place) for k in range(len(names))]


def test_whole_numbers_are_the_same_category_however_they_come() -> None:
    encoder = CategoricalEncoder().fit({"mcc": np.array(["5411", "6011"], dtype=object)})
    for values in (np.array([5411, 6011]), np.array([5411.0, 6011.0]), np.array(["5411", "6011"])):
        np.testing.assert_array_equal(encoder.encode("mcc", values), np.eye(2))


def test_unknown_categories_survive_or_are_refused() -> None:
    seen, later = {"c": np.array(["a", "b"], dtype=object)}, np.array(["b", "new"], dtype=object)
    assert CategoricalEncoder().fit(seen).encode("c", later).tolist() == [[0, 1], [0, 0]]
    with pytest.raises(DataError, match="column c: row 2 has a category never seen") as caught:
        CategoricalEncoder("error").fit(seen).encode("c", later)
    assert "new" not in str(caught.value)


def test_columns_find_their_transforms() -> None:
    columns = data()
    pipeline = DataPipeline(
        transforms=[FeatureScaler("minmax", columns=["age"]), FeatureScaler(), CategoricalEncoder()]
    ).fit(columns)
    cities = sorted(set(columns["city"]), key=lambda city: -(columns["city"] == city).sum())
    assert pipeline.feature_names == ["amount", *(f"city={city}" for city in cities), "age", "constant"]
    matrix = pipeline.transform(columns)
    assert matrix.dtype == np.float32
    assert matrix.shape == (500, 6)
    assert (matrix[:, 4].min(), matrix[:, 4].max()) == (0.0, 1.0)
    assert abs(matrix[:, 0].mean()) < 1e-6
    assert (matrix[:, 5] == 0).all()
    assert [cities[k] for k in matrix[:, 1:4].argmax(axis=1)] == columns["city"].tolist()
    shuffled = {name: columns[name] for name in reversed(columns)}
    np.testing.assert_array_equal(pipeline.transform(shuffled), matrix)


def test_numbers_without_scaler_pass_through() -> None:
    values = np.array([1.5, -2.0])
    np.testing.assert_array_equal(DataPipeline().fit({"a": values}).transform({"a": values})[:, 0], values)


def test_a_block_with_further_columns_equals_named_columns() -> None:
    columns = data()
    names = ["amount", "age", "constant"]
    block = np.array([columns[name] for name in names])
    extra = {"city": columns["city"], "income": columns["amount"] * 2}
    transforms = [FeatureScaler("log_standard", columns=[*names, "income"]), CategoricalEncoder(columns=["city"])]
    pipeline = DataPipeline(transforms=transforms).fit_block(block, names, extra)
    by_name = DataPipeline(transforms=[FeatureScaler("log_standard"), CategoricalEncoder()])
    named = {**dict(zip(names, block, strict=True)), **extra}
    assert by_name.fit(named).feature_names == pipeline.feature_names
    matrix = pipeline.transform_block(block, names, extra)
    np.testing.assert_allclose(matrix, by_name.transform(named), rtol=1e-5, atol=1e-5)
    again = DataPipeline.from_record(json.loads(json.dumps(pipeline.record())))
    np.testing.assert_array_equal(again.transform_block(block, names, extra), matrix)
    one = {name: values[7:8] for name, values in extra.items()}
    np.testing.assert_allclose(again.transform_block(block[:, 7:8], names, one), matrix[7:8], rtol=1e-6, atol=1e-6)


def test_rows_choose_what_is_fitted() -> None:
    columns = data()
    block, rows = np.array([columns["amount"], columns["age"]]), np.arange(100, 300)
    chosen = DataPipeline(transforms=[FeatureScaler()]).fit_block(block, ["amount", "age"], rows=rows)
    cut = DataPipeline(transforms=[FeatureScaler()]).fit_block(block[:, rows], ["amount", "age"])
    assert chosen.rows == cut.rows == 200
    assert chosen.record() == cut.record()


def test_a_wide_block_is_never_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_CELLS", 1 << 16)
    block = np.random.default_rng(0).random((400, 20_000), np.float32)
    names = [f"f{k}" for k in range(400)]
    pipeline = DataPipeline(transforms=[FeatureScaler("log_standard")])
    tracemalloc.start()
    try:
        pipeline.fit_block(block, names, rows=np.arange(10_000))
        _, fitting = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        matrix = pipeline.transform_block(block, names)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert fitting < block.nbytes / 10
    assert peak < matrix.nbytes + block.nbytes / 10


def test_fitting_on_test_days_is_refused() -> None:
    columns, time = data(), np.arange(500) * 1_000_000
    pipeline = DataPipeline(transforms=[FeatureScaler(), CategoricalEncoder()])
    with pytest.raises(LeakError, match=r"100 of 500 rows to fit on happened at 1970-01-01T00:06:40.000000Z or later"):
        pipeline.fit(columns, time=time, until=400_000_000)
    with pytest.raises(LeakError, match="1 of 500 rows"):
        pipeline.fit(columns, time=time, until=499_000_000)
    assert pipeline.fit(columns, time=time, until=499_000_001).fitted_until == 499_000_000
    block = np.array([columns["amount"]])
    fitted = DataPipeline(transforms=[FeatureScaler()]).fit_block(
        block, ["amount"], rows=np.arange(400), time=time, until=400_000_000
    )
    assert DataPipeline.from_record(fitted.record()).fitted_until == 399_000_000
    with pytest.raises(ConfigError, match="until without time"):
        pipeline.fit(columns, until=5)
    with pytest.raises(LeakError, match="fitted without times"):
        _ = DataPipeline(transforms=[FeatureScaler(), CategoricalEncoder()]).fit(columns).fitted_until


def test_sources_become_a_matrix(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("at,age,city,bought\n2018-04-01,20,Ulm,1\n2018-04-02,30,Bonn,0\n")
    (tmp_path / "b.xlsx").write_text("{}")
    (tmp_path / "b.jsonl").write_text('{"at": "2018-04-03", "age": 70, "city": "Paris", "bought": 1}\n')
    transforms = [FeatureScaler(method="minmax"), CategoricalEncoder(handle_unknown="ignore")]
    sources = [str(tmp_path / "a.csv"), str(tmp_path / "b.jsonl")]
    prepared = DataPipeline(sources=sources, transforms=transforms, target="bought", ignore=["at"]).fit_transform()
    assert prepared.names == ["age", "city=Bonn", "city=Paris", "city=Ulm"]
    np.testing.assert_allclose(prepared.matrix, [[0, 0, 0, 1], [0.2, 1, 0, 0], [1, 0, 1, 0]], rtol=1e-6)
    assert prepared.target is not None
    assert prepared.target.tolist() == [1, 0, 1]
    until = int(np.datetime64("2018-04-03", "us").astype(np.int64))
    early = DataPipeline(sources, transforms, "bought", time="at")
    prepared = early.fit_transform(until=until)
    assert prepared.names == ["age", "city=Bonn", "city=Ulm"]
    np.testing.assert_allclose(prepared.matrix, [[0, 0, 1], [1, 1, 0], [5, 0, 0]], rtol=1e-6)
    assert early.fitted_until == until - 86_400_000_000
    with pytest.raises(ConfigError, match="target 'sold' is not a column; the sources have at, age, city, bought"):
        DataPipeline(sources, transforms, "sold").fit_transform()
    with pytest.raises(DataError, match="unknown kind of file; allowed are"):
        DataPipeline([str(tmp_path / "b.xlsx")], transforms).fit_transform()
    with pytest.raises(ConfigError, match="no source given"):
        DataPipeline([], transforms).fit_transform()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_named(method: Any, bad: float) -> None:
    columns = data()
    scaler = [FeatureScaler(method), CategoricalEncoder()]
    fitted = DataPipeline(transforms=scaler).fit(columns)
    columns["amount"] = columns["amount"].copy()
    columns["amount"][41] = bad
    with pytest.raises(DataError, match=f"feature amount: row 42 is {bad}"):
        DataPipeline(transforms=scaler).fit(columns)
    with pytest.raises(DataError, match=f"column amount: row 42 is {bad}"):
        fitted.transform(columns)


def test_too_large_numbers_are_refused() -> None:
    with pytest.raises(DataError, match=r"feature a: values from -1e\+308 to 1e\+308 are too large to scale"):
        FeatureScaler().fit([np.array([-1e308, 1e308])], ["a"])


def test_other_columns_than_fitted_are_refused() -> None:
    columns = data()
    pipeline = DataPipeline(transforms=[FeatureScaler(), CategoricalEncoder()]).fit(columns)
    with pytest.raises(DataError, match=r"missing \['age'\], not known \['year'\]"):
        pipeline.transform({"year" if name == "age" else name: values for name, values in columns.items()})
    block = np.zeros((2, 3))
    fitted = DataPipeline(transforms=[FeatureScaler()]).fit_block(block, ["a", "b"])
    with pytest.raises(DataError, match="pass the same ones in the same order"):
        fitted.transform_block(block, ["b", "a"])
    with pytest.raises(ConfigError, match="not fitted; call fit or from_record first"):
        DataPipeline().transform(columns)


def test_settings_that_contradict_are_refused() -> None:
    columns = data()
    for transforms, message in (
        ([FeatureScaler()], "column city holds text and no CategoricalEncoder takes it"),
        ([FeatureScaler(columns=["city"])], "column city holds text; a FeatureScaler takes numbers"),
        ([FeatureScaler(columns=["size"]), CategoricalEncoder()], "a FeatureScaler names size; the columns are amount"),
    ):
        with pytest.raises(ConfigError, match=message):
            DataPipeline(transforms=transforms).fit(columns)
    for make, message in (
        (lambda: FeatureScaler("max"), "scaler method 'max'; allowed are standard, minmax"),  # type: ignore[arg-type]
        (lambda: FeatureScaler(clip=0.0), "clip 0.0; allowed is a positive number"),
        (lambda: CategoricalEncoder("drop"), "handle_unknown 'drop'; allowed are ignore, error"),  # type: ignore[arg-type]
        (lambda: CategoricalEncoder(max_categories=0), "max_categories 0; allowed is at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
    with pytest.raises(DataError, match="no rows to fit on"):
        DataPipeline().fit({"a": np.zeros(0)})
    with pytest.raises(ConfigError, match="column a is given twice"):
        DataPipeline().fit_block(np.zeros((1, 2)), ["a"], {"a": np.zeros(2)})


@pytest.mark.parametrize("damage", ["transforms", "names", "owners", "scale", "kind", "missing"])
def test_a_damaged_record_is_refused(damage: str) -> None:
    record = json.loads(
        json.dumps(DataPipeline(transforms=[FeatureScaler(), CategoricalEncoder()]).fit(data()).record())
    )
    if damage == "missing":
        del record["block"]
    elif damage == "scale":
        record["transforms"][0]["scale"][0] = -1.0
    elif damage == "kind":
        record["transforms"][0]["kind"] = "pickle"
    else:
        record[damage] = record[damage][:-1]
    with pytest.raises(ArtifactError, match="damaged"):
        DataPipeline.from_record(record)
