"""Tables between passes: a round trip, and damage that is found."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.stages.work import intermediate

TABLE = pa.table({"matches": pa.array([[[1, 2], None], [], [[3]]] * 50, pa.list_(pa.list_(pa.int32())))})


def test_round_trip(tmp_path: Path) -> None:
    intermediate.write(str(tmp_path), "some.arrows", TABLE)
    assert intermediate.read(str(tmp_path / "some.arrows")).equals(TABLE)


@pytest.mark.parametrize("place", [0, 300, -40, -1])
def test_damage_is_named(tmp_path: Path, place: int) -> None:
    intermediate.write(str(tmp_path), "some.arrows", TABLE)
    content = bytearray((tmp_path / "some.arrows").read_bytes())
    content[place] ^= 1
    (tmp_path / "some.arrows").write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.arrows is damaged"):
        intermediate.read(str(tmp_path / "some.arrows"))


@pytest.mark.parametrize("size", [0, 4, 8, 16, 301])
def test_a_file_that_ends_early_is_damaged(tmp_path: Path, size: int) -> None:
    intermediate.write(str(tmp_path), "some.arrows", TABLE)
    content = (tmp_path / "some.arrows").read_bytes()
    for begin in (content[:size], bytes(size)):  # a power cut leaves less, or zeros
        (tmp_path / "some.arrows").write_bytes(begin)
        with pytest.raises(ValueError, match=r"some\.arrows is damaged"):
            intermediate.read(str(tmp_path / "some.arrows"))


def test_words_that_changed_places_are_damage(tmp_path: Path) -> None:
    intermediate.write(str(tmp_path), "some.arrows", pa.table({"number": pa.array(range(1000), pa.int64())}))
    content = bytearray((tmp_path / "some.arrows").read_bytes())
    place = content.index((500).to_bytes(8, "little"))
    content[place : place + 16] = content[place + 8 : place + 16] + content[place : place + 8]
    (tmp_path / "some.arrows").write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.arrows is damaged"):
        intermediate.read(str(tmp_path / "some.arrows"))
