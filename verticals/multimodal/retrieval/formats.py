"""Captioned pictures in the layouts that there are: a table, Flickr8k's, tar files of webdataset.

FILE.csv, FILE.tsv      columns filepath and title, a row a caption; also id, split, and what else becomes metadata
captions.csv            of a folder: image and caption, beside `images`; train.txt, dev.txt and test.txt list pictures
Flickr8k.token.txt      of a folder: NAME#0, a tab and the caption; Flickr_8k.trainImages.txt and so on list pictures
*.tar                   of a folder, or one: KEY.jpg with KEY.txt or KEY.json (`caption` or `captions`, the rest is metadata)
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.data.pictures import SUFFIXES
from core.data.text import entries_of, lines_of, text_of
from core.errors import DataError
from verticals.multimodal.retrieval.pairs import Listed, Pair, Stored

SIDES: Mapping[str, tuple[str, ...]] = {
    "train": ("train.txt", "Flickr_8k.trainImages.txt"),
    "validation": ("dev.txt", "validation.txt", "val.txt", "Flickr_8k.devImages.txt"),
    "test": ("test.txt", "Flickr_8k.testImages.txt"),
}
"""Lists of pictures, by side."""
SIDE_NAMES = {"train": "train", "dev": "validation", "val": "validation", "validation": "validation", "test": "test"}
"""What a column `split` may say."""
TABLES = (".csv", ".tsv", ".txt")
CHUNK_BYTES = 2**20
FOLDERS = ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "files")
PATH_COLUMNS, TITLE_COLUMNS = ("filepath", "image", "path", "file"), ("title", "caption", "text")


class NoLayout(DataError):
    """A folder in none of the layouts."""


def read_pairs(root: Path) -> Listed:
    """
    Raises:
        DataError: none of the layouts, or the first fault of one.
    """
    if root.is_file() and root.suffix.lower() in TABLES:
        return _table(root)
    if packed := tars(root):
        return Listed("webdataset", {"all": tuple(sample.pair() for sample in samples(packed))})
    if not root.is_dir():
        raise DataError(f"{root} is not there, or of no known kind; {_KINDS}")
    for name, read in _FLICKR.items():
        if (root / name).is_file():
            return _flickr(root, read(root / name))
    raise NoLayout(f"{root} holds no captioned pictures that are known here; {_KINDS}")


_KINDS = "give a table (filepath, title), a folder with captions.csv or Flickr8k.token.txt beside images, or tar files of webdataset"


def _table(path: Path) -> Listed:
    """A row a caption; a picture's rows may stand apart."""
    rows = _rows(path, required=(PATH_COLUMNS, TITLE_COLUMNS))
    found: dict[str, dict[str, Any]] = {}
    for where, (file, title), rest in rows:
        picture = _picture(path.parent, file, where)
        side = _side(rest.pop("split", ""), where)
        id = rest.pop("id", "") or file
        entry = found.setdefault(
            id, {"picture": picture, "side": side, "captions": [], "metadata": rest, "where": where}
        )
        if entry["picture"] != picture:
            raise DataError(
                f"{where}: the id {id!r} is another picture's ({entry['where']}); give each an id of its own"
            )
        if entry["side"] != side:
            raise DataError(f"{where}: {file} is on another side than in {entry['where']}; one picture is on one side")
        entry["captions"].append(_caption(title, where))
    if not found:
        raise DataError(f"{path.name} has no row; give a caption a row")
    sides: dict[str, list[Pair]] = {}
    for id, entry in found.items():
        pair = Pair(id, entry["picture"], tuple(entry["captions"]), entry["metadata"])
        sides.setdefault(entry["side"], []).append(pair)
    if "all" in sides and len(sides) > 1:
        first = sides["all"][0].id
        raise DataError(
            f"{path.name}: {first!r} has no split, and others have; fill the column split for all, or for none"
        )
    return Listed("table", {side: tuple(pairs) for side, pairs in sides.items()})


