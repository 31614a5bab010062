from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.durable.journal import Entry, Journal, KeyConflict
from core.errors import ArtifactError, Unavailable

OUTBOX = "CREATE TABLE outbox (id INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;"


def entry(key: str, content: bytes = b"a", at: int = 0) -> Entry:
    return Entry(key, b"digest of " + content, b"payload " + content, b"answer " + content, at)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "journal.db"


def test_append_answers_and_replay_survive_reopening(path: Path) -> None:
    with Journal(path) as journal:
        assert journal.append([entry("a"), entry("b", b"b")]) == [1, 2]
    with Journal(path) as journal:
        assert journal.append([entry("c")]) == [3]
        kept = journal.answers(["a", "b", "missing"])
        assert set(kept) == {"a", "b"}
        assert kept["b"] == (2, b"digest of b", b"answer b")
        chunks = list(journal.replay(size=2))
        assert [[record.seq for record in chunk] for chunk in chunks] == [[1, 2], [3]]
        assert chunks[0][1] == (2, "b", b"digest of b", b"payload b", b"answer b", 0)
        assert [record.key for chunk in journal.replay(after=2) for record in chunk] == ["c"]
        assert journal.last == 3


def test_a_key_that_returns_keeps_its_first_answer(path: Path) -> None:
    with Journal(path) as journal:
        journal.append([entry("a")])
        again = entry("a")._replace(answer=b"another answer")
        assert journal.append([entry("b"), again, entry("c"), entry("c")]) == [2, 1, 3, 3]
        assert journal.answers(["a"])["a"].answer == b"answer a"
        assert journal.last == 3


def test_a_key_with_another_content_is_refused_with_everything_beside_it(path: Path) -> None:
    with Journal(path) as journal:
        journal.append([entry("a")])
        with pytest.raises(KeyConflict, match="'a'") as caught:
            journal.append([entry("b"), entry("a", b"other")])
        assert caught.value.key == "a"
        with pytest.raises(KeyConflict):
            journal.append([entry("c"), entry("c", b"other")])
        assert set(journal.answers(["a", "b", "c"])) == {"a"}
        assert journal.append([entry("d")]) == [2]


def test_own_tables_commit_with_the_journal_or_not_at_all(path: Path) -> None:
    with Journal(path, schema=OUTBOX) as journal:
        with journal.transaction() as cursor:
            journal.append([entry("a")])
            cursor.execute("INSERT INTO outbox (body) VALUES ('sent with a')")
            assert set(journal.answers(["a"])) == {"a"}, "a transaction reads its own writes"

        def fail() -> None:
            with journal.transaction() as cursor:
                journal.append([entry("b")])
                cursor.execute("INSERT INTO outbox (body) VALUES ('lost with b')")
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            fail()
        assert journal.rows("SELECT body FROM outbox") == [("sent with a",)]
        assert journal.answers(["b"]) == {}
        assert journal.append([entry("c")]) == [2]


def test_readers_do_not_see_an_open_transaction(path: Path) -> None:
    with Journal(path) as journal, ThreadPoolExecutor(1) as pool:
        with journal.transaction():
            journal.append([entry("a")])
            assert pool.submit(journal.answers, ["a"]).result() == {}
        assert set(pool.submit(journal.answers, ["a"]).result()) == {"a"}


def test_many_threads_append_without_gaps(path: Path) -> None:
    with Journal(path, synchronous="normal") as journal, ThreadPoolExecutor(8) as pool:
        keys = [f"key-{number % 150}" for number in range(300)]  # each key twice
        numbers = list(pool.map(lambda key: journal.append([entry(key)])[0], keys))
        assert sorted(set(numbers)) == list(range(1, 151))
        assert numbers[:150] == numbers[150:]


