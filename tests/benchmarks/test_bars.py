import pytest
from helpers.bars import holds


def test_a_bar_is_missed_where_nearly_all_rounds_are_beyond_it() -> None:
    assert holds([1.2] * 5 + [1.0] * 4, at_most=1.06)
    assert holds([1.2] * 7 + [1.0] * 2, at_most=1.06)
    assert not holds([1.2] * 9, at_most=1.06)
    assert not holds([1.07] * 12 + [1.0], at_most=1.06)
    with pytest.raises(ValueError, match="7 or more"):
        holds([1.2] * 6, at_most=1.06)
