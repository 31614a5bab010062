"""One predictor, two ways: single requests against a store and whole files give the same answers, with reasons."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from core.errors import ArtifactError, DataError, Unavailable
from tests.verticals.finance.fraud.model import Trained, trained
from verticals.finance.fraud.events import DAY, Events
from verticals.finance.fraud.predictor import FraudPredictor
from verticals.finance.fraud.records import key_codes
from verticals.finance.fraud.requests import Decision, Feedback, Transaction
from verticals.finance.fraud.store import Chunk, Conflict, Stale
from verticals.finance.fraud.store_embedded import EmbeddedStore
from verticals.finance.fraud.synthetic import synthetic_transactions

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = datetime(2025, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def model() -> Trained:
    return trained()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    opened = EmbeddedStore(tmp_path / "store.sqlite", synchronous="normal")
    yield opened
    opened.close()


def table_of(model: Trained) -> pa.Table:
    return synthetic_transactions(model.config.data.synthetic)


def requests_of(table: pa.Table) -> list[Transaction]:
    return [
        Transaction(
            transaction_id=str(row["TRANSACTION_ID"]),
            time=row["TX_DATETIME"].replace(tzinfo=UTC),
            customer=str(row["CUSTOMER_ID"]),
            terminal=str(row["TERMINAL_ID"]),
            amount=row["TX_AMOUNT"],
        )
        for row in table.to_pylist()
    ]


def events_of(table: pa.Table) -> Events:
    return Events(
        table.column("TX_DATETIME").cast(pa.int64()).to_numpy(),
        key_codes(table.column("CUSTOMER_ID")),
        key_codes(table.column("TERMINAL_ID")),
        table.column("TX_AMOUNT").to_numpy(),
        table.column("TX_FRAUD").to_numpy(),
    )


def chunk_of(table: pa.Table) -> Chunk:
    return Chunk([str(i) for i in table.column("TRANSACTION_ID").to_pylist()], events_of(table))


def decisions(answers: list[Any]) -> list[Decision]:
    assert all(isinstance(answer, Decision) for answer in answers), answers
    return answers


def one(predictor: FraudPredictor, **fields: Any) -> Decision:
    return decisions(predictor([request(**fields)]))[0]


def request(**fields: Any) -> Transaction:
    return Transaction(
        **{"transaction_id": "x", "time": START, "customer": "c", "terminal": "t", "amount": 20.0, **fields}
    )


def test_online_answers_after_loading_history_equal_the_file_way(model: Trained, store: EmbeddedStore) -> None:
    table = table_of(model)
    scores = list(model.predictor().stream(model.data.chunks()))
    offline = np.concatenate([chunk.score for chunk in scores])
    split = len(table) - 2400
    store.load([chunk_of(table.slice(0, split))], source="history")
    predictor = model.predictor(store)
    assert predictor.warm() == split
    requests = requests_of(table.slice(split))
    online: list[float] = []
    labels, told = table.column("TX_FRAUD").to_pylist(), 0
    for place, sent in enumerate(requests):
        while split + told < split + place and requests[told].microseconds <= sent.microseconds - 6 * DAY:
            predictor.feedback(Feedback(transaction_id=requests[told].transaction_id, fraud=bool(labels[split + told])))
            told += 1
        online.append(decisions(predictor([sent], explain="alerts"))[0].score)
    assert told > 0
    np.testing.assert_allclose(online, offline[split:], rtol=1e-5, atol=1e-7)


def test_a_batch_equals_one_by_one(model: Trained, store: EmbeddedStore, tmp_path: Path) -> None:
    requests = requests_of(table_of(model).slice(0, 300))
    other = EmbeddedStore(tmp_path / "other.sqlite", synchronous="normal")
    singly = [decisions(model.predictor(store)([sent]))[0] for sent in requests]
    together = decisions(model.predictor(other)(requests[::-1]))[::-1]
    other.close()
    np.testing.assert_allclose([a.score for a in together], [a.score for a in singly], rtol=1e-5)
    assert [a.cold_start for a in together] == [a.cold_start for a in singly]


def test_chunks_of_a_file_do_not_change_its_scores(model: Trained) -> None:
    whole = np.concatenate([chunk.logit for chunk in model.predictor().stream(model.data.chunks())])
    ids, events, _ = next(iter(model.data.chunks()))
    cuts = [0, 1, 17, 5000, len(events)]
    pieces = ((ids[a:b], events.rows(slice(a, b)), {}) for a, b in itertools.pairwise(cuts))
    parts = np.concatenate([chunk.logit for chunk in model.predictor().stream(pieces)])
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_an_id_seen_before_gets_its_first_answer_and_changes_nothing(model: Trained, store: EmbeddedStore) -> None:
    predictor = model.predictor(store)
    first = one(predictor)
    one(predictor, transaction_id="y", time=START + timedelta(hours=1), amount=90.0)
    count, state = store.count(), store.states("v1", [int(code) for code in key_codes(["c"])]).by_customer
    assert one(predictor) == first
    assert store.count() == count
    assert store.states("v1", [int(code) for code in key_codes(["c"])]).by_customer == state


def test_an_id_twice_in_one_batch_is_answered_once(model: Trained, store: EmbeddedStore) -> None:
    answers = model.predictor(store)([request(), request(), request(amount=21.0)])
    assert answers[0] == answers[1]
    assert isinstance(answers[2], Conflict)
    assert store.count() == 1


def test_another_content_under_an_old_id_is_refused(model: Trained, store: EmbeddedStore) -> None:
    predictor = model.predictor(store)
    one(predictor)
    refused = predictor([request(amount=20.01)])[0]
    assert isinstance(refused, Conflict)
    assert "another content" in str(refused)


def test_an_event_older_than_its_card_is_refused_with_the_newest_time(model: Trained, store: EmbeddedStore) -> None:
    predictor = model.predictor(store)
    one(predictor)
    answers = predictor(
        [
            request(transaction_id="late", time=START - timedelta(seconds=1)),
            request(transaction_id="other", customer="d"),
        ]
    )
    assert isinstance(answers[0], Conflict)
    assert answers[0].newest == round(START.timestamp() * 1e6)
    assert isinstance(answers[1], Decision)
    assert store.count() == 2


def test_a_card_that_nobody_knows_is_a_cold_start_with_its_own_answer(model: Trained, store: EmbeddedStore) -> None:
    predictor = model.predictor(store)
    cold = one(predictor)
    assert cold.cold_start
    warm = one(predictor, transaction_id="y", time=START + timedelta(hours=2))
    assert not warm.cold_start
    time = np.array([request().microseconds])
    alone = Events(time, key_codes(["c"]), key_codes(["t"]), np.array([20.0]), np.array([-1], np.int8))
    offline = next(iter(predictor.stream([(np.array(["x"]), alone, {})])))
    assert cold.score == pytest.approx(float(offline.score[0]), rel=1e-6)


def test_a_label_counts_from_the_end_of_its_delay_and_not_before(model: Trained, tmp_path: Path) -> None:
    delay = timedelta(days=model.config.features.label_delay)

    def score(*, told: bool, reversed_: bool, after: timedelta) -> float:
        store = EmbeddedStore(tmp_path / f"{told}{reversed_}{after.total_seconds()}.sqlite", synchronous="normal")
        predictor = model.predictor(store)
        for k in range(4):
            one(predictor, transaction_id=f"{k}", customer=f"victim{k}", time=START + timedelta(minutes=k))
            if told:
                predictor.feedback(Feedback(transaction_id=f"{k}", fraud=True))
            if reversed_:
                predictor.feedback(Feedback(transaction_id=f"{k}", fraud=False))
        answer = one(predictor, time=START + after).score
        store.close()
        return answer

    early, late = delay - timedelta(minutes=1), delay + timedelta(hours=1)
    assert score(told=True, reversed_=False, after=early) == score(told=False, reversed_=False, after=early)
    assert score(told=True, reversed_=False, after=late) > score(told=False, reversed_=False, after=late)
    assert score(told=True, reversed_=True, after=late) == score(told=False, reversed_=False, after=late)


def test_reasons_name_a_planted_cause(model: Trained, store: EmbeddedStore) -> None:
    predictor = model.predictor(store)
    delay = timedelta(days=model.config.features.label_delay)
    for k in range(12):
        one(
            predictor,
            transaction_id=f"victim{k}",
            customer=f"victim{k}",
            time=START + timedelta(hours=k),
            terminal="bad",
        )
        predictor.feedback(Feedback(transaction_id=f"victim{k}", fraud=True))
    for k in range(10):
        one(
            predictor,
            transaction_id=f"habit{k}",
            customer="steady",
            time=START + timedelta(days=k / 2),
            terminal="good",
        )
    later = START + delay + timedelta(days=1)
    at_bad = one(predictor, transaction_id="a", customer="steady", time=later, terminal="bad")
    assert at_bad.reasons[0].cause == "known fraud at this terminal"
    assert at_bad.reasons[0].effect > 0
    large = one(
        predictor, transaction_id="b", customer="steady", time=later + timedelta(hours=3), terminal="good", amount=700.0
    )
    assert large.reasons[0].cause == "amount, against what this card spends"
    assert large.reasons[0].effect > 0
    assert large.reasons[0].value is not None


def test_hiding_a_past_event_is_forgetting_it(model: Trained) -> None:
    from verticals.finance.fraud.explain import _without_each

    session, rng = model.session, np.random.default_rng(0)
    spec = {s.name: s for s in session.inputs}
    state = {
        n: np.zeros([1 if isinstance(a, str) else a for a in s.shape], s.dtype)
        for n, s in spec.items()
        if n not in ("features", "time")
    }
    features = rng.normal(size=(5, spec["features"].shape[1])).astype(np.float32)
    for k in range(4):
        out = session({"features": features[k : k + 1], "time": np.array([float(k)]), **state})
        state = {name: out[f"new_{name}"] for name in state}
    _, forgotten = _without_each(state)
    assert forgotten["count"].tolist() == [3, 3, 3, 3]
    for k in range(4):
        kept = [i for i in range(4) if i != k]
        np.testing.assert_array_equal(forgotten["times"][k, -3:], state["times"][0, -4:][kept])
        np.testing.assert_array_equal(forgotten["memory"][k, -3:], state["memory"][0, -4:][kept])


def test_a_new_version_is_warm_after_replay(model: Trained, store: EmbeddedStore) -> None:
    requests = requests_of(table_of(model).slice(0, 400))
    old = model.predictor(store, version="old")
    old(requests[:200])
    new = model.predictor(store, version="new")
    assert new.warm() == 200
    assert new.warm() == 0
    old(requests[200:300])
    assert new.warm() == 100
    cards = sorted({int(code) for code in key_codes([sent.customer for sent in requests[:300]])})
    one_way, other_way = (store.states(version, cards).by_customer for version in ("old", "new"))
    assert one_way.keys() == other_way.keys()
    layout = new.layout
    for card in cards:
        a = layout.arrays(np.frombuffer(one_way[card], np.uint8)[None])
        b = layout.arrays(np.frombuffer(other_way[card], np.uint8)[None])
        for name in a:
            np.testing.assert_allclose(a[name], b[name], atol=1e-5)


def test_a_new_version_takes_over_from_a_stream_that_never_pauses(
    model: Trained, store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(table_of(model).slice(0, 400))
    old, new = model.predictor(store, version="old"), model.predictor(store, version="new")
    old(requests[:100])
    waiting, catch_up = iter(requests[100:300]), store.catch_up

    def while_others_go_on(*given: Any, **options: Any) -> None:
        catch_up(*given, **options)
        old([next(waiting)])

    with monkeypatch.context() as patch:
        patch.setattr(store, "catch_up", while_others_go_on)
        assert new.warm() == 102
    assert store.versions()["new"] == store.last - 1
    (answer,) = new([next(waiting)])
    assert isinstance(answer, Decision)
    assert answer.version == "new"
    assert store.versions()["new"] == store.last


@pytest.mark.parametrize("times", [3, 20])
def test_requests_are_scored_again_while_other_workers_are_faster(
    model: Trained, store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    predictor, requests, commit = model.predictor(store), requests_of(table_of(model).slice(0, 30)), store.commit
    faster = iter(range(times))

    def after_others(*given: Any, **options: Any) -> Any:
        if next(faster, None) is not None:
            raise Stale("another worker was faster")
        return commit(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "commit", after_others)
        answers = predictor(requests)
    with EmbeddedStore(tmp_path / "alone.sqlite") as alone:
        undisturbed = model.predictor(alone)(requests)
    for answer, expected in zip(answers, undisturbed, strict=True):
        assert isinstance(answer, Decision)
        assert isinstance(expected, Decision)
        assert answer.score == pytest.approx(expected.score, abs=1e-6)
    assert predictor(requests) == answers
    assert predictor.warm() == (0 if times == 3 else len(requests))  # what others beat too often is caught up later


def test_workers_that_are_always_faster_are_told_of(
    model: Trained, store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any, **options: Any) -> Any:
        raise Stale("another worker was faster")

    predictor = model.predictor(store)
    monkeypatch.setattr(store, "commit", never)
    with pytest.raises(Unavailable, match="nothing was written: send it again"):
        one(predictor)
    assert store.count() == 0


def test_the_decision_log_holds_no_card(model: Trained, store: EmbeddedStore) -> None:
    one(model.predictor(store), customer="4111111111111111")
    ((_, line),) = next(iter(store.decisions()))
    assert line.version == "v1"
    assert line.decision in ("alert", "pass")
    assert len(line.digest) == 16
    assert b"4111" not in line.reasons


def test_a_threshold_of_a_call_decides(model: Trained, store: EmbeddedStore) -> None:
    predictor = model.predictor(store)
    alert = decisions(predictor([request()], threshold=0.0))[0]
    passed = decisions(predictor([request(transaction_id="y", time=START + timedelta(hours=1))], threshold=1.0))[0]
    assert (alert.decision, alert.threshold, passed.decision) == ("alert", 0.0, "pass")


def test_feedback_for_an_unknown_transaction_is_an_error(model: Trained, store: EmbeddedStore) -> None:
    with pytest.raises(DataError, match="not known"):
        model.predictor(store).feedback(Feedback(transaction_id="nobody", fraud=True))


def test_single_requests_need_a_store(model: Trained) -> None:
    with pytest.raises(ArtifactError, match="store"):
        model.predictor()([request()])


def test_constants_of_other_features_are_refused(model: Trained) -> None:
    with pytest.raises(ArtifactError, match="train again"):
        FraudPredictor(model.config, {**model.constants, "features": ["amount"]}, model.session)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"amount": float("nan")}, "finite"),
        ({"amount": float("inf")}, "finite|less than"),
        ({"amount": -1}, "greater than or equal to 0"),
        ({"time": "yesterday"}, "ISO 8601"),
        ({"time": 1533722400}, "not a time"),
        ({"time": "2999-01-01T00:00:00Z"}, "future"),
        ({"customer": ""}, "at least 1"),
        ({"transaction_id": "a" * 200}, "at most 128"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_bad_fields_are_refused_in_words(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        request(**fields)


def test_further_columns_must_be_those_of_the_model(model: Trained, store: EmbeddedStore) -> None:
    refused = model.predictor(store)([request(extra={"mcc": "5411"})])[0]
    assert isinstance(refused, DataError)
    assert "extra" in str(refused)


def test_a_version_that_others_left_behind_catches_up_before_it_answers(
    model: Trained, store: EmbeddedStore, tmp_path: Path
) -> None:
    """Two versions answer in turn: each one's scores are those it gives when it answers alone."""
    requests = requests_of(table_of(model).slice(0, 120))
    alone = EmbeddedStore(tmp_path / "alone.sqlite", synchronous="normal")
    expected = [decisions(model.predictor(alone)([sent], explain="alerts"))[0].score for sent in requests]
    alone.close()
    versions = [model.predictor(store, version=name) for name in ("one", "two")]
    got = [decisions(versions[k // 7 % 2]([sent], explain="alerts"))[0].score for k, sent in enumerate(requests)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
