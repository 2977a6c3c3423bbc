from dataclasses import replace

import pytest

from llip.config import TrainingConfig
from llip.recipes import recipe
from tune.space import Point, Space, possible


def configure(point: Point) -> TrainingConfig:
    config = recipe("llip_tiny_k8")
    model = config.model
    head = replace(model.head, heads=point.heads or model.head.heads)
    return replace(config, model=replace(model, vision=replace(model.vision, tokens=point.k), head=head))


def test_llip_is_a_product_and_the_others_are_one_point_each() -> None:
    points = Space(objectives=("siglip", "llip"), k=(1, 4), heads=(1, 2)).points()
    assert [str(p) for p in points] == ["siglip", "llip-k1-m1", "llip-k4-m1", "llip-k1-m2", "llip-k4-m2"]


def test_a_head_count_that_does_not_divide_the_width_is_left_out_with_its_reason() -> None:
    points = Space(objectives=("llip",), k=(1, 4), heads=(1, 3)).points()
    configurations, reasons = possible(points, configure)
    assert [str(p) for p in configurations] == ["llip-k1-m1", "llip-k4-m1"]
    assert configurations[points[1]].model.vision.tokens == 4
    assert [str(p) for p in reasons] == ["llip-k1-m3", "llip-k4-m3"]
    assert all("divisor of embed_dim 64" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("field", "values", "message"), [("k", (), "k is empty"), ("heads", (2, 4, 2), "heads names 2 more than once")]
)
def test_an_empty_or_repeated_axis_is_refused(field: str, values: tuple[int, ...], message: str) -> None:
    axes = {"objectives": ("llip",), "k": (1,), "heads": (1,)} | {field: values}
    with pytest.raises(ValueError, match=message):
        Space(**axes)
