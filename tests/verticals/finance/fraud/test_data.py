"""From a file to training batches: spans that do not leak, a pipeline fitted on training days, further columns."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from core.errors import ArtifactError, DataError, LeakError
from tests.verticals.finance.fraud.model import trained
from verticals.finance.fraud import APPLICATION
from verticals.finance.fraud.config import FraudConfig
from verticals.finance.fraud.data import FraudData
from verticals.finance.fraud.evaluation import evaluate
from verticals.finance.fraud.events import DAY
from verticals.finance.fraud.requests import Decision, Transaction
from verticals.finance.fraud.store import Event
from verticals.finance.fraud.store_embedded import EmbeddedStore
from verticals.finance.fraud.synthetic import synthetic_transactions


def debug(*changes: str) -> FraudConfig:
    config = APPLICATION.recipes["debug"]().override(changes)
    assert isinstance(config, FraudConfig)
    return config


@pytest.fixture(scope="module")
def data() -> FraudData:
    return FraudData(debug())


def test_training_validation_and_test_are_a_label_delay_apart(data: FraudData) -> None:
    time, delay = data.events.time, data.config.data.label_delay * DAY
    validation, test = data.held("validation"), data.held("test")
    assert time[data.train_rows].max() + delay <= time[validation.rows].min()
    assert time[validation.rows].max() + delay <= time[test.rows].min()
    assert data.pipeline.fitted_until < validation.span.start


def test_validation_and_test_hold_every_event_of_their_days(data: FraudData) -> None:
    for split in ("validation", "test"):
        held = data.held(split)
        inside = (data.events.time >= held.span.start) & (data.events.time < held.span.end)
        assert len(held) == inside.sum()


def test_batches_hold_training_targets_only_and_each_once(data: FraudData) -> None:
    seen = 0
    for batch in data.train(rank=0, world_size=1, epoch=0):
        targets = batch.weight > 0
        seen += int(targets.sum())
        assert batch.time[targets].max() * DAY < data.split.train.end
        assert (batch.features[~(np.arange(batch.features.shape[1]) < batch.lengths[:, None].numpy())] == 0).all()
    if data.config.sampler.ratio is None:
        assert seen == len(data.train_rows)


def test_two_ranks_share_an_epoch(data: FraudData) -> None:
    alone = list(data.train(rank=0, world_size=1, epoch=3))
    halves = [list(data.train(rank=rank, world_size=2, epoch=3)) for rank in (0, 1)]
    for whole, *parts in zip(alone, *halves, strict=True):
        assert float(whole.weight.sum()) == pytest.approx(sum(float(part.weight.sum()) for part in parts))
        assert float(whole.normalizer) == pytest.approx(sum(float(part.normalizer) for part in parts))


def test_a_model_is_not_judged_on_days_it_was_fitted_on(data: FraudData) -> None:
    model = trained()
    early = FraudData(debug("data.test_days=7", "data.validation_days=30"))
    with pytest.raises(LeakError, match="fitted"):
        evaluate(model.predictor(), early, "validation")


def test_a_file_without_enough_labels_is_refused(tmp_path: Path) -> None:
    table = synthetic_transactions(debug().data.synthetic)
    genuine = table.set_column(
        table.schema.get_field_index("TX_FRAUD"), "TX_FRAUD", pa.array(np.zeros(len(table), np.int8))
    )
    path = tmp_path / "genuine.parquet"
    pa.parquet.write_table(genuine, path)
    with pytest.raises(DataError, match="needs at least 2"):
        _ = FraudData(debug(f"data.sources=['{path}']")).pipeline


def test_a_file_of_too_few_days_says_so(tmp_path: Path) -> None:
    table = synthetic_transactions(debug("data.synthetic.num_days=10").data.synthetic)
    path = tmp_path / "short.parquet"
    pa.parquet.write_table(table, path)
    with pytest.raises(DataError, match="no event from"):
        _ = FraudData(debug(f"data.sources=['{path}']")).pipeline


def test_a_banks_own_file_with_further_columns_trains_and_scores(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = synthetic_transactions(debug().data.synthetic)
    path = tmp_path / "bank.csv"
    own = pa.table(
        {
            "BELEG": table.column("TRANSACTION_ID"),
            "ZEIT": table.column("TX_DATETIME"),
            "KARTE": pa.array([f"karte-{c}" for c in table.column("CUSTOMER_ID").to_pylist()]),
            "TERMINAL_ID": table.column("TERMINAL_ID"),
            "BETRAG": table.column("TX_AMOUNT"),
            "TX_FRAUD": table.column("TX_FRAUD"),
            "mcc": pa.array(rng.choice(["5411", "5812", "6011"], len(table))),
            "distance": pa.array(rng.gamma(2.0, 3.0, len(table))),
            "comment": pa.array(["-"] * len(table)),
        }
    )
    pyarrow.csv.write_csv(own, path)
    model = trained(
        f"data.sources=['{path}']",
        "data.columns={transaction_id: BELEG, time: ZEIT, customer: KARTE, amount: BETRAG}",
        "data.ignore_columns=[comment]",
        "data.numeric=[distance]",
        "data.categorical=[mcc]",
        "fit.max_steps=5",
    )
    predictor = model.predictor()
    assert sorted(name for name in predictor.columns if name.startswith(("mcc", "distance"))) == [
        "distance",
        "mcc=5411",
        "mcc=5812",
        "mcc=6011",
    ]
    assert np.isfinite(np.concatenate([chunk.score for chunk in predictor.stream(model.data.chunks())])).all()
    store = EmbeddedStore(tmp_path / "store.sqlite", synchronous="normal")
    online = model.predictor(store)
    for number, mcc in enumerate(["5411", "never seen"]):
        sent = Transaction(
            transaction_id=f"{number}",
            time=datetime(2025, 4, 1, number, tzinfo=UTC),
            customer="karte-1",
            terminal="3",
            amount=12.0,
            extra={"mcc": mcc, "distance": 4.0},
        )
        (answer,) = online([sent])
        assert isinstance(answer, Decision)
    refused = online([sent.model_copy(update={"transaction_id": "9", "extra": {"mcc": "5411", "distance": "far"}})])
    assert "has to be a number" in str(refused[0])
    fresh = model.predictor(store, version="v2")
    assert fresh.warm() == 2
    store.close()
    scores = []
    for place, code in enumerate(("5411", 5411.0)):  # beside a text, as alone
        with EmbeddedStore(tmp_path / f"{place}.sqlite", synchronous="normal") as other:
            pair = [
                sent.model_copy(
                    update={"transaction_id": key, "customer": key, "extra": {"mcc": value, "distance": 4.0}}
                )
                for key, value in (("a", code), ("b", ""))
            ]
            scores.append([answer.score for answer in model.predictor(other)(pair) if isinstance(answer, Decision)])
    assert scores[0] == scores[1]
    with EmbeddedStore(tmp_path / "without.sqlite", synchronous="normal") as without:
        without.commit([Event("old", sent.microseconds, 1, 2, 3.0)])
        with pytest.raises(ArtifactError, match="1 of 1 events in the store have no distance"):
            model.predictor(without).warm()
