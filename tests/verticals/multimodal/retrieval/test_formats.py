"""Every layout is read to the same pairs, and each fault is named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from core.errors import DataError
from verticals.multimodal.retrieval.formats import read_pairs, samples
from verticals.multimodal.retrieval.pairs import Listed

CAPTIONS = {"a.png": ["A red square, small.", "Ein rotes Quadrat"], "b.png": ["blue"], "c.png": ["зелёный круг"]}


def png(colour: str) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(held, "PNG")
    return held.getvalue()


PICTURES = {"a.png": png("red"), "b.png": png("blue"), "c.png": png("green")}


def pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in PICTURES.items():
        (folder / name).write_bytes(data)


def table(root: Path, separator: str = ",", header: str = "filepath,title") -> Path:
    pictures(root / "pics")
    rows = [f'pics/{name}{separator}"{text}"' for name, texts in CAPTIONS.items() for text in texts]
    path = root / "pairs.csv"
    path.write_text("\n".join([header.replace(",", separator), *rows]), encoding="utf-8-sig")
    return path


def flickr_csv(root: Path) -> Path:
    pictures(root / "images")
    rows = [f'{name},"{text}"' for name, texts in CAPTIONS.items() for text in texts]
    (root / "captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    return root


def flickr_token(root: Path) -> Path:
    pictures(root / "Flicker8k_Dataset")
    rows = [f"{name}#{place}\t{text}" for name, texts in CAPTIONS.items() for place, text in enumerate(texts)]
    (root / "Flickr8k.token.txt").write_text("\n".join(rows))
    return root


def tar(root: Path) -> Path:
    with tarfile.open(root / "part-0.tar", "w") as file:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))

        for name, texts in CAPTIONS.items():
            add(f"x/{name}", PICTURES[name])
            stem = f"x/{name.partition('.')[0]}"
            add(f"{stem}.json", json.dumps({"captions": texts[1:], "source": "made"}).encode())
            add(f"{stem}.txt", texts[0].encode())
    return root


def told(listed: Listed) -> list[tuple[list[str], bytes]]:
    pairs = [pair for side in listed.sides.values() for pair in side]
    return [(list(pair.captions), pair.file.read()) for pair in pairs]


EXPECTED = [(texts, PICTURES[name]) for name, texts in CAPTIONS.items()]


@pytest.mark.parametrize("layout", [table, flickr_csv, flickr_token, tar])
def test_all_say_the_same(tmp_path: Path, layout: object) -> None:
    listed = read_pairs(layout(tmp_path))  # type: ignore[operator]
    assert told(listed) == EXPECTED
    assert list(listed.sides) == ["all"]


def test_tabs_other_column_names_and_what_is_left_is_metadata(tmp_path: Path) -> None:
    assert told(read_pairs(table(tmp_path, "\t"))) == EXPECTED
    path = table(tmp_path, header="IMAGE,Caption")
    assert told(read_pairs(path)) == EXPECTED
    path.write_text(
        "id,filepath,title,split,owner\n7,pics/a.png,red,train,Ann\n8,pics/b.png,blue,dev,\n7,pics/a.png,rot,train,Ann\n"
    )
    sides = read_pairs(path).sides
    assert {
        side: [(pair.id, pair.captions, dict(pair.metadata)) for pair in pairs] for side, pairs in sides.items()
    } == {
        "train": [("7", ("red", "rot"), {"owner": "Ann"})],
        "validation": [("8", ("blue",), {})],
    }


def test_a_caption_over_two_lines_and_strange_line_ends(tmp_path: Path) -> None:
    path = table(tmp_path)
    path.write_text('filepath,title\r\npics/a.png,"one\ntwo\u2028three"\r\n\r\n', newline="")
    assert told(read_pairs(path))[0][0] == ["one\ntwo\u2028three"]


def test_lists_make_sides(tmp_path: Path) -> None:
    root = flickr_csv(tmp_path)
    (root / "train.txt").write_text("c.png\na.png\n")
    (root / "dev.txt").write_text("b.png\n")
    sides = read_pairs(root).sides
    assert {side: [pair.id for pair in pairs] for side, pairs in sides.items()} == {
        "train": ["c.png", "a.png"],
        "validation": ["b.png"],
    }


def test_metadata_of_a_tar(tmp_path: Path) -> None:
    pair = read_pairs(tar(tmp_path) / "part-0.tar").sides["all"][0]
    assert pair.id == "x/a"
    assert pair.metadata == {"source": "made"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "needed is filepath"),
        ("filepath,title\n", "has no row"),
        ("file_name,title\npics/a.png,x\n", "has the columns file_name, title; needed is filepath or image"),
        ("filepath,title,title\npics/a.png,x,y\n", "has a column twice"),
        ("filepath,title\npics/a.png,a, b\n", "line 2 has 3 cells, the header 2"),
        ("filepath,title\npics/a.png,\n", "line 2: the caption is empty"),
        ("filepath,title\npics/gone.png,x\n", "line 2: the picture 'pics/gone.png' is not there"),
        ("filepath,title\n,x\n", "the picture '' is not there"),
        ("filepath,title\npics/a\0.png,x\n", "no table|is not there"),
        ("filepath,title,split\npics/a.png,x,holdout\n", "split is 'holdout'; allowed are train, dev"),
        ("filepath,title,split\npics/a.png,x,train\npics/b.png,x,\n", "fill the column split for all"),
        ("filepath,title,split\npics/a.png,x,train\npics/a.png,x,test\n", "on another side than in"),
        ("filepath,title,id\npics/a.png,x,1\npics/b.png,x,1\n", "the id '1' is another picture's"),
        ('filepath,title\npics/a.png,"x\n', "is no table"),
    ],
)
def test_faults_of_a_table(tmp_path: Path, text: str, words: str) -> None:
    path = table(tmp_path)
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_pairs(path)


def test_a_table_that_is_no_utf8(tmp_path: Path) -> None:
    path = table(tmp_path)
    path.write_bytes("filepath,title\npics/a.png,Gebäude\n".encode("latin-1"))
    with pytest.raises(DataError, match="not text in UTF-8"):
        read_pairs(path)


def test_faults_of_a_folder(tmp_path: Path) -> None:
    root = flickr_csv(tmp_path)
    (root / "train.txt").write_text("a.png\nz.png\n")
    with pytest.raises(DataError, match=r"train.txt, line 2: 'z.png' has no caption"):
        read_pairs(root)
    (root / "train.txt").write_text("a.png\na.png\n")
    with pytest.raises(DataError, match="stands on line 1 already"):
        read_pairs(root)
    (root / "train.txt").write_text("a.png\nb.png\n")
    (root / "images" / "b.png").unlink()
    with pytest.raises(DataError, match=r"train.txt, line 2: the picture 'b.png' is not there"):
        read_pairs(root)
    with pytest.raises(DataError, match="holds no captioned pictures"):
        read_pairs(root / "images")
    with pytest.raises(DataError, match="is not there"):
        read_pairs(root / "nowhere")


def packed(root: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(root / "part.tar", "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return root


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.png": b"x"}, "a has no caption; needed is .txt, or .json"),
        ({"a.txt": b"x"}, "a has .txt; needed is a picture"),
        ({"a.png": b"x", "a.json": b"{"}, "its JSON cannot be read"),
        ({"a.png": b"x", "a.json": b"[]"}, "its JSON is a list"),
        ({"a.png": b"x", "a.json": b"{}"}, "has no caption"),
        ({"a.png": b"x", "a.json": b'{"captions": [3]}'}, "its caption is no text"),
        ({"a.png": b"x", "a.json": b"[" * 5_000}, "its JSON cannot be read"),
        ({"a.png": b"x", "a.jpg": b"x", "a.txt": b"x"}, "has .jpg, .png, .txt; needed is a picture, one alone"),
        ({"a.png": b"x", "a.txt": b"  "}, "the caption is empty"),
        ({"a.png": b"x", "a.txt": b"\xff"}, "its text cannot be read"),
        ({}, "hold nothing"),
    ],
)
def test_faults_of_a_tar(tmp_path: Path, members: dict[str, bytes], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_pairs(packed(tmp_path, members))


def test_a_tar_that_was_cut_off_or_is_none(tmp_path: Path) -> None:
    tar(tmp_path)
    whole = (tmp_path / "part-0.tar").read_bytes()
    (tmp_path / "part-0.tar").write_bytes(whole[:700])
    with pytest.raises(DataError, match="cut off|no tar"):
        read_pairs(tmp_path)
    (tmp_path / "part-0.tar").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="no tar"):
        read_pairs(tmp_path)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    packed(tmp_path, {name: b"x" for name in ("a.png", "a.txt", "b.png", "b.txt")})
    whole = (tmp_path / "part.tar").read_bytes()
    second = 2 * 1024  # b.png's header
    flipped = bytearray(whole)
    flipped[second + 2] ^= 0x55
    for data in (bytes(flipped), whole[:second], whole[: second + 100], whole + whole):
        (tmp_path / "part.tar").write_bytes(data)
        with pytest.raises(DataError, match="part.tar is damaged, was cut off, or is several in one"):
            read_pairs(tmp_path)
    (tmp_path / "part.tar").write_bytes(whole.rstrip(b"\0") + bytes(1023))  # a writer that fills no record
    assert len(read_pairs(tmp_path).sides["all"]) == 2


def test_members_that_are_links_or_come_twice_are_faults_of_their_sample(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "part.tar", "w") as file:
        for name, kind in (
            ("a.png", tarfile.REGTYPE),
            ("a.txt", tarfile.REGTYPE),
            ("a.png", tarfile.REGTYPE),
            ("b.png", tarfile.SYMTYPE),
            ("c.jpg", tarfile.LNKTYPE),
            ("d.png", tarfile.REGTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.txt" if kind != tarfile.REGTYPE else ""
            member.size = 1 if kind == tarfile.REGTYPE else 0
            file.addfile(member, io.BytesIO(b"x"))
    found = {sample.key: sample for sample in samples([tmp_path / "part.tar"])}
    for key, words in (("a", "a.png comes twice"), ("b", "b.png is a link"), ("c", "c.jpg is a link")):
        with pytest.raises(DataError, match=words):
            found[key].pair(needs_caption=False)
    assert found["d"].pair(needs_caption=False).captions == ()


def test_a_key_in_two_tars(tmp_path: Path) -> None:
    tar(tmp_path)
    (tmp_path / "part-1.tar").write_bytes((tmp_path / "part-0.tar").read_bytes())
    with pytest.raises(DataError, match=r"the key stands in part-0.tar too"):
        read_pairs(tmp_path)
