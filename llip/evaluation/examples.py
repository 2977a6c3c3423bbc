"""Examples of a report, drawn by seed and not chosen, as HTML with the images inside."""

import html
from collections.abc import Iterator, Sequence

import numpy as np

from llip.evaluation.association import instances
from llip.evaluation.encode import Arrays
from llip.evaluation.evaluate import Outcome
from llip.evaluation.retrieval import Retrieval
from llip.evaluation.sets.image_references import encoded
from llip.page import image_tag

PER_KIND = 2
IMAGES = 24
CONTEXTS = 6
INSTANCES = 4


def of(outcome: Outcome, seed: int = 0) -> str:
    """Examples of a set, as HTML."""
    rng = np.random.default_rng(seed)
    if isinstance(outcome.details, Retrieval):
        return "".join(_rankings(outcome, outcome.details, rng))
    if outcome.data.task == "classification":
        return f'<div class="grid">{"".join(_predictions(outcome, outcome.details, rng))}</div>'
    if outcome.data.task == "association":
        return "".join(_associations(outcome, outcome.details, rng))
    make = _choices if outcome.data.task == "choice" else _contexts
    return f'<div class="contexts">{"".join(make(outcome, outcome.details, rng))}</div>'


def _rankings(outcome: Outcome, ranked: Retrieval, rng: np.random.Generator) -> Iterator[str]:
    """A few captions of every type, with the images that score highest."""
    for caption_type, texts in ranked.captions.by_type.items():
        yield f"<h4>{html.escape(caption_type)}</h4>"
        for text in sorted(rng.choice(texts, min(PER_KIND, len(texts)), replace=False).tolist()):
            true = ranked.captions.positives(text)
            images = (_image(outcome, image, image in true) for image in ranked.best_images_TX[text].tolist())
            note = f"average precision {ranked.average_precision_T[text]:.2f}, true of {len(true)} images"
            query = f"{html.escape(ranked.captions.texts[text])}<small>{note}</small>"
            yield f'<div class="ranking"><div class="query">{query}</div>{"".join(images)}</div>'


def _associations(outcome: Outcome, arrays: Arrays, rng: np.random.Generator) -> Iterator[str]:
    """A few cues with their images, the highest score first."""
    found = instances(outcome.data.table)
    for which in _some(len(found), INSTANCES, rng):
        of = found[which]
        order = np.argsort(-arrays["score"][of.rows, of.places], kind="stable")
        images = (_image(outcome, int(of.rows[i]), bool(of.true[i])) for i in order)
        query = f"{html.escape(of.cue)}<small>{of.true.sum()} of {len(order)} images are associated with it</small>"
        yield f'<div class="ranking"><div class="query">{query}</div>{"".join(images)}</div>'


def _predictions(outcome: Outcome, arrays: Arrays, rng: np.random.Generator) -> Iterator[str]:
    """Some images with the class that scores highest, and the true one where that is another."""
    classes, label = outcome.data.classes, outcome.data.table["label"].to_pylist()
    for image in _some(len(label), IMAGES, rng):
        predicted, right = int(arrays["predicted"][image]), bool(arrays["above"][image] == 0)
        true = "" if right else f"<small>{html.escape(classes[label[image]])}</small>"
        caption = f"<figcaption>{html.escape(classes[predicted])}{true}</figcaption>"
        yield f"<figure>{_image(outcome, image, right)}{caption}</figure>"


def _contexts(outcome: Outcome, arrays: Arrays, rng: np.random.Generator) -> Iterator[str]:
    """Some images with two captions and the four cosines; in a row, that on the diagonal should be the larger."""
    table = outcome.data.table
    for image in _some(table.num_rows, CONTEXTS, rng):
        names = [html.escape(table[column][image].as_py()) for column in ("caption_a", "caption_b")]
        a, a_other, b, b_other = (float(arrays[n][image]) for n in ("a_given_a", "a_given_b", "b_given_b", "b_given_a"))
        rows = ((names[0], _cell(a, a > a_other), _cell(a_other)), (names[1], _cell(b_other), _cell(b, b > b_other)))
        body = "".join(f"<tr><td>{name}</td>{first}{second}</tr>" for name, first, second in rows)
        head = "<tr><th>caption</th><th>image given A</th><th>image given B</th></tr>"
        shown = f'<div class="scroll"><table>{head}{body}</table></div>'
        yield f'<div class="context">{_image(outcome, image)}{shown}</div>'


def _choices(outcome: Outcome, arrays: Arrays, rng: np.random.Generator) -> Iterator[str]:
    """Some images with their captions and the cosines; that of the true caption is green where it is the highest."""
    table = outcome.data.table
    for image in _some(table.num_rows, CONTEXTS, rng):
        captions, true = table["captions"][image].as_py(), table["true"][image].as_py()
        score_W = arrays["score"][image]
        right = bool(score_W[true] > np.delete(score_W, true).max())
        rows = [
            f"<tr><td>{html.escape(caption)}</td>{_cell(float(score), right if place == true else None)}</tr>"
            for place, (caption, score) in enumerate(zip(captions, score_W, strict=False))
        ]
        shown = f'<div class="scroll"><table>{"".join(rows)}</table></div>'
        yield f'<div class="context">{_image(outcome, image)}{shown}</div>'


def _cell(value: float, right: bool | None = None) -> str:
    mark = "" if right is None else ' class="right"' if right else ' class="wrong"'
    return f"<td{mark}>{value:.3f}</td>"


def _some(count: int, wanted: int, rng: np.random.Generator) -> Sequence[int]:
    return sorted(rng.choice(count, min(count, wanted), replace=False).tolist())


def _image(outcome: Outcome, image: int, right: bool | None = None) -> str:
    mark = "" if right is None else "right" if right else "wrong"
    return image_tag(encoded(outcome.data.table["image"][image].as_py()), mark)
