"""The report: complete, self-contained, the headline first."""

import re
import xml.dom.minidom

import numpy as np
import pytest
import torch
from helpers.evaluation_samples import make_sets
from markupsafe import Markup

from llip.contrastive import create_model
from llip.evaluation import context, figures
from llip.evaluation.encode import InProcess
from llip.evaluation.evaluate import evaluate_sets, named
from llip.evaluation.metrics import Metric
from llip.evaluation.report import Report, metrics_of, table
from llip.headline import headline
from llip.page import parted, svg


def make_report(recipe: str) -> Report:
    torch.manual_seed(0)
    model = create_model(recipe)
    outcomes = list(evaluate_sets(model, make_sets(), InProcess(model=model, progress=False)))
    return Report(title="A <b>run</b>", facts={"step": "800"}, outcomes=outcomes)


@pytest.fixture(scope="module")
def llip_report() -> Report:
    return make_report("llip_tiny_k8")


def test_the_page_needs_no_other_file_and_shows_every_metric(llip_report: Report) -> None:
    page = llip_report.html()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "A &lt;b&gt;run&lt;/b&gt;" in page and "<b>run" not in page
    for name, metric in named(llip_report.outcomes).items():
        assert f"<td>{parted(name.split('/', 1)[1])}</td>" in page
        assert f">{metric.value:.3f}</td>" in page
    assert page.count("<svg") == 5  # two by type, margins, mixing, reliability
    assert page.count("data:image/webp") == 10 + 6 + 4 * 5  # predictions, contexts, two captions of two types


def test_the_page_is_the_same_each_time(llip_report: Report) -> None:
    assert llip_report.html() == llip_report.html()


def test_a_model_without_contexts_has_no_section_of_them() -> None:
    page = make_report("siglip_tiny").html()
    assert "What the caption changes" not in page and page.count("<svg") == 3


def test_markdown_has_a_row_for_each_metric(llip_report: Report) -> None:
    lines = llip_report.markdown().splitlines()
    for name, metric in named(llip_report.outcomes).items():
        low, high = f"{metric.low:.3f}", f"{metric.high:.3f}"
        assert f"| {name} | {metric.value:.3f} | {metric.chance:.3f} | {low}–{high} | {metric.over} |" in lines
    assert "- step: 800" in lines
    calibration = next(o.calibration for o in llip_report.outcomes if o.data.name == "scenes")
    assert calibration is not None
    assert f"| scenes | {' | '.join(calibration.cells())} |" in lines and calibration.pairs == 10 * 7


def test_the_table_parts_sets() -> None:
    top1 = Metric(0.5, 0.25, 0.4, 0.6, "9 images")
    text = table({"a/top1": top1, "a/top5": Metric(1, 1), "b/top1": Metric(0, 0.1)})
    assert text.splitlines() == [
        "metric   value  chance  95 % interval, over",
        "",
        "a/top1   0.500   0.250  0.400–0.600  9 images",
        "a/top5   1.000   1.000",
        "",
        "b/top1   0.000   0.100",
    ]


def test_metrics_read_back_are_in_the_order_of_their_numbers() -> None:
    values = {name: {"value": 0.5, "chance": 0.1} for name in ("s/r1", "s/r10", "s/r5", "a/top5", "a/map")}
    found = metrics_of({"metrics": values})
    assert list(found) == ["a/map", "a/top5", "s/r1", "s/r5", "s/r10"] and found["s/r1"] == Metric(0.5, 0.1)


def test_entropy_and_shift_of_mixing_weights() -> None:
    one_token, uniform = np.eye(4)[0], np.full(4, 0.25)
    weights = np.stack([np.stack([one_token, uniform]), np.stack([np.eye(4)[1], uniform])])[None]  # [1, 2, M=2, K=4]
    np.testing.assert_allclose(context.entropy(weights), [0, 1], atol=1e-12)
    np.testing.assert_allclose(context.shift(weights), [1, 0], atol=1e-12)
    assert context.entropy(np.ones((1, 2, 3, 1))).tolist() == [0, 0, 0]


def test_figures_are_well_formed() -> None:
    values = {"scenes": {"object": Metric(0.5, 0.1), "count": Metric(0.2, 0.2)}, "other": {"object": Metric(0.9, 0.1)}}
    bars = svg(figures.bars_by_type(values, "mAP"))
    xml.dom.minidom.parseString(bars)
    assert bars == svg(figures.bars_by_type(values, "mAP"))


def test_the_headline_comes_first_and_the_mean_over_types_before_all_others() -> None:
    names = ["concept/top1", "concept/top5", "context/context_accuracy", "faces/text_to_image_r1"]
    names += [f"{data}/text_to_image_map{of}" for data in ("new", "scenes_in_style") for of in ("", "_over_types")]
    assert headline(names) == [
        *("scenes_in_style/text_to_image_map_over_types", "new/text_to_image_map_over_types"),
        *("faces/text_to_image_r1", "concept/top1", "context/context_accuracy"),
    ]
    assert headline(names[::-1])[0] == "scenes_in_style/text_to_image_map_over_types"


def test_the_page_begins_with_its_headlines(llip_report: Report) -> None:
    page = llip_report.html()
    first = named(llip_report.outcomes)["scenes/text_to_image_map_over_types"]
    cells = re.findall(r"<div><small>(.*?)</small><b>(.*?)</b><small>(.*?)</small></div>", page)
    name = "scenes text_to_image_map_over_types"
    assert cells[0] == (str(parted(name)), f"{first.value:.3f}", f"chance {first.chance:.3f}")
    assert page.index("<b>" + cells[0][1]) < page.index('class="facts"') < page.index("<h2>")


def test_long_names_may_go_on_in_a_new_line_and_numbers_may_not() -> None:
    assert parted("a_b/c 0.125 model.head <i>") == "a_<wbr>b/<wbr>c 0.125 model.<wbr>head &lt;i&gt;"
    assert parted(Markup("<td>a_b</td>")) == "<td>a_b</td>"
