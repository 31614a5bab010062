"""The index: embeddings with ids and metadata, searched while they are added, replaced and deleted.

One folder: `index.db` is the list and says what counts; `vectors-N.f32` holds the embeddings, a row each, and `details-N.f16` what a
matching head looks at. Rows are written first and count from the moment that the list is committed: after `kill -9`, or on a full
disk, the index is the old one or the new one. Where many rows are deleted the rest move together, into files N + 1.

All rows are compared, up to a number; beyond it `nearest-N.faiss` is built beside the searches, and rows that come since are put into it
where they are enough: they are compared one by one meanwhile.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.durable.database import Database
from core.errors import ArtifactError, Conflict, DataError, VerticalsError
from verticals.multimodal.approximate import Approximate
from verticals.multimodal.exact import Found, merged, search
from verticals.multimodal.files import Files, State

logger = logging.getLogger(__name__)
LAYOUT = "index 2"
TABLES = """
CREATE TABLE head (model TEXT NOT NULL, width INTEGER NOT NULL, detail_width INTEGER NOT NULL, generation INTEGER NOT NULL,
                   rows INTEGER NOT NULL) STRICT;
CREATE TABLE item (key INTEGER PRIMARY KEY AUTOINCREMENT, row INTEGER NOT NULL UNIQUE, id TEXT NOT NULL UNIQUE,
                   metadata TEXT NOT NULL, thumbnail BLOB) STRICT
"""
LONGEST_ID = 200
NOTHING = "{}"
"""Metadata of an item that has none: not parsed, since a search tells of many."""
MOST_METADATA = 10_000
"""Characters of an item's metadata, as JSON."""
MOST_LEVELS = 32
"""Of objects and lists in an item's metadata."""
LEAST_DELETED = 1_000
"""Deleted rows from which on, where they are `DELETED_SHARE` of all, the rest move together."""
DELETED_SHARE = 0.2
BLOCK = 8_192
"""Rows that move at a time."""
EXACT_UP_TO = 200_000
"""Items that are all compared: some ten milliseconds of two cores."""
REST_SHARE = 0.05
"""Of the items that may all be compared: more rows than that, that came since, are put into the approximate search."""
LISTED = 100_000
"""Items that are read at a time where an index is opened."""
PARAMETERS = 500
"""Values of one SQL query."""


class UnknownItem(DataError):
    """No item has this id."""

    def __init__(self, id: str) -> None:
        super().__init__(f"the id {id[:LONGEST_ID]!r} is not in the index")


class OtherModel(Conflict):
    """The index holds embeddings of another model than asks."""

    def __init__(self, indexed: str, asked: str) -> None:
        super().__init__(
            f"the index was made by model {indexed}, this is {asked}: their embeddings cannot be compared; index the pictures "
            "again with this model",
            indexed=indexed,
        )


class Item(NamedTuple):
    """What is indexed."""

    id: str
    vector: NDArray[np.float32]
    """[D] of length 1."""
    metadata: Mapping[str, Any] = {}
    detail: NDArray[np.float16] | None = None
    """[E] what the matching head needs of it."""
    thumbnail: bytes | None = None
    """JPEG."""


class Hit(NamedTuple):
    """An item that was found."""

    id: str
    metadata: dict[str, Any]
    score: float
    detail: NDArray[np.float16] | None


