"""How axes are written, what is refused, and the points that they make."""

import pytest

from llip.config import TrainingConfig
from llip.fields import leaves, override
from llip.recipes import recipe
from tune.axes import Axis, Distribution, drawn, grid, parse, parse_all, spelling
from tune.points import Selection, Space, select


@pytest.mark.parametrize(
    ("text", "path", "values"),
    [
        ("k=1,4", "model.vision.tokens", (1, 4)),
        ("optimizer.learning-rate=1e-3,0.01", "optimizer.learning_rate", (1e-3, 1e-2)),
        ("data.crop_scale=0.5/1,0.9/1.0", "data.crop_scale", ((0.5, 1.0), (0.9, 1.0))),
        ("objective.loss=softmax,sigmoid", "objective.loss", ("softmax", "sigmoid")),
        ("ema_decay=none,0.99", "ema_decay", (None, 0.99)),
        ("model.head.norm=true,false", "model.head.norm", (True, False)),
        ("init_from=a/b.pt,s3://c/d.pt", "init_from", ("a/b.pt", "s3://c/d.pt")),
        ("recipe=clip_tiny,runs/mine.toml", "recipe", ("clip_tiny", "runs/mine.toml")),
    ],
)
def test_values_are_those_of_the_field(text: str, path: str, values: tuple[object, ...]) -> None:
    assert parse(text) == Axis(path=path, values=values)


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("learning_rate=loguniform:1e-4:3e-3", Distribution(kind="loguniform", low=1e-4, high=3e-3)),
        ("ema_decay=uniform:0.9:0.999", Distribution(kind="uniform", low=0.9, high=0.999)),
        ("k=randint:1:16", Distribution(kind="randint", low=1, high=16)),
    ],
)
def test_a_distribution_draws_within_its_ends(text: str, distribution: Distribution) -> None:
    axis = parse(text)
    assert axis.distribution == distribution
    values = [axis.draw(index) for index in range(200)]
    assert distribution.low <= min(values) < max(values) <= distribution.high
    assert all(float(f"{value:.4g}") == value for value in values)


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ((), "--vary names nothing"),
        (("k",), "--vary k: write setting=value,value"),
        (("kk=1",), "there is no setting 'kk'; did you mean k"),
        (("k=",), "model.vision.tokens|a value is missing"),
        (("k=1,,4",), "model.vision.tokens is ''; it has to be a whole number"),
        (("k=1,4,1",), "--vary k=1,4,1: 1 is there more than once"),
        (("recipe=",), "a value is missing"),
        (("k=normal:0:1",), "write uniform:low:high, loguniform:low:high or randint:low:high"),
        (("learning_rate=loguniform:1e-4",), "write uniform:low:high"),
        (("learning_rate=loguniform:x:y",), "write uniform:low:high"),
        (("learning_rate=loguniform:0:1",), "the lower end has to be above 0"),
        (("learning_rate=uniform:2:1",), "the range is empty"),
        (("learning_rate=uniform:1:inf",), "the range is empty"),
        (("k=uniform:1:4",), "write randint:1:4"),
        (("temperature=randint:1:4",), "does not take what randint gives"),
        (("k=1,4", "model.vision.tokens=8"), "names model.vision.tokens more than once"),
        (("batch_size=1,2",), "data.batch_size is varied and given as an option"),
        (("seed=1,2",), "--seeds says how many"),
        (("evaluate_every=1,2",), "--evaluations says how many"),
    ],
)
def test_what_cannot_be_varied_is_refused(vary: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_all(vary, {"data.batch_size"})


def test_every_setting_has_a_spelling_of_its_own() -> None:
    names = [spelling(leaf.path) for leaf in leaves(TrainingConfig)]
    assert len(set(names)) == len(names)
    assert {"k", "heads", "learning_rate", "vision.width", "weight_decay"} <= set(names)


def selected(*vary: str, most: int | None = None, fixed: dict[str, object] | None = None, **more: object) -> Selection:
    axes = parse_all(vary, ())
    candidates = drawn(axes) if most else grid(axes, None)
    return select(Space(axes, "llip_tiny_k8", fixed or {}), candidates, most=most, **more)  # type: ignore[arg-type]


def test_baselines_stand_beside_a_grid_as_one_point_each() -> None:
    found = selected("recipe=clip_tiny,siglip_tiny,llip_tiny_k8", "k=1,4", "heads=2,4")
    assert list(found.points) == [
        *("clip_tiny", "siglip_tiny", "llip_tiny_k8-k1", "llip_tiny_k8-k4-heads2", "llip_tiny_k8-k4")
    ]
    assert "not varied for clip_tiny, which takes no other value: k, heads" in found.notes
    same = "one model, trained once as llip_tiny_k8-k1: llip_tiny_k8-k1-heads2, llip_tiny_k8-k1-heads4"
    assert same in found.notes and len(found.notes) == 3
    clip, narrow, wide = (found.points[n] for n in ("clip_tiny", "llip_tiny_k8-k1", "llip_tiny_k8-k4"))
    assert clip[1] == recipe("clip_tiny") and dict(clip[0].fields) == {"recipe": "clip_tiny"}
    assert narrow[0].field("model.head.heads") is None and wide[0].field("model.head.heads") == 4
    assert wide[1] == override(recipe("llip_tiny_k8"), {"k": 4})


def test_a_contradiction_is_left_out_with_its_reason() -> None:
    found = selected("heads=3,4,5", "k=2,8")
    assert list(found.points) == ["llip_tiny_k8-k2", "llip_tiny_k8"]
    three, _ = found.notes
    assert three.startswith("left out llip_tiny_k8-k2-heads3, llip_tiny_k8-k8-heads3: model.head.heads is 3; it has to")
    with pytest.raises(ValueError, match=r"no point of the sweep is possible: .* divisor of embed_dim 64"):
        selected("heads=3,5", "k=4")


def test_heads_and_losses_are_two_axes_and_a_bias_belongs_to_one_of_them() -> None:
    found = selected("recipe=llip_tiny_k8,mean_tiny_k8", "objective.loss=softmax,sigmoid", "logit_bias=-3,-5")
    assert set(found.points) == {
        f"{recipe}_tiny_k8{loss}" for recipe in ("llip", "mean") for loss in ("-losssoftmax", "-logit_bias_3", "")
    }


def test_settings_that_need_each_other_are_varied_together() -> None:
    found = selected(
        "model.vision.patch_dropout=0,0.5", "model.head.patch_tokens=true", "model.head.shared_projections=false,true"
    )
    assert len(found.points) == 3 and all("patch_dropout0.5" not in p or "shared" in p for p in found.points)


def test_a_recorded_point_stands_for_its_equals() -> None:
    vary = ("recipe=llip_tiny_k8,llip_tiny_k16", "k=4")
    assert list(selected(*vary).points) == ["llip_tiny_k8-k4"]
    assert list(selected(*vary, recorded={"llip_tiny_k16-k4"}).points) == ["llip_tiny_k16-k4"]


def test_a_longer_search_begins_with_the_points_of_a_shorter_one() -> None:
    vary = ("learning_rate=loguniform:1e-4:3e-3", "k=1,4,16", "temperature=uniform:1:10")
    few, many = (list(selected(*vary, most=most).points) for most in (5, 12))
    assert len(many) == 12 and many[:5] == few


def test_a_search_of_few_models_ends() -> None:
    assert len(selected("k=1,4", "heads=1,2", most=50).points) == 3


def test_names_do_not_depend_on_what_else_is_varied() -> None:
    assert set(selected("k=1,4").points) < set(selected("k=1,4", "heads=1,4").points)
