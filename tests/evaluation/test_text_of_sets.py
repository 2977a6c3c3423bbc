"""Texts of evaluation sets are read as those of pools: whatever wrote them, a line is what ends at a newline."""

from pathlib import Path

import pytest
from helpers.small_pools import picture

from llip.evaluation.sets import names, read_set


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfcat\r\ndog\r\n", ("cat", "dog")),
        ("cat\u2028big\nd\x85og\x0c.\n\n".encode(), ("cat\u2028big", "d\x85og\x0c.")),
        (b"cat\n dog \n \n", ("cat", "dog")),
    ],
)
def test_class_names_are_one_a_line(tmp_path: Path, content: bytes, expected: tuple[str, ...]) -> None:
    (tmp_path / names.CLASSES).write_bytes(content)
    assert names.lines(f"{tmp_path}/{names.CLASSES}") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog\n", "classnames.txt, line 2 is blank"),
        (b"cat\ncaf\xe9\n", "classnames.txt, line 2 is no UTF-8"),
        ("cat\n".encode("utf-16"), "classnames.txt is UTF-16"),
    ],
)
def test_class_names_that_would_move_or_cannot_be_read_are_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / names.CLASSES).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        names.lines(f"{tmp_path}/{names.CLASSES}")


def test_templates_and_captions_drop_marks_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / names.TEMPLATES).write_bytes("\ufeffa {c}\n\nthe {}\u2028.\r\n".encode())
    assert names.templates(str(tmp_path)) == ("a {}", "the {}\u2028.")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/0.png").write_bytes(picture(0))
    (tmp_path / "set/0.txt").write_bytes("\ufeffa cat\x85\r\n\nb\u2028c".encode())
    assert read_set(str(tmp_path / "set")).table["captions"].to_pylist() == [["a cat\x85", "b\u2028c"]]
    (tmp_path / "set/0.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"0.txt, line 1 is no UTF-8"):
        read_set(str(tmp_path / "set"))