class Index:
    """Any thread may call; one process writes."""

    def __init__(
        self,
        folder: Path,
        *,
        model: str | None = None,
        width: int = 0,
        detail_width: int = 0,
        exact_up_to: int = EXACT_UP_TO,
    ) -> None:
        """
        Args:
            model: version whose embeddings these are; None opens an index that is there, whosever it is.
            width: of an embedding of a new index.
            detail_width: of an item's detail; 0 keeps none.
            exact_up_to: items that are all compared.

        Raises:
            ArtifactError: the index is damaged, another process writes it, or its folder cannot be made.
            OtherModel: it exists, and is another model's.
            Unavailable: the disk is full.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ArtifactError(f"the index's folder {folder} cannot be made: {error.strerror}; name another") from None
        self._folder, self._lock, self._exact_up_to = folder, threading.Lock(), exact_up_to
        self._builder: threading.Thread | None = None
        self._closed = False
        self._list = Database(folder / "index.db", schema=TABLES, layout=LAYOUT)
        try:
            if not self._list.rows("SELECT 1 FROM head"):
                if model is None:
                    raise ArtifactError(f"{folder} holds no index; name another folder")
                with self._list.transaction() as cursor:
                    cursor.execute("INSERT INTO head VALUES (?, ?, ?, 0, 0)", (model, width, detail_width))
            ((self.model, self.width, self.detail_width, generation, rows),) = self._list.rows("SELECT * FROM head")
            self._check(model or self.model)
            self._files = Files(folder, generation, self.width, self.detail_width)
            self._remove_others()
            keys = np.zeros(rows, np.int64)
            for first in range(0, rows, LISTED):
                query = "SELECT row, key FROM item WHERE row >= ? AND row < ?"
                listed = np.array(self._list.rows(query, (first, first + LISTED)), np.int64).reshape(-1, 2)
                keys[listed[:, 0]] = listed[:, 1]
            self._state = self._files.state(keys, self._files.nearest())
            deleted = np.flatnonzero(keys == 0)
            self._files.blank(deleted[self._state.vectors[deleted].any(axis=1)].tolist())  # a crash came before
        except BaseException:
            self._list.close()
            raise
        self._approximate()

    def __len__(self) -> int:
        return self._state.num_items

    def __contains__(self, id: str) -> bool:
        return bool(self._known([id]))

    def add(self, items: Iterable[Item], *, model: str, replace: bool = False) -> set[str]:
        """Adds items, all or none; when this returns they survive a power cut.

        Args:
            model: version that made the embeddings.
            replace: whether an item takes the place of the one that has its id; else such an id is refused.

        Returns:
            Ids of those that took the place of others.

        Raises:
            OtherModel: the index holds another's embeddings.
            Conflict: an id that is in the index.
            DataError: an id that is none, or comes twice; metadata that is too long.
            Unavailable: the disk is full.
        """
        given = list(items)
        self._check(model)
        records = [_record(item) for item in given]
        if twice := _first_twice(item.id for item in given):
            raise DataError(f"the id {twice!r} comes twice; give each picture an id of its own")
        if not given:
            return set()
        with self._lock:
            state = self._state
            first = len(state.keys)
            with self._list.transaction() as cursor:
                known = self._known([item.id for item in given])
                if known and not replace:
                    id = next(iter(known))
                    raise Conflict(f"the id {id!r} is in the index; ask for its replacement, or give another", id=id)
                self._files.write(first, [item.vector for item in given], [item.detail for item in given])
                cursor.executemany("DELETE FROM item WHERE row = ?", [(row,) for row in known.values()])
                cursor.executemany(
                    "INSERT INTO item (row, id, metadata, thumbnail) VALUES (?, ?, ?, ?)",
                    [
                        (first + place, item.id, record, item.thumbnail)
                        for place, (item, record) in enumerate(zip(given, records, strict=True))
                    ],
                )
                cursor.execute("UPDATE head SET rows = ?", (first + len(given),))
                made = cursor.execute("SELECT key FROM item WHERE row >= ? ORDER BY row", (first,)).fetchall()
            keys = np.concatenate([state.keys, np.array(made, np.int64).ravel()])
            self._replace(keys, list(known.values()))
        return set(known)

    def delete(self, ids: Sequence[str]) -> None:
        """Deletes items, all or none; their embeddings are overwritten.

        Raises:
            UnknownItem: an id that is not in the index.
            Unavailable: the disk is full.
        """
        with self._lock:
            with self._list.transaction() as cursor:
                known = self._known(ids)
                for id in ids:
                    if id not in known:
                        raise UnknownItem(id)
                cursor.executemany("DELETE FROM item WHERE row = ?", [(row,) for row in known.values()])
            self._replace(self._state.keys.copy(), list(known.values()))

    def search(self, queries: NDArray[np.float32], num: int, *, model: str) -> list[list[Hit]]:
        """The best items of each query [Q, D], the best first: their cosines, and what is kept of them.

        Raises:
            OtherModel: the index holds another's embeddings.
        """
        self._check(model)
        state = self._state
        found = _found(state, np.ascontiguousarray(queries, np.float32), num)
        kept = self._items_of(list(dict.fromkeys(state.keys[found.rows.ravel()].tolist())))
        return [
            [
                Hit(*kept[key], score, None if state.details is None else state.details[row])
                for score, row, key in zip(scores, rows, state.keys[rows].tolist(), strict=True)
                if key in kept  # else it was deleted meanwhile
            ]
            for scores, rows in zip(found.scores.tolist(), found.rows, strict=True)
        ]

    def get(self, id: str) -> Item:
        """Raises UnknownItem."""
        with self._lock:
            rows = self._list.rows("SELECT row, metadata, thumbnail FROM item WHERE id = ?", (id,))
            state = self._state
        if not rows:
            raise UnknownItem(id)
        row, metadata, thumbnail = rows[0]
        detail = None if state.details is None else np.array(state.details[row])
        return Item(id, np.array(state.vectors[row]), json.loads(metadata), detail, thumbnail)

    def keys(self) -> dict[int, str]:
        """Ids by key: a key is given once, to one item."""
        return dict(self._list.rows("SELECT key, id FROM item ORDER BY key"))

    def ids(self, count: int, *, after: str = "") -> list[str]:
        """Ids in alphabetical order, from the one after `after` on."""
        return [id for (id,) in self._list.rows("SELECT id FROM item WHERE id > ? ORDER BY id LIMIT ?", (after, count))]

    def close(self) -> None:
        """Calls in other threads must have ended."""
        self._closed = True
        if (builder := self._builder) is not None:
            builder.join()
        self._files.close()
        self._list.close()

    def _check(self, model: str) -> None:
        if model != self.model:
            raise OtherModel(self.model, model)

    def _known(self, ids: Sequence[str]) -> dict[str, int]:
        """Rows of those ids that are in the index."""
        found: dict[str, int] = {}
        for first in range(0, len(ids), PARAMETERS):
            part = ids[first : first + PARAMETERS]
            marks = ",".join("?" * len(part))
            found.update(self._list.rows(f"SELECT id, row FROM item WHERE id IN ({marks})", part))
        return found

    def _items_of(self, keys: Sequence[int]) -> dict[int, tuple[str, dict[str, Any]]]:
        """Id and metadata by key, as one value of SQLite's: for each row it would wait for the interpreter's lock anew."""
        found: dict[int, tuple[str, dict[str, Any]]] = {}
        for first in range(0, len(keys), PARAMETERS):
            part = keys[first : first + PARAMETERS]
            marks = ",".join("?" * len(part))
            ((text,),) = self._list.rows(
                f"SELECT json_group_array(json_array(key, id, metadata)) FROM item WHERE key IN ({marks})", part
            )
            for key, id, metadata in json.loads(text):
                found[key] = id, {} if metadata == NOTHING else json.loads(metadata)
        return found

    def _replace(self, keys: NDArray[np.int64], deleted: list[int]) -> None:
        """What was committed is what is searched from now on."""
        keys[deleted] = 0
        self._state = self._files.state(keys, self._state.nearest)
        self._files.blank(deleted)
        self._tidy()
        self._approximate()

    def _tidy(self) -> None:
        """Moves the rows together where many are deleted."""
        state = self._state
        deleted = len(state.keys) - state.num_items
        if deleted < max(LEAST_DELETED, DELETED_SHARE * len(state.keys)):
            return
        kept = np.flatnonzero(state.is_there)
        made = Files(self._folder, self._files.generation + 1, self.width, self.detail_width)
        for first in range(0, len(kept), BLOCK):
            made.copy(first, state, kept[first : first + BLOCK])
        with self._list.transaction() as cursor:
            moves = [(new, old) for new, old in enumerate(kept.tolist()) if new != old]
            cursor.executemany("UPDATE item SET row = ? WHERE row = ?", moves)  # in order: the new place is always free
            cursor.execute("UPDATE head SET generation = ?, rows = ?", (made.generation, len(kept)))
        old, self._files = self._files, made
        self._state = made.state(state.keys[kept], None)
        old.close()
        self._remove_others()

    def _remove_others(self) -> None:
        """Files of other generations: what a crash left, or what rows moved out of. Searches that began with them go on."""
        for path in [path for kind in ("vectors", "details", "nearest") for path in self._folder.glob(f"{kind}-*")]:
            if path not in self._files.paths:
                path.unlink()

    def _approximate(self) -> None:
        """Has the approximate search built beside all others, where there are so many items, or so many new ones."""
        if self._wants_more() and not (self._builder and self._builder.is_alive()):
            self._builder = threading.Thread(target=self._build, name="nearest", daemon=True)
            self._builder.start()

    def _wants_more(self) -> bool:
        state = self._state
        known = state.nearest.num_rows if state.nearest else 0
        is_enough = len(state.keys) - known > REST_SHARE * self._exact_up_to
        return not self._closed and state.num_items > self._exact_up_to and is_enough

    def _build(self) -> None:
        """The builder's thread: until all rows that came meanwhile are in."""
        while True:
            with self._lock:
                if not self._wants_more():
                    self._builder = None
                    return
                files, state = self._files, self._state
            try:
                made = Approximate.build(
                    state.vectors,
                    files.nearest_path,
                    before=files.nearest_path if state.nearest else None,
                    is_cancelled=lambda files=files: self._closed or files is not self._files,  # type: ignore[misc]
                )
            except VerticalsError as error:  # the edge of this thread: rows are compared one by one as before
                logger.error("the approximate search was not built: %s", str(error))
                with self._lock:
                    self._builder = None
                return
            with self._lock:
                if made is not None and files is self._files:  # else rows have moved meanwhile
                    self._state = self._state._replace(nearest=made)