def _rows(
    path: Path, *, required: tuple[tuple[str, ...], ...]
) -> Iterator[tuple[str, tuple[str, ...], dict[str, str]]]:
    """Where a row stands, its required cells, and the others that are not empty."""
    text = text_of(path)
    head = text.partition("\n")[0]
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in head else ",", strict=True)
        columns = [name.strip().lower() for name in next(reader, [])]
        places = []
        for names in required:
            place = next((columns.index(name) for name in names if name in columns), None)
            if place is None:
                raise DataError(
                    f"{path.name} has the columns {', '.join(columns) or 'none'}; needed is {' or '.join(names)}"
                )
            places.append(place)
        if len(set(columns)) != len(columns):
            raise DataError(f"{path.name} has a column twice: {', '.join(columns)}; name each once")
        for row in reader:
            where = f"{path.name}, line {reader.line_num}"
            if not any(map(str.strip, row)):
                continue
            if len(row) != len(columns):
                raise DataError(
                    f"{where} has {len(row)} cells, the header {len(columns)}: put text with commas in quotes"
                )
            rest = {
                name: cell for place, (name, cell) in enumerate(zip(columns, row, strict=True)) if place not in places
            }
            yield (
                where,
                tuple(row[place] for place in places),
                {name: cell for name, cell in rest.items() if cell.strip()},
            )
    except csv.Error as error:
        raise DataError(f"{path.name} is no table ({error}); save it as CSV in UTF-8") from None


def _side(given: str, where: str) -> str:
    if not given.strip():
        return "all"
    side = SIDE_NAMES.get(given.strip().lower())
    if side is None:
        raise DataError(f"{where}: split is {given!r}; allowed are {', '.join(SIDE_NAMES)}")
    return side


def _caption(text: str, where: str) -> str:
    if not text.strip():
        raise DataError(f"{where}: the caption is empty; write one, or remove the row")
    return text.strip()


def _picture(folder: Path, name: str, where: str) -> Stored:
    path = folder / name.strip().replace("\\", "/")
    try:
        there = bool(name.strip()) and path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise DataError(f"{where}: the picture {name!r} is not there; correct the path, or add the file")
    return Stored(path)


def _csv_captions(path: Path) -> Iterator[tuple[str, str, str]]:
    """Where, picture, caption."""
    for where, (name, caption), _ in _rows(path, required=(PATH_COLUMNS, TITLE_COLUMNS)):
        yield where, name, caption