def test_forgetting_drops_old_entries_and_never_reuses_a_number(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.durable.journal.SWEEP", 3)
    with Journal(path) as journal:
        journal.append([entry(str(at), at=at) for at in (5, 1, 7, 2, 9, 3, 8, 4)])
        assert journal.forget(5) == 4
        assert [record.at for chunk in journal.replay() for record in chunk] == [5, 7, 9, 8]
        assert journal.forget(100) == 4
        assert journal.forget(100) == 0
    with Journal(path) as journal:
        assert journal.append([entry("1", b"other")]) == [9]


def test_one_process_writes_and_another_may_read(path: Path) -> None:
    with Journal(path) as journal:
        journal.append([entry("a")])
        with pytest.raises(ArtifactError, match=r"written by process \d+; stop that process"):
            Journal(path)
        script = (
            "import sys; from core.durable.journal import Journal; from core.errors import ArtifactError\n"
            "with Journal(sys.argv[1], access='read') as j: print(j.last, [r.key for c in j.replay() for r in c])\n"
            "try: Journal(sys.argv[1])\n"
            "except ArtifactError as error: print(error)\n"
        )
        command = [sys.executable, "-c", script, str(path)]
        seen = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert seen[0] == "1 ['a']"
        assert "is being written by process" in seen[1]
    with Journal(path, access="read") as reader, pytest.raises(ArtifactError, match="open for reading"):
        reader.append([entry("b")])
    with pytest.raises(ArtifactError, match="does not exist"):
        Journal(path.with_name("none.db"), access="read")


def test_a_closed_journal_says_so(path: Path) -> None:
    journal = Journal(path)
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.append([entry("a")])
    with pytest.raises(ValueError, match="closed"):
        journal.answers(["a"])


def test_files_of_others_are_refused(path: Path) -> None:
    Journal(path, schema=OUTBOX, layout="shop 1").close()
    with pytest.raises(ArtifactError, match=r"shop 1.*not.*shop 2"):
        Journal(path, schema=OUTBOX, layout="shop 2")
    foreign = path.with_name("foreign.db")
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(ArtifactError, match="another program"):
        Journal(foreign)
    text = path.with_name("text.db")
    text.write_text("not a database\n" * 100)
    with pytest.raises(ArtifactError, match=r"damaged.*restore a backup"):
        Journal(text)


def filled(path: Path) -> int:
    """A closed journal of some hundred pages; returns its size."""
    with Journal(path) as journal:
        journal.append([entry(f"key-{number}", b"x" * 500) for number in range(500)])
    return path.stat().st_size


def test_a_truncated_file_is_refused(path: Path) -> None:
    size = filled(path)
    with path.open("r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(ArtifactError, match=f"{size // 2} bytes of {size}"):
        Journal(path)
    with path.open("r+b") as file:
        file.truncate(50)
    with pytest.raises(ArtifactError, match="no SQLite header"):
        Journal(path)


def test_damage_inside_is_found(path: Path) -> None:
    size = filled(path)
    with path.open("r+b") as file:
        for page in range(8, size // 4096, 2):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    with Journal(path) as journal:
        with pytest.raises(ArtifactError, match=r"damaged.*\.recover"):
            list(journal.replay())
        with pytest.raises(ArtifactError, match="damaged"):
            journal.verify()


def test_an_undamaged_file_verifies(path: Path) -> None:
    filled(path)
    with Journal(path) as journal:
        journal.verify()


def test_a_full_disk_loses_nothing_and_writes_nothing(path: Path) -> None:
    with Journal(path) as journal:
        journal.append([entry("before")])
        pages = journal._writer.execute("PRAGMA page_count").fetchone()[0]
        journal._writer.execute(f"PRAGMA max_page_count={pages + 5}")
        with pytest.raises(Unavailable, match="disk is full, nothing was written"):
            journal.append([entry(f"key-{number}", b"x" * 1000) for number in range(100)])
        journal._writer.execute(f"PRAGMA max_page_count={pages + 1000}")
        assert journal.append([entry("after")]) == [2]
        assert [record.key for chunk in journal.replay() for record in chunk] == ["before", "after"]


def test_a_file_held_by_another_program_is_told(path: Path) -> None:
    with Journal(path, busy_seconds=0.05) as journal:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match=r"held the file for over 0\.05 s"):
            journal.append([entry("a")])
        other.execute("ROLLBACK")
        other.close()
        assert journal.append([entry("a")]) == [1]


def test_the_log_is_folded_while_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.durable.database.FOLD_SECONDS", 0.01)
    with Journal(path) as journal:
        journal.append([entry(f"key-{number}", b"x" * 500) for number in range(500)])
        folded = False
        for _ in range(500):
            folded = path.stat().st_size > 300_000
            if folded:
                break
            journal._ending.wait(0.01)
        assert folded


@settings(max_examples=40, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from([b"1", b"1", b"2"])), max_size=4), max_size=10
    )
)
def test_it_equals_a_dictionary(
    batches: list[list[tuple[str, bytes]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, model = tmp_path_factory.mktemp("journal") / "journal.db", dict[str, tuple[int, bytes]]()
    for number, batch in enumerate(batches):
        trial, last = dict(model), max((seq for seq, _ in model.values()), default=0)
        for key, content in batch:
            if trial.setdefault(key, (last + 1, content))[0] == last + 1:
                last += 1
        refused = any(trial[key][1] != content for key, content in batch)
        with Journal(path, synchronous="normal") as journal:  # reopened each time
            try:
                given = journal.append([entry(key, content, number) for key, content in batch])
                assert not refused
                assert given == [trial[key][0] for key, _ in batch]
                model = trial
            except KeyConflict:
                assert refused
            held = [(record.seq, record.key, record.digest) for chunk in journal.replay(size=2) for record in chunk]
            assert held == [(seq, key, b"digest of " + content) for key, (seq, content) in model.items()]