def _found(state: State, queries: NDArray[np.float32], num: int) -> Found:
    """The best rows: all compared, or those that the approximate search finds and what came since."""
    nearest = state.nearest
    if nearest is None or not len(queries):
        return search(state.vectors, queries, num, state.is_there)
    are_all = state.num_items == len(state.keys)
    known = nearest.search(queries, num, state.vectors, None if are_all else state.is_there)
    if nearest.num_rows == len(state.keys):
        return known
    rest = search(state.vectors[nearest.num_rows :], queries, num, state.is_there[nearest.num_rows :])
    return merged([known, rest._replace(rows=rest.rows + nearest.num_rows)], num)


def _record(item: Item) -> str:
    """The item's metadata as JSON. Raises DataError for an id that is none, or metadata that cannot be kept."""
    if not item.id.strip() or len(item.id) > LONGEST_ID or not item.id.isprintable():
        raise DataError(
            f"{item.id[:LONGEST_ID]!r} is no id; allowed are up to {LONGEST_ID} printable characters, one of them no blank"
        )
    if not _is_shallow(item.metadata, MOST_LEVELS):
        raise DataError(f"the metadata of {item.id!r} is nested more than {MOST_LEVELS} levels deep; send it flatter")
    try:
        text = json.dumps(dict(item.metadata), ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"the metadata of {item.id!r} is no JSON object ({error}); send it again") from None
    if len(text) > MOST_METADATA:
        raise DataError(f"the metadata of {item.id!r} has {len(text):,} characters; allowed are {MOST_METADATA:,}")
    return text


def _is_shallow(value: Any, levels: int) -> bool:
    """Whether JSON has no more levels: what is nested deeply is not read again in every thread."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    return inner is None or (levels > 0 and all(_is_shallow(one, levels - 1) for one in inner))


def _first_twice(ids: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for id in ids:
        if id in seen:
            return id
        seen.add(id)
    return None
