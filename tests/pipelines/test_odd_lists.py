"""Lists, text files and folders as the world sends them: every line is read, refused by file and line, or counted."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.odd_pools import listed, rows_of, seen

from llip.data import text_files
from pipelines import schema
from pipelines.stages import read

WRONG = "line cannot be read"
LISTS: dict[str, tuple[str, str | bytes, list[Any]]] = {
    "unquoted commas": ("l.csv", "image,caption\n0.jpg,a, b\n1.jpg,c\n2.jpg\n", [WRONG, ["c"], WRONG]),
    "a large field": ("l.csv", f"image,caption\n0.jpg,{'x' * 180_000}\n", [["x" * 180_000]]),
    "bytes of another encoding": ("l.csv", b"image,caption\n0.jpg,caf\xe9\n1.jpg,ok\n", ["text is no Unicode", ["ok"]]),
    "no image": ("l.csv", "image,caption\n,a\n1.jpg,b\n", [WRONG, ["b"]]),
    "letters that are no newlines": ("l.csv",
        "\ufeffimage,caption\n0.jpg,a\u2028b\x85c\x0cd\n", [["a\u2028b\x85c\x0cd"]]),
    "several lines of one image": ("l.csv", "image,caption\n0.jpg,a\n1.jpg,b\n0.jpg,c\n", [["a", "c"], ["b"]]),
    "semicolons": ("l.csv", "image;caption\n0.jpg;a, b\n", [["a, b"]]),
    "gzip": ("l.csv.gz", "image,caption\n0.jpg,a\n", [["a"]]),
    "tabs with quotes": ("l.tsv", 'image\tcaption\n0.jpg\t"the" cat\n1.jpg\t5" nail\n2.jpg\t"a ""b"" c"\n',
                         [['"the" cat'], ['5" nail'], ['a "b" c']]),
    "Flickr8k's tokens": ("Flickr8k.token.txt", "0.jpg#0\tA dog .\n0.jpg#1\tTwo , dogs .\n1.jpg#0\tA cat\n",
                          [["A dog .", "Two , dogs ."], ["A cat"]]),
    "Flickr8k's captions": ("captions.txt", 'image,caption\n0.jpg,A dog .\n0.jpg,"A, b"\n', [["A dog .", "A, b"]]),
    "Flickr30k": ("results.csv", "image_name| comment_number| comment\n0.jpg| 0| A man\n", [[" A man"]]),
    "JSON Lines": ("l.jsonl", '{"image": "0.jpg", "caption": "a"}\n\n{"image": \n[1]\n{"image": 7, "caption": "b"}\n',
                   [["a"], WRONG, WRONG, WRONG]),
    "halves of characters": ("l.jsonl",
        '{"image": "0.jpg", "caption": "\\ud800"}\n{"image": "1.jpg", "caption": "a\\u2028b"}\n',
                             ["text is no Unicode", ["a\u2028b"]]),
    "a number among captions": ("l.jsonl", '{"image": "0.jpg", "captions": ["a", 5, null]}\n', [["a", None, None]]),
    "two fields of one name": ("l.jsonl.gz",
        '{"image": "0.jpg", "caption": "a", "caption": "b"}\n{"image": "1.jpg", "caption": "c"}\n',
                               [WRONG, ["c"]]),
    "a JSON list": ("l.json", '[{"file_name": "0.jpg", "captions": ["a", "b"]}, 3]', [["a", "b"], WRONG]),
    "JSON Lines under another name": ("l.json",
        '{"image": "0.jpg", "caption": "a"}\n{"image": "1.jpg", "caption": "b"}\n',
                                      [["a"], ["b"]]),
    "fields of one name in a JSON list": ("l.json",
        '[{"image": "0.jpg", "caption": "a", "caption": "b"}, {"image": "1.jpg", "caption": "c"}]', [WRONG, ["c"]]),
    "names that are no Unicode": ("l.jsonl",
        '{"image": "0.jpg", "caption": "a", "\\ud800": 1}\n{"image": "1.jpg", "caption": "b"}\n',
                                  ["text is no Unicode", ["b"]]),
    "names of stages": ("l.csv", "image,caption,unread,row,key\n0.jpg,a,1,2,3\n", [["a"]]),
    "values that Parquet has not": ("l.jsonl",
        '{"image": "0.jpg", "caption": "a", "b": [{}], "n": 100000000000000000000000000}\n'
        '{"image": "1.jpg", "captions": ["b"], "b": [[]], "n": 1}\n', [["a"], ["b"]]),
    "a zero byte": ("l.csv", b"image,caption\n0.jpg,a\0b\n", [["a\0b"]]),
    "blanks around a path": ("l.csv", "image,caption\n 0.jpg ,a\n", [["a"]]),
    "odd COCO": ("captions_train.json", json.dumps({
        "images": [{"id": 9, "file_name": "0.jpg"}, {"id": [8]}, 3],
        "annotations": [{"image_id": 9, "caption": None}, {"image_id": 9, "caption": "b"}, {"image_id": 7},
                        {}, 3]}), [[None, "b"], *[WRONG] * 5]),
    "odd Karpathy": ("dataset_coco.json", json.dumps({"images": [
        {"filename": "0.jpg", "sentences": [{"raw": "a"}, 3]}, {"filename": 3, "sentences": None}, 3]}),
                     [["a", None], WRONG, WRONG]),
    "COCO": ("captions_train.json", json.dumps({
        "images": [{"id": 9, "file_name": "0.jpg", "height": 2}, {"id": 8, "file_name": "1.jpg", "height": 3}],
        "annotations": [{"image_id": 9, "id": 1, "caption": "a"}, {"image_id": 9, "id": 2, "caption": "b"}]}),
             [["a", "b"], []]),
}  # fmt: skip


@pytest.mark.parametrize("name", LISTS)
def test_every_line_of_a_list_is_read_or_counted(tmp_path: Path, name: str) -> None:
    file, content, expected = LISTS[name]
    rows, unread = rows_of(listed(tmp_path, file, content))
    assert seen(rows) == expected
    used = [r["image"] for r in rows if r["image"]]
    assert len(used) + unread["files .jpg"] == 4 and used == [b"%d" % i for i in range(4) if b"%d" % i in used]
    assert unread["blank lines"] == (name == "JSON Lines")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", 'image,caption\n0.jpg,"never closed\n1.jpg,b\n', "l.csv, line 2: a field cannot be read"),
        ("l.csv", 'image,caption\n0.jpg,x\n1.jpg,"a\n2.jpg,"b"\n', "l.csv, line 3: a field cannot be read"),
        ("l.csv", "image,caption,caption\n0.jpg,a,b\n", "l.csv has two columns named 'caption'"),
        ("l.csv", "image,caption,text\n0.jpg,a,b\n", "caption and text; leave one.*--caption-column"),
        ("l.csv", "image,caption,keep_probability\n0.jpg,a,b\n", "column 'keep_probability', a name that curation"),
        ("l.tsv", "image\tcaption\n".encode("utf-16"), "l.tsv is UTF-16; it has to be UTF-8"),
        ("l.jsonl", '{"image": "0.jpg"}'.encode("utf-16-le"), "l.jsonl is UTF-16 or no text"),
        ("l.csv", b"image,caption,caf\xe9\n0.jpg,a,b\n", "l.csv, line 1: the names of the columns are no UTF-8"),
        ("l.json", '{"a": 1}', "l.json is an object without annotations or images"),
        ("l.csv.gz", b"", "holds no rows"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_by_line(
    tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(listed(tmp_path, name, content))


def test_columns_of_lists_and_folders_have_types(tmp_path: Path) -> None:
    folder = tmp_path / "lang=en/year=2020"
    folder.mkdir(parents=True)
    text = "image,headline,width,score,zip,nothing\n0.jpg,a,3,0.5,007,\n1.jpg,b,,1,12,\n"
    listed(folder, "l.csv", text)
    rows, _ = rows_of(tmp_path, caption_column="headline")
    values = [{k: v for k, v in r.items() if k not in ("id", "image", schema.REASON)} for r in rows]
    shared = {"lang": "en", "year": 2020, "nothing": ""}
    assert values == [
        {"captions": ["a"], "width": 3, "score": 0.5, "zip": "007"} | shared,
        {"captions": ["b"], "width": None, "score": 1.0, "zip": "12"} | shared,
    ]


@pytest.mark.parametrize("text", ["http://x/1.jpg\ta cat\nhttp://x/2\tb\n", "a cat\thttp://x/1.jpg\nb\thttp://x/2\n"])
def test_links_of_conceptual_captions_are_curated_without_pictures(tmp_path: Path, text: str) -> None:
    (tmp_path / "cc.tsv").write_text(text)
    pool = read.open_pool(str(tmp_path), partition_rows=10)
    rows, _ = rows_of(tmp_path)
    assert not pool.has_images and [(r["url"], r["captions"]) for r in rows] == [
        ("http://x/1.jpg", ["a cat"]), ("http://x/2", ["b"])
    ]  # fmt: skip


def test_links_of_redcaps_are_read_from_its_annotations(tmp_path: Path) -> None:
    notes = [{"image_id": "a", "url": "http://x/a", "raw_caption": "Raw", "caption": "clean", "score": 3}]
    (tmp_path / "cats_2020.json").write_text(json.dumps({"info": {"url": "x"}, "annotations": notes}))
    row = rows_of(tmp_path)[0][0]
    assert (row["url"], row["captions"], row["raw_caption"], row["score"]) == ("http://x/a", ["clean"], "Raw", 3)


def test_pictures_of_coco_may_lie_beside_the_folder_of_the_list(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / "train").mkdir()
    listed(tmp_path / "train", "notes.md", "")
    content = {"images": [{"id": 1, "file_name": "3.jpg"}], "annotations": [{"image_id": 1, "caption": "a"}]}
    (tmp_path / "annotations/captions_train.json").write_text(json.dumps(content))
    rows, unread = rows_of(tmp_path)
    assert [(r["image"], r["captions"]) for r in rows] == [(b"3", ["a"])]
    assert unread == {"files .jpg": 3, "files .md": 1, "ids of lists": 1}


def test_files_that_are_not_read_are_counted(tmp_path: Path) -> None:
    listed(tmp_path, "0.txt", "\ufeffa cat\r\n\n \nb\u2028c\n")
    for name in ("readme.md", "5.txt", ".DS_Store", "_x/6.jpg", "LICENSE", "photo.heic"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "1.json").write_text('{"caption": "from JSON"}')
    (tmp_path / "2.txt").write_bytes(b"\xff\xfea\0")
    (tmp_path / "3.TXT").write_text("capitals")
    rows, unread = rows_of(tmp_path)
    assert seen(rows) == [["a cat", "b\u2028c"], ["from JSON"], "text is no Unicode", ["capitals"]]
    counted = {f"files {name}": 1 for name in (".md", ".txt", "without a suffix", ".heic")}
    assert unread == counted | {"hidden files": 2, "blank lines": 2}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfa\r\nb\n", ["a", "b"]),
        ("a\u2028b\x85c\x0cd\x1ee\rf\n\n  \ng".encode(), ["a\u2028b\x85c\x0cd\x1ee\rf", "g"]),
        (b"", []),
        (b"\n\n", []),
    ],
)
def test_lines_end_at_newlines_alone(content: bytes, expected: list[str]) -> None:
    assert text_files.lines(content, "x") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ab".encode("utf-16"), "names.txt is UTF-16"),
        ("ab".encode("utf-16-le"), "names.txt is UTF-16 or no text"),
        (b"a\nb\ncaf\xe9\n", r"names.txt, line 3 is no UTF-8 \(byte 0xe9\)"),
    ],
)
def test_files_of_other_encodings_are_named(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_files.lines(content, "names.txt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "id,image,caption\n7,0.jpg,a\n,1.jpg,b\n7,0.jpg,c\n"),
        ("l.jsonl", '{"id": 7, "image": "0.jpg", "caption": "a"}\n{"id": 0, "image": "1.jpg", "caption": "b"}\n{}\n'),
        ("l.tsv", "image\tid\tcaption\n0.jpg\tx\ta\n1.jpg\tx\tb\n"),
    ],
)
def test_ids_of_lists_are_counted_since_rows_get_their_own(tmp_path: Path, name: str, content: str) -> None:
    rows, unread = rows_of(listed(tmp_path, name, content))
    assert unread["ids of lists"] == 2
    assert len({row["id"] for row in rows}) == len(rows)
