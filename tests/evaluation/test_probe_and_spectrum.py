"""Linear probe and spectrum against scikit-learn and numpy on the same features."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.evaluation_samples import make_sets, picture
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from llip.contrastive import create_model
from llip.data.transforms import normalize
from llip.evaluation import linear_probe
from llip.evaluation.encode import InProcess, decode
from llip.evaluation.sets.evaluation_set import EvaluationSet
from llip.evaluation.spectrum import effective_rank, spectrum

Probed = tuple[linear_probe.LinearProbe, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def probe() -> Probed:
    x, y = load_digits(return_X_y=True)
    x = x / 16
    return linear_probe.fit(x[:300], y[:300], x[300:600], y[300:600]), x, y


def test_the_probe_is_scikit_learns_regression_of_the_chosen_strength(probe: Probed) -> None:
    found, x, y = probe
    reference = LogisticRegression(C=found.strength, max_iter=1000).fit(x[:300], y[:300])
    assert found.metrics["linear_probe_top1"].value == reference.score(x[300:600], y[300:600]) > 0.8
    right, labels = reference.predict(x[300:600]) == y[300:600], y[300:600]
    per_class = np.mean([right[labels == c].mean() for c in range(10)])
    assert found.metrics["linear_probe_mean_per_class"].value == pytest.approx(per_class)
    assert found.metrics["linear_probe_top1"].chance == 0.1


def test_the_search_ends_at_an_eighth_of_a_decade_around_the_best(probe: Probed) -> None:
    found = probe[0]
    assert set(linear_probe.COARSE) <= set(found.validation) and len(found.validation) <= 7 + 4 * 2
    assert found.validation[found.strength] == max(found.validation.values())
    distances = np.abs(np.log10(np.array(list(found.validation))) - np.log10(found.strength))
    assert sorted(distances)[1:3] == pytest.approx([1 / 8, 1 / 8])


def test_sets_of_other_classes_and_lone_images_are_refused() -> None:
    model = create_model("siglip_tiny")
    run = InProcess(model=model, progress=False)
    things, scenes, _ = make_sets()
    with pytest.raises(ValueError, match="things and scenes have to be classification sets of the same classes"):
        linear_probe.evaluate(things, scenes, run)
    lone = EvaluationSet(
        name="lone",
        task="classification",
        table=pa.table({"image": [picture(i) for i in range(3)], "label": [0, 0, 1]}),
        classes=("cat", "dog"),
    )
    with pytest.raises(ValueError, match="set lone: class dog has one image"), torch.inference_mode():
        linear_probe.evaluate(lone, lone, run)


@pytest.mark.parametrize("images", [2, 3, 4, 5])
def test_classes_of_few_images_are_probed(images: int) -> None:
    """scikit-learn asks for as many validation samples as there are classes."""
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(10), images)
    x = rng.normal(size=(len(label), 4)) + 9 * np.eye(10, 4)[label]
    found = linear_probe.fit(x, label, x, label)
    assert found.metrics["linear_probe_top1"].value > 0.1


def test_one_class_is_refused() -> None:
    table = pa.table({"image": [b"x"] * 3, "label": [1, 1, 1]})
    alone = EvaluationSet(name="alone", task="classification", table=table, classes=("cat", "dog"))
    with pytest.raises(ValueError, match="set alone: all images are of one class"):
        linear_probe.evaluate(alone, alone, lambda tasks: [])


@torch.inference_mode()
def test_the_spectrum_is_that_of_all_tokens_stacked() -> None:
    torch.manual_seed(0)
    model = create_model("llip_tiny_k8").eval()
    pictures = [picture(i) for i in range(7)]
    found = spectrum("noise", pa.table({"image": pictures}), InProcess(model=model, batch_size=3, progress=False))
    pixels = torch.stack([decode(blob, 48, "here") for blob in pictures])
    token_NW = model.vision(normalize(pixels)).flatten(0, 1).double().numpy()
    assert token_NW.shape == (56, 128)
    expected = np.linalg.svd(np.cov(token_NW.T, bias=True), compute_uv=False)
    np.testing.assert_allclose(found, expected, atol=1e-8 * expected[0])


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(np.array([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(np.array([1.0, 0.0])) == 1