def _token_captions(path: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in lines_of(path):
        name, tab, caption = line.partition("\t")
        if not tab:
            raise DataError(f"{path.name}, line {number}: {line[:60]!r} is no NAME#0, tab and caption")
        yield f"{path.name}, line {number}", name.rpartition("#")[0] or name, caption


_FLICKR: Mapping[str, Callable[[Path], Iterator[tuple[str, str, str]]]] = {
    "captions.csv": _csv_captions,
    "captions.txt": _csv_captions,
    "Flickr8k.token.txt": _token_captions,
}


def _flickr(root: Path, captions: Iterable[tuple[str, str, str]]) -> Listed:
    """All captions belong to pictures of one folder; lists may name some of them only."""
    folder = next((root / name for name in FOLDERS if (root / name).is_dir()), root)
    found: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for where, name, caption in captions:
        first.setdefault(name.strip(), where)
        found.setdefault(name.strip(), []).append(_caption(caption, where))
    lists = {side: path for side, names in SIDES.items() for name in names if (path := root / name).is_file()}
    sides: dict[str, tuple[Pair, ...]] = {}
    for side, path in lists.items():
        pairs = []
        for number, name in entries_of(path):
            if name not in found:
                raise DataError(f"{path.name}, line {number}: {name!r} has no caption; add one, or remove the line")
            pairs.append(Pair(name, _picture(folder, name, f"{path.name}, line {number}"), tuple(found[name])))
        sides[side] = tuple(pairs)
    if not lists:
        sides["all"] = tuple(
            Pair(name, _picture(folder, name, first[name]), tuple(texts)) for name, texts in found.items()
        )
    return Listed("flickr8k", sides)


class Sample(NamedTuple):
    """Members of one key of a tar."""

    key: str
    where: str
    """Names it in a message."""
    members: Mapping[str, Stored]
    """By suffix."""
    faults: Sequence[str]
    """Members that are links, or come twice."""

    def pair(self, *, needs_caption: bool = True) -> Pair:
        """The picture and what is said of it. Raises DataError for what is none."""
        if self.faults:
            raise DataError(f"{self.where}: {'; '.join(self.faults)}")
        pictures = [self.members[suffix] for suffix in SUFFIXES if suffix in self.members]
        if len(pictures) != 1:
            there = ", ".join(sorted(self.members))
            raise DataError(f"{self.where} has {there}; needed is a picture, one alone ({', '.join(SUFFIXES)})")
        (picture,) = pictures
        captions, metadata = _words(self.members, self.where)
        if needs_caption and not captions:
            raise DataError(f"{self.where} has no caption; needed is .txt, or .json with caption or captions")
        return Pair(self.key, picture, captions, metadata)


def samples(paths: Iterable[Path]) -> Iterator[Sample]:
    """What tar files hold, in their order. Nothing is unpacked. Raises DataError."""
    seen: dict[str, str] = {}
    for path in paths:
        parts: dict[str, dict[str, Stored]] = {}
        faults: dict[str, list[str]] = {}
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    if member.isdir() or name.startswith("."):
                        continue
                    stem, _, suffix = name.partition(".")
                    key, suffix = f"{folder}/{stem}" if folder else stem, f".{suffix.lower()}"
                    known = parts.setdefault(key, {})
                    if not member.isfile():
                        faults.setdefault(key, []).append(f"{name} is a link, or no file; pack the file itself")
                    elif suffix in known:
                        faults.setdefault(key, []).append(f"{name} comes twice; give each picture a key of its own")
                    else:
                        known[suffix] = Stored(path, member.offset_data, member.size)
                _refuse_rest(path, tar.offset)
        except (tarfile.TarError, OSError) as error:
            raise DataError(
                f"{path.name} is no tar, is packed, or was cut off ({error}); give plain tar files"
            ) from None
        for key, members in parts.items():
            where = f"{path.name}, {key}"
            if key in seen:
                raise DataError(f"{where}: the key stands in {seen[key]} too; give each picture a key of its own")
            seen[key] = path.name
            yield Sample(key, where, members, faults.get(key, ()))
    if not seen:
        raise DataError("the tar files hold nothing; needed are KEY.jpg with KEY.txt or KEY.json")


def _refuse_rest(path: Path, end: int) -> None:
    """Sees that a tar ends where its last member does: tarfile takes a damaged header for the end.

    Raises:
        DataError: what follows is no end, blocks of zeros.
    """
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(2 * tarfile.BLOCKSIZE)
        is_end = len(rest) >= tarfile.BLOCKSIZE
        while rest and is_end:
            is_end = rest.count(0) == len(rest)
            rest = file.read(CHUNK_BYTES)
    if not is_end:
        raise DataError(
            f"{path.name} is damaged, was cut off, or is several in one: at byte {end:,} stands neither a file nor the end; pack it again"
        )


def tars(root: Path) -> list[Path]:
    """The tar files that a path names, in order."""
    if root.is_file():
        return [root] if root.suffix.lower() == ".tar" else []
    return sorted(root.glob("*.tar"))


def _words(members: Mapping[str, Stored], where: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Captions and metadata of one key."""
    texts: list[Any] = []
    record: Any = {}
    try:
        if ".json" in members:
            record = json.loads(members[".json"].read())
        if ".txt" in members:
            texts.append(members[".txt"].read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: its text cannot be read ({error}); save it in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: its JSON cannot be read ({error}); needed is an object") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: its JSON is a {type(record).__name__}; needed is an object with caption or captions")
    several = record.pop("captions", [])
    texts += [record.pop("caption")] if "caption" in record else []
    texts += several if isinstance(several, list) else [several]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: its caption is no text; needed is a text, or a list of texts")
    return tuple(dict.fromkeys(_caption(text, where) for text in texts)), record
