"""Evaluation sets in the formats of others: what is found, what is read, what is refused."""

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clip_benchmark.datasets.builder import build_wds_dataset
from PIL import Image

from llip import storage
from llip.evaluation.sets import evaluation_set, find_sets, image_references, names, read_set
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.evaluation.sets.image_references import encoded

COLOURS = ("red", "green", "blue", "white", "black", "grey")


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_tars(folder: Path, samples: Sequence[dict[str, bytes]], tars: int) -> None:
    """Samples dealt to tars in order, as CLIP_benchmark's exporter does."""
    folder.mkdir(parents=True)
    for index in range(tars):
        with tarfile.open(folder / f"{index}.tar", "w") as tar:
            for key in range(index * len(samples) // tars, (index + 1) * len(samples) // tars):
                for suffix, content in samples[key].items():
                    member = tarfile.TarInfo(f"s{key:07d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    write(folder / "nshards.txt", f"{tars}\n")


def images(data: EvaluationSet) -> list[bytes]:
    return [encoded(cell) for cell in data.table["image"].to_pylist()]


def classification_tars(folder: Path, split: str = "test") -> None:
    samples = [{"cls": str(i % 3).encode(), "png": picture(colour)} for i, colour in enumerate(COLOURS)]
    write_tars(folder / split, samples, tars=2)
    write(folder / "classnames.txt", "a cat\nowl\nred fox\n")
    write(folder / "zeroshot_classification_templates.txt", "a photo of a {c}.\nart of {c}\n")


def test_clip_benchmark_tars_for_classification(tmp_path: Path) -> None:
    """The same samples as its own reader gives, in the same order."""
    classification_tars(tmp_path / "animals")
    data = read_set(str(tmp_path / "animals"))
    theirs = build_wds_dataset("animals", lambda image: image, data_dir=str(tmp_path / "animals"))
    pixels = [image.getpixel((0, 0)) for image, _ in theirs]
    assert [Image.open(io.BytesIO(i)).getpixel((0, 0)) for i in images(data)] == pixels
    assert data.table["label"].to_pylist() == [label for _, label in theirs]
    assert list(data.classes) == theirs.classes
    assert [t.format("owl") for t in data.templates] == [t.format(c="owl") for t in theirs.templates]
    assert data.name == "animals"


def test_clip_benchmark_tars_for_retrieval(tmp_path: Path) -> None:
    captions = [["one " + colour, "two " + colour] for colour in COLOURS]
    samples = [
        {"png": picture(c), "txt": "\n".join(listed).encode()} for c, listed in zip(COLOURS, captions, strict=True)
    ]
    write_tars(tmp_path / "test", samples, tars=3)
    write(tmp_path / "dataset_type.txt", "retrieval")
    data = read_set(str(tmp_path))
    theirs = build_wds_dataset("x", lambda image: image, data_dir=str(tmp_path))
    assert data.task == "retrieval" and data.table["captions"].to_pylist() == [c for _, c in theirs] == captions
    assert images(data) == [picture(colour) for colour in COLOURS]


def test_the_test_split_is_taken_and_another_can_be_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        classification_tars(tmp_path / "animals", split)
    (found,) = find_sets(str(tmp_path))
    assert (found.name, found.uri) == ("animals", str(tmp_path / "animals" / "test"))
    assert read_set(str(tmp_path / "animals" / "train")).classes == ("a cat", "owl", "red fox")


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_parquet_of_hugging_face_with_names_in_the_schema(tmp_path: Path, kind: str) -> None:
    blobs = [picture(colour) for colour in COLOURS]
    column = [{"bytes": b, "path": "x"} for b in blobs] if kind == "struct" else blobs
    features = {"info": {"features": {"label": {"names": ["cold", "warm"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": column, "label": [1, 0, 0, 1, 0, 1]})
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "t.parquet", row_group_size=4
    )
    data = read_set(str(tmp_path))
    assert images(data) == blobs and images(data)[::-1] == blobs[::-1]
    assert data.classes == ("cold", "warm") and data.table["label"].to_pylist() == [1, 0, 0, 1, 0, 1]
    assert data.templates == ("a photo of a {}.",)


def test_parquet_with_names_as_labels_and_with_captions(tmp_path: Path) -> None:
    for folder in ("labels", "captions"):
        (tmp_path / folder).mkdir()
    blobs = [picture(colour) for colour in COLOURS]
    pq.write_table(pa.table({"image": blobs, "label": ["b", "a"] * 3}), tmp_path / "labels" / "0.parquet")
    pq.write_table(pa.table({"image": blobs, "caption": list(COLOURS)}), tmp_path / "captions" / "0.parquet")
    by_name = {source.name: source.read() for source in find_sets(str(tmp_path))}
    assert by_name["labels"].classes == ("a", "b") and by_name["labels"].table["label"].to_pylist() == [1, 0] * 3
    assert by_name["captions"].table["captions"].to_pylist() == [[colour] for colour in COLOURS]


def test_folders_named_by_synsets_get_imagenets_names_in_its_order(tmp_path: Path) -> None:
    for index, synset in enumerate(("n02007558", "n01440764", "n15075141")):
        write(tmp_path / "imagenet-r" / synset / "a.JPEG", picture(COLOURS[index]))
    write(tmp_path / "imagenet-r" / "README.txt", "what it is")
    data = read_set(str(tmp_path))
    assert data.classes == ("tench", "flamingo", "toilet paper") and len(data.templates) == 80
    assert data.table["label"].to_pylist() == [0, 1, 2] and images(data)[0] == picture("green")


def test_imagenet_v2_is_numbered_as_imagenet(tmp_path: Path) -> None:
    for label in range(1000):
        write(tmp_path / "v2" / str(label) / "a.jpeg", b"x")
    data = read_set(str(tmp_path / "v2"))
    assert data.classes == tuple(names.imagenet()["classes"].values())
    labels = {cell["uri"].split("/")[-2]: label for cell, label in zip(*data.table.to_pydict().values(), strict=True)}
    assert labels == {str(label): label for label in range(1000)}


def test_imagenets_names_and_templates_are_openais() -> None:
    held = names.imagenet()
    assert list(held["classes"].values()) == list(open_clip.IMAGENET_CLASSNAMES)
    assert [t.format("owl") for t in held["templates"]] == [t("owl") for t in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert list(held["classes"]) == sorted(held["classes"]) and "Copyright (c) 2021 OpenAI" in held["licence"]


def test_folders_of_classes_are_called_as_they_are_or_as_a_list_says(tmp_path: Path) -> None:
    for name in ("polar_bear", "owl"):
        write(tmp_path / name / "a.png", picture("white"))
    assert read_set(str(tmp_path)).classes == ("owl", "polar bear")
    write(tmp_path / "classnames.txt", "eagle owl\nwhite bear\n")
    write(tmp_path / "zeroshot_classification_templates.txt", "a {}\n")
    assert read_set(str(tmp_path)).classes == ("eagle owl", "white bear")
    assert read_set(str(tmp_path)).templates == ("a {}",)


def test_pictures_beside_captions(tmp_path: Path) -> None:
    for colour in COLOURS:
        write(tmp_path / f"{colour}.png", picture(colour))
        write(tmp_path / f"{colour}.txt", f"a {colour} thing\nanother\n")
    data = read_set(str(tmp_path))
    assert data.table["captions"].to_pylist() == [[f"a {colour} thing", "another"] for colour in sorted(COLOURS)]


def test_coco_and_karpathys_flickr(tmp_path: Path) -> None:
    coco, flickr = tmp_path / "coco", tmp_path / "flickr"
    for index, colour in enumerate(COLOURS):
        write(coco / "val2017" / f"{index:012d}.jpg", picture(colour))
        write(flickr / "flickr30k-images" / f"{index}.jpg", picture(colour))
    listed = {
        "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in (3, 1)],
        "annotations": [{"id": 9 - n, "image_id": i, "caption": f"{i} {n}"} for i in (1, 3) for n in range(6)],
    }
    write(coco / "annotations" / "captions_val2017.json", json.dumps(listed))
    splits = [("test" if i % 2 else "train", i) for i in range(6)]
    karpathy = [{"filename": f"{i}.jpg", "split": s, "sentences": [{"raw": f"seen {i}"}]} for s, i in splits]
    write(flickr / "dataset_flickr30k.json", json.dumps({"images": karpathy}))
    by_name = {source.name: source.read() for source in find_sets(str(tmp_path))}
    assert images(by_name["coco"]) == [picture(COLOURS[3]), picture(COLOURS[1])]
    assert by_name["coco"].table["captions"].to_pylist() == [[f"{i} {n}" for n in (5, 4, 3, 2, 1)] for i in (3, 1)]
    assert images(by_name["flickr"]) == [picture(COLOURS[i]) for i in (1, 3, 5)]
    assert by_name["flickr"].table["captions"].to_pylist() == [[f"seen {i}"] for i in (1, 3, 5)]


def test_sets_lie_side_by_side_also_in_a_bucket(s3_bucket: str) -> None:
    from llip import storage

    for synset in ("n01440764", "n02007558"):
        storage.write_bytes(f"{s3_bucket}/sets/r/{synset}/a.png", picture("red"))
    own = pa.table({"image": [picture("red")], "label": [0]})
    data = EvaluationSet(name="own", task="classification", table=own, classes=("x",))
    evaluation_set.write(f"{s3_bucket}/sets/of_ours", data)
    found = find_sets(f"{s3_bucket}/sets")
    assert [source.name for source in found] == ["own", "r"]
    assert images(found[1].read()) == [picture("red")] * 2


@pytest.mark.parametrize("dataset_format", ["tars", "folders", "parquet", "ours"])
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_a_digest_tells_another_byte_of_any_file(
    tmp_path: Path, dataset_format: str, place: str, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path) if place == "disk" else request.getfixturevalue("s3_bucket")
    if dataset_format == "tars":
        for name, content in {"classnames.txt": b"cat\n", "t/nshards.txt": b"1\n", "t/0.tar": b"\0" * 5000}.items():
            storage.write_bytes(f"{root}/a/{name}", content)
    elif dataset_format == "folders":
        for name in ("cat", "owl"):
            storage.write_bytes(f"{root}/a/{name}/0.png", picture("red"))
    else:
        own = pa.table({"image": [picture("red")], "label": pa.array([0], pa.int32())})
        target = EvaluationSet(name="a", task="classification", table=own, classes=("x",))
        evaluation_set.write(f"{root}/a", target)
        if dataset_format == "parquet":
            storage.remove(f"{root}/a/evaluation.json")
    files = storage.listing(root)
    seen = {find_sets(root)[0].digest()}
    for file in files:
        changed = bytearray(storage.read_bytes(file))
        place_of_change = changed.find(b'"x"') + 1 or len(changed) // 2  # of JSON the name of a class
        changed[place_of_change] ^= 1
        storage.write_bytes(file, bytes(changed))
        seen.add(find_sets(root)[0].digest())
    assert len(seen) == 1 + len(files)


def tars(folder: Path, *, then: dict[str, str | None] | None = None, **changes: bytes) -> None:
    """One sample, some members of which are others, or missing where empty; `then` some files have another content."""
    sample = {"png": picture("red"), "cls": b"0"} | changes
    write_tars(folder / "test", [{s: c for s, c in sample.items() if c}], tars=1)
    write(folder / "classnames.txt", "one\n")
    files(folder, then or {})


def files(folder: Path, contents: Mapping[str, str | None]) -> None:
    """Files by name; None removes one."""
    for name, content in contents.items():
        if content is None:
            (folder / name).unlink()
        else:
            write(folder / name, content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: tars(f, cls=b""), r"test/0.tar, sample s0000000: it has no .cls member"),
        (lambda f: tars(f, cls=b"cat"), "its .cls member has to hold the index of a class; it holds 'cat'"),
        (lambda f: tars(f, png=b""), "sample s0000000: it has no image"),
        (lambda f: tars(f, cls=b"4"), "labels 4 to 4, but 1 classes"),
        (lambda f: tars(f, then={"classnames.txt": None}), "classnames.txt does not exist: a name a line"),
        (lambda f: tars(f, then={"test/0.tar": None}), "nshards.txt says 1, but 0.tar is missing"),
        (lambda f: tars(f, then={"test/0.tar": "no tar" * 200}), "0.tar cannot be read as a tar"),
        (lambda f: tars(f, then={"dataset_type.txt": "multilabel"}), "says 'multilabel'; classification and ret"),
        (lambda f: tars(f, then={"test/nshards.txt": "0"}), "evaluation set f: it has no rows"),
        (lambda f: pq.write_table(pa.table({"image": [b"x"]}), f / "a.parquet"), "needs a column image, and label or"),
        (lambda f: pq.write_table(pa.table({"image": [b"x"], "label": [0]}), f / "a.parquet"), "its labels are numbe"),
        (lambda f: write(f / "a.parquet", "no parquet"), "a.parquet cannot be read as Parquet"),
        (lambda f: write(f / "n00000001" / "a.jpg", "x"), "n00000001: this synset is none of ImageNet's"),
        (lambda f: files(f, {"a/a.jpg": "x", "classnames.txt": "a\nb"}), "2 names for 1 folders"),
        (lambda f: files(f, dict.fromkeys(("a.jpg", "a.txt", "b.jpg"), "x")), "b.jpg has no captions"),
        (lambda f: write(f / "dataset_coco.json", '{"images": []}'), "it has no rows"),
        (lambda f: write(f / "notes.md", "x"), "holds no evaluation sets"),
    ],
)
def test_refusals_name_the_file(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    make(folder)
    with pytest.raises(ValueError, match=message):
        read_set(str(folder))


def test_two_sets_of_one_name_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a-b" / "owl" / "1.png", picture("red"))
    write(tmp_path / "a" / "b" / "owl" / "1.png", picture("red"))
    with pytest.raises(ValueError, match="both hold a set named a-b"):
        find_sets(str(tmp_path))


@pytest.mark.parametrize("chain", [1, 2])
def test_linked_folders_are_found_and_a_link_that_leads_back_ends(tmp_path: Path, chain: int) -> None:
    for place in ("elsewhere/birds/owl/0.png", "elsewhere/birds/hen/1.png"):
        write(tmp_path / place, picture("red"))
    target = tmp_path / "elsewhere" / "birds"
    for step in range(chain):
        (tmp_path / f"link{step}").symlink_to(target)
        target = tmp_path / f"link{step}"
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "first").symlink_to(target)
    (tmp_path / "sets" / "second").symlink_to(target)
    (tmp_path / "sets" / "back").symlink_to(tmp_path / "sets")
    (tmp_path / "sets" / "nowhere.png").symlink_to(tmp_path / "gone.png")
    found = find_sets(str(tmp_path / "sets"))
    assert [source.name for source in found] == ["first", "second"]
    assert found[0].read().classes == ("hen", "owl") and len(images(found[0].read())) == 2


@pytest.mark.parametrize("column", ["label", "caption"])
def test_dictionary_encoded_columns_of_parquet_are_read(tmp_path: Path, column: str) -> None:
    values = pa.array(["owl", "hen", "owl"]).dictionary_encode()
    table = pa.table({"image": [picture(c) for c in COLOURS[:3]], column: values})
    pq.write_table(table, tmp_path / "0.parquet")
    data = read_set(str(tmp_path))
    if column == "label":
        assert data.classes == ("hen", "owl") and data.table["label"].to_pylist() == [1, 0, 1]
    else:
        assert data.table["captions"].to_pylist() == [["owl"], ["hen"], ["owl"]]


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"label": ["owl", None]}, "label is null in 1 rows"),
        ({"caption": ["an owl", None]}, "caption is null in 1 rows"),
        ({"label": [0.5, 1.0]}, "label is of type double, and holds what is no index"),
        ({"label": [[0], [1]]}, "label is of type list"),
    ],
)
def test_cells_without_a_meaning_are_named(tmp_path: Path, columns: dict[str, list[Any]], says: str) -> None:
    pq.write_table(pa.table({"image": [picture("red")] * 2} | columns), tmp_path / "0.parquet")
    write(tmp_path / "classnames.txt", "owl\nhen\n")
    with pytest.raises(ValueError, match=says):
        read_set(str(tmp_path))


def test_a_null_image_of_parquet_is_an_error_of_its_row(tmp_path: Path) -> None:
    for content in ([picture("red"), None], [{"bytes": picture("red"), "path": "x"}, {"bytes": None, "path": "y"}]):
        pq.write_table(pa.table({"image": content, "label": ["owl", "hen"]}), tmp_path / "0.parquet")
        cells = read_set(str(tmp_path)).table["image"].to_pylist()
        image_references._row_group.cache_clear()
        assert encoded(cells[0]) == picture("red")
        with pytest.raises(OSError, match=r"row 1 of row group 0 of .* has no bytes"):
            encoded(cells[1])
