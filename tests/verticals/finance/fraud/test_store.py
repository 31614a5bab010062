"""What both event stores promise, tested on a file and on a real Redis server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from core.errors import DataError
from verticals.finance.fraud.events import DAY, Events
from verticals.finance.fraud.features_event import History
from verticals.finance.fraud.store import Chunk, Conflict, Decision, Event, EventStore, Key, Stale

START = 1_525_132_800_000_000
CARD, OTHER_CARD, SHOP, OTHER_SHOP = 2**63 - 1, -(2**63), -1, 7


def event(
    id: str,
    minute: int = 0,
    *,
    card: int = CARD,
    shop: int = SHOP,
    amount: float = 10.0,
    fraud: int = -1,
    extra: bytes | None = None,
) -> Event:
    return Event(id, START + minute * 60_000_000, card, shop, amount, fraud, extra, b'{"id": "%s"}' % id.encode())


def line(event: Event) -> Decision:
    return Decision(event.time, "v1", event.amount / 100, "allow", b'["amount"]', event.digest)


def chunk(events: Sequence[Event]) -> Chunk:
    columns = [np.array([getattr(e, name) for e in events], np.int64) for name in ("time", "customer", "terminal")]
    amount, fraud = np.array([e.amount for e in events]), np.array([e.fraud for e in events], np.int8)
    return Chunk([e.id for e in events], Events(*columns, amount, fraud), [e.extra for e in events])


def all_decisions(store: EventStore) -> list[Decision]:
    return [line for lines in store.decisions(size=2) for _, line in lines]


def test_an_empty_store(store: EventStore) -> None:
    assert store.answers([]) == store.answers(["a"]) == {}
    assert store.newest([CARD]) == {}
    assert store.span() is None
    assert (store.count(), store.last, store.versions(), store.labels_since(0)) == (0, 0, {}, [])
    assert list(store.replay()) == all_decisions(store) == []
    past = store.history("customer", CARD, 0)
    assert [len(column) for column in past[:4]] == [0, 0, 0, 0]
    assert past.revision == 0
    assert store.forget(START) == 0


def test_the_first_answer_is_kept_and_nothing_counts_twice(store: EventStore) -> None:
    first, second = event("a"), event("b", 1, extra=b'{"channel": "web"}')
    done = store.commit(
        [first, second], decisions=[line(first), line(second)], states={CARD: b"s1"}, version="v1", after=0
    )
    assert [(c.seq, c.answer, c.new) for c in done] == [(1, first.answer, True), (2, second.answer, True)]
    again = first._replace(answer=b"another", fraud=1)
    assert store.commit([again], decisions=[line(again)], states={CARD: b"s2"}, version="v1", after=0) == [
        (1, first.answer, False, 0)
    ]
    assert store.count() == 2
    assert store.answers(["a", "b", "c"]) == {"a": (first.digest, first.answer), "b": (second.digest, second.answer)}
    assert store.states("v1", [CARD]) == (2, {CARD: b"s1"})
    assert all_decisions(store) == [line(first), line(second)]
    assert list(store.decisions(after=1)) == [[(2, line(second))]]
    assert store.history("customer", CARD, 0).fraud.tolist() == [-1, -1]


def test_an_id_with_another_content_is_refused(store: EventStore) -> None:
    store.commit([event("a", extra=b"{}")])
    for other in (
        event("a", extra=b"{ }"),
        event("a", amount=10.01, extra=b"{}"),
        event("a", 1, extra=b"{}"),
        event("a"),
    ):
        with pytest.raises(Conflict, match="'a' was sent before with another content") as caught:
            store.commit([event("b", 2), other])
        assert (caught.value.transaction, caught.value.newest) == ("a", None)
    assert store.answers(["b"]) == {}


def test_an_event_older_than_its_cards_newest_is_refused_with_all_beside_it(store: EventStore) -> None:
    newest = event("a", 10)
    store.commit([newest, event("b", 3, card=OTHER_CARD)])
    old, beside = event("old", 9, shop=OTHER_SHOP), event("beside", 9, card=3)
    states = {3: b"s", CARD: b"s"}
    with pytest.raises(Conflict, match=r"'old' is of 2018-05-01T00:09.*newest event at 2018-05-01T00:10") as caught:
        store.commit([beside, old], states=states, version="v1", decisions=[line(beside), line(old)], after=2)
    assert (caught.value.transaction, caught.value.newest) == ("old", newest.time)
    assert store.answers(["old", "beside"]) == {}
    assert (store.count(), store.versions(), all_decisions(store), store.newest([3])) == (2, {}, [], {})
    with pytest.raises(Conflict):
        store.commit([event("c", 12), event("d", 11)])
    assert [c.seq for c in store.commit([event("same time", 10), event("c", 12)])] == [3, 4]
    assert store.newest([3, CARD]) == {CARD: event("c", 12).time}
    assert store.span() == (event("b", 3).time, event("c", 12).time)


def test_pasts_are_in_time_order_and_fit_the_features(store: EventStore) -> None:
    store.commit(
        [event("a", 10), event("b", 5, card=OTHER_CARD, amount=2.5), event("c", 10, card=3), event("d", 10, card=4)]
    )
    store.commit([event("e", 11, shop=OTHER_SHOP)])
    shop = store.history("terminal", SHOP, 0)
    assert shop.other.tolist() == [OTHER_CARD, CARD, 3, 4], "time order, ties in the order of arrival"
    assert shop.amount.tolist() == [2.5, 10, 10, 10]
    assert [store.history("terminal", SHOP, 0, before=n).amount.tolist() for n in (1, 2, 3)] == [[], [10], [2.5, 10]]
    assert [column.dtype for column in shop[:4]] == [np.int64, np.float64, np.int64, np.int8]
    minute = event("", 10).time
    assert store.history("terminal", SHOP, minute).other.tolist() == [CARD, 3, 4]
    assert store.history("terminal", SHOP, minute + 1).other.tolist() == []
    assert store.history("terminal", SHOP, 0, until=minute - 1).other.tolist() == [OTHER_CARD]
    assert store.history("customer", CARD, minute, until=minute).other.tolist() == [SHOP]
    assert store.history("terminal", SHOP, minute, until=minute, before=4).other.tolist() == [CARD, 3], "ties by number"
    card = store.history("customer", CARD, 0)
    assert card.other.tolist() == [SHOP, OTHER_SHOP]
    assert History(*card[:4], 30 * DAY).mark("gap").tolist() == [30, 1 / 1440]


def test_many_pasts_at_once_are_what_each_one_is(store: EventStore) -> None:
    store.commit([event("a", 10), event("b", 5, card=OTHER_CARD, amount=2.5), event("c", 10, card=5)])
    (done,) = store.commit([event("e", 11, shop=OTHER_SHOP)])
    keys: list[Key] = [
        ("terminal", SHOP),
        ("customer", 5),
        ("customer", 77),
        ("customer", CARD),
        ("terminal", OTHER_SHOP),
    ]
    for since in (0, event("", 10).time):
        pasts = store.pasts(keys, since)
        assert pasts.keys() == set(keys)
        for key, past in pasts.items():
            for one, other in zip(past, store.history(*key, since), strict=True):
                np.testing.assert_array_equal(one, other)
    revisions = {key: past.revision for key, past in pasts.items()}
    assert revisions["customer", CARD] == revisions["terminal", OTHER_SHOP] == done.revision
    assert store.pasts(keys, 0, known=revisions) == {}
    (new,) = store.commit([event("f", 12, card=5, shop=SHOP)])
    changed = store.pasts(keys, 0, known=revisions)
    assert {key: past.revision for key, past in changed.items()} == {
        ("terminal", SHOP): new.revision,
        ("customer", 5): new.revision,
    }
    assert changed["terminal", SHOP].seq.tolist() == [2, 1, 3, 5]
    store.forget(event("", 10).time)
    assert store.pasts(keys, 0, known=revisions)["terminal", SHOP].seq.tolist() == [1, 3, 5]


def test_a_commit_computed_from_a_past_that_changed_is_stale(store: EventStore) -> None:
    card, shop = store.history("customer", CARD, 0), store.history("terminal", SHOP, 0)
    expected = {("customer", CARD): card.revision, ("terminal", SHOP): shop.revision}
    store.commit([event("elsewhere", card=5, shop=6)])
    store.commit([event("a")], expected=expected)  # type: ignore[arg-type]
    for entity in expected:
        with pytest.raises(Stale):
            store.commit([event("b", 1)], expected={entity: expected[entity]})  # type: ignore[dict-item]
    assert store.commit([event("a")], expected=expected)[0].new is False, "an answered id needs no past"  # type: ignore[arg-type]
    card = store.history("customer", CARD, 0)
    store.label("a", 1, START)
    with pytest.raises(Stale):
        store.commit([event("b", 1)], expected={("customer", CARD): card.revision})
    card = store.history("customer", CARD, 0)
    assert store.commit([event("b", 1)], expected={("customer", CARD): card.revision})[0].new


def test_events_computed_without_one_that_is_known_are_stale(store: EventStore) -> None:
    store.commit([event("a")])
    with pytest.raises(Stale, match="'b'"):
        store.commit([event("a"), event("b", 1)], states={CARD: b"counted a twice"}, version="v1", after=1)
    assert [c.new for c in store.commit([event("a"), event("c", card=3)])] == [False, True]


def test_contradicting_arguments_are_refused(store: EventStore) -> None:
    with pytest.raises(ValueError, match="1 decisions for 2 events"):
        store.commit([event("a"), event("b")], decisions=[line(event("a"))])
    with pytest.raises(ValueError, match="without a version"):
        store.commit([event("a")], states={CARD: b"s"})
    with pytest.raises(ValueError, match="without `after`"):
        store.commit([event("a")], states={CARD: b"s"}, version="v")
    with pytest.raises(ValueError, match="cards without an event"):
        store.commit([event("a")], states={CARD: b"s", 5: b"s"}, version="v", after=0)
    with pytest.raises(ValueError, match="no state for the card of transaction 'b'"):
        store.commit([event("a"), event("b", card=5)], states={CARD: b"s"}, version="v", after=0)
    with pytest.raises(ValueError, match="moves forward, not from event 3 to 3"):
        store.catch_up("v", [], after=3, upto=3)
    with pytest.raises(ValueError, match="twice"):
        store.commit([event("a"), event("a")])
    assert (store.count(), store.versions()) == (0, {})


def test_labels_their_reversal_and_their_history(store: EventStore) -> None:
    store.commit([event("a"), event("b", 1), event("c", 1, card=OTHER_CARD)])
    assert store.label("b", 1, START + DAY)
    assert not store.label("b", 1, START + 2 * DAY)
    assert store.label("c", 0, START + 2 * DAY)
    assert store.history("customer", CARD, 0).fraud.tolist() == [-1, 1]
    assert store.history("terminal", SHOP, 0).fraud.tolist() == [-1, 1, 0]
    assert store.label("b", 0, START + 3 * DAY)
    assert store.history("customer", CARD, 0).fraud.tolist() == [-1, 0]
    assert next(iter(store.replay())).events.fraud.tolist() == [-1, 0, 0]
    b = event("b", 1)
    assert store.labels_since(0) == [
        (1, "b", b.time, CARD, SHOP, -1, 1, START + DAY),
        (2, "c", b.time, OTHER_CARD, SHOP, -1, 0, START + 2 * DAY),
        (3, "b", b.time, CARD, SHOP, 1, 0, START + 3 * DAY),
    ]
    assert [change.seq for change in store.labels_since(2)] == [3]
    with pytest.raises(DataError, match="'nobody' is not known"):
        store.label("nobody", 1, START)


def test_a_label_finds_its_event_among_many(store: EventStore) -> None:
    events = [event(str(n), n // 2, card=n % 3) for n in range(100)]
    store.commit(events)
    for n in (0, 99, 50, 31):
        store.label(str(n), 1, START)
    assert np.flatnonzero(store.history("terminal", SHOP, 0).fraud == 1).tolist() == [0, 31, 50, 99]


def test_replay_gives_arrival_order_in_chunks(store: EventStore) -> None:
    events = [
        event("a", 5, extra=b"{}"),
        event("b", 3, card=OTHER_CARD, amount=0.1, fraud=1),
        event("c", 9, shop=OTHER_SHOP),
    ]
    store.commit(events)
    chunks = list(store.replay(size=2, ids=True))
    assert [c.seqs.tolist() for c in chunks] == [[1, 2], [3]]
    assert [c.ids for c in chunks] == [["a", "b"], ["c"]]
    assert [c.extras for c in chunks] == [[b"{}", None], [None]]
    for name in ("time", "customer", "terminal", "amount", "fraud"):
        column = np.concatenate([getattr(c.events, name) for c in chunks])
        assert column.tolist() == [getattr(e, name) for e in events]
        assert column.dtype == getattr(chunk(events).events, name).dtype
    (rest,) = store.replay(after=2)
    assert rest.seqs.tolist() == [3]
    assert rest.ids is None


def history(rows: int = 60, *, first: int = 0) -> list[Event]:
    extras = [None, b'{"mcc": 5}']
    return [
        event(f"h{n}", n // 2, card=n % 5, shop=n % 4, amount=n / 7, fraud=n % 9 == 0, extra=extras[n % 2])._replace(
            answer=None
        )
        for n in range(first, rows)
    ]


def chunks(events: Sequence[Event], size: int = 7) -> Iterator[Chunk]:
    return (chunk(events[start : start + size]) for start in range(0, len(events), size))


def test_loaded_history_is_what_committing_would_give(store: EventStore) -> None:
    events = history()
    done = store.load(chunks(events), source="file 1")
    assert done == (60, 60, 0, 0, 0, 0)
    assert store.loaded("file 1") == store.count() == store.last == 60
    assert store.span() == (events[0].time, events[-1].time)
    assert store.answers(["h7"]) == {"h7": (events[7].digest, None)}
    (replay,) = store.replay(ids=True)
    assert replay.ids == [e.id for e in events]
    assert replay.extras == [e.extra for e in events]
    assert replay.events.amount.tolist() == [e.amount for e in events]
    past = store.history("customer", 3, 0)
    assert past.time.tolist() == [e.time for e in events if e.customer == 3]
    assert past.fraud.tolist() == [e.fraud for e in events if e.customer == 3]
    assert store.commit([events[7]._replace(answer=b"late")]) == [(8, None, False, 0)]
    assert store.label("h1", 1, START)
    assert store.history("customer", 1, 0).fraud.tolist()[0] == 1


def test_a_load_that_was_cut_off_goes_on(store: EventStore) -> None:
    events = history()

    def cut() -> Iterator[Chunk]:
        yield from list(chunks(events))[:3]
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        store.load(cut(), source="file 1")
    assert store.loaded("file 1") == store.count() == 21
    assert store.load(chunks(events, size=10), source="file 1") == (60, 39, 21, 0, 0, 0)
    assert store.load(chunks(events), source="file 1") == (60, 0, 60, 0, 0, 0)
    assert store.load(chunks(events[50:]), source="file 1", first=50) == (10, 0, 10, 0, 0, 0)
    with pytest.raises(ValueError, match="only 60 are committed"):
        store.load(chunks(events), source="file 1", first=61)
    (replay,) = store.replay(ids=True)
    assert replay.ids == [e.id for e in events]


def test_rows_that_are_there_are_skipped_and_counted(store: EventStore) -> None:
    events = history()
    store.commit(events[20:25])
    with pytest.raises(Conflict, match="load history before live events"):
        store.load(chunks(events, size=100), source="too late")
    store.load(chunks(events[25:40]), source="part")
    relabelled = events[30]._replace(fraud=1 - events[30].fraud)
    again = [*events[22:30], relabelled, *events[31:50], events[49], events[49]]
    assert store.load(chunks(again), source="all") == (30, 10, 0, 20, 1, 0)
    assert store.count() == 30
    changed = [events[45], events[50], events[46]._replace(amount=99.0, time=events[50].time)]
    with pytest.raises(Conflict, match="'h46' was sent before with another content"):
        store.load(chunks(changed), source="changed")
    assert store.count() == 30
    assert store.loaded("changed") == 0


def test_unsorted_history_names_the_row(store: EventStore) -> None:
    events = history()
    for rows, name in (
        ([0, 1, 8, 4, 9], "row 3 .transaction 'h4'"),
        ([0, 1, 2, 3, 4, 5, 16, 9], "row 7 .transaction 'h9'"),
    ):
        with pytest.raises(DataError, match=f"{name}.*sort by time"):
            store.load(chunks([events[row] for row in rows]), source=name)


def test_forgetting(store: EventStore) -> None:
    events = history(40)
    store.load(chunks(events[:20]), source="file")
    store.commit([e._replace(answer=b"x") for e in events[20:]])
    store.label("h4", 1, START)
    store.label("h30", 1, START)
    edge = events[20].time
    assert store.forget(edge, keep_ids=330_000_000) == 20
    assert (store.count(), store.last, store.span()) == (20, 40, (edge, events[-1].time))
    assert store.history("customer", 0, 0).time.tolist() == [e.time for e in events[20:] if e.customer == 0]
    assert [change.id for change in store.labels_since(0)] == ["h30"]
    assert store.answers(["h9", "h10", "h20"]).keys() == {"h10", "h20"}, "ids are kept 5.5 minutes longer"
    with pytest.raises(DataError, match="forgotten"):
        store.label("h10", 1, START)
    with pytest.raises(Conflict) as caught:
        store.commit([event("before all", 9, card=77)])
    assert caught.value.newest == edge
    assert store.load(chunks([event("expired", 9, card=77), event("fine", 10, card=77)]), source="more").expired == 1
    assert store.commit([event("next", 30)])[0].seq == 42
    assert next(iter(store.replay(ids=True, size=1))).ids == ["h20"]
    assert store.forget(START + DAY) == 22
    assert (store.count(), store.span(), list(store.replay())) == (0, None, [])
    assert store.newest([0]) == {}
    with pytest.raises(ValueError, match="retention"):
        store.forget()


def test_digests_of_a_table_and_of_an_event_agree() -> None:
    events = [*history(), event("zero", amount=-0.0, extra=b"")]
    assert chunk(events).digests() == [e.digest for e in events]
    assert event("a", amount=0.0).digest == event("b", amount=-0.0, fraud=1).digest
    assert len({e.digest for e in history()}) == 60


def test_threads_that_retry_lose_no_update(store: EventStore) -> None:
    """The state of a card counts its events: each of 4 threads reads it, adds one and commits."""

    def work(thread: int) -> int:
        retries = 0
        for n in range(25):
            card = n % 2
            while True:
                past = store.history("customer", card, 0)
                held = store.states("v", [card])
                states = {card: b"%d" % (int(held.by_customer.get(card, b"0")) + 1)}
                new = event(f"{thread} {n}", card=card, shop=thread)
                try:
                    expected = {("customer", card): past.revision}
                    store.commit([new], states=states, version="v", expected=expected, after=held.upto)  # type: ignore[arg-type]
                    break
                except Stale:
                    retries += 1
        return retries

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert store.states("v", [0, 1]) == (100, {0: b"52", 1: b"48"})
    assert sorted(seq for r in store.replay(size=30) for seq in r.seqs.tolist()) == list(range(1, 101))
    assert [len(store.history("customer", card, 0).time) for card in (0, 1)] == [52, 48]
