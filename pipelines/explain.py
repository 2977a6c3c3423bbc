"""Show what captions change in a trained Llip's view of your image: mixing weights by head and token, and cosines.

    uv run pipelines/explain.py --checkpoint output/runs/<name> --image desk.jpg \\
        --captions "a photo of an apple" "a photo of an ipod"

Leaves `explanation.png`, `explanation.html` and, last, `explanation.json`.
"""

import html
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llip import storage
from pipelines import command
from pipelines.checkpoints import WeightsOptions

if TYPE_CHECKING:  # torch is imported once the options are right, so that --help and a refusal come at once
    from llip.evaluation.explain import Explanation


@dataclass(frozen=True, kw_only=True)
class Explain(WeightsOptions):
    """Model, image and captions to explain."""

    checkpoint: str
    """A run folder (its newest checkpoint is taken), a checkpoint folder, or a file of released weights."""
    image: str
    """A JPEG, PNG or WebP file."""
    captions: tuple[str, ...]
    """Captions, each of which may be true of it or not."""
    output: str = "output/explanation"
    """Folder for explanation.html, explanation.png and explanation.json."""


def explain_image(settings: Explain) -> "Explanation":
    """Raises ValueError for a checkpoint that is no Llip and for an image that cannot be used."""
    from llip.evaluation import figures
    from llip.evaluation.explain import explain
    from llip.page import image_tag, page, svg

    weights = settings.weights(settings.checkpoint)
    if not storage.exists(settings.image):
        raise ValueError(f"--image {settings.image} does not exist")
    image = storage.read_bytes(settings.image)
    found = explain(weights.load().eval(), image, settings.captions, where=f"--image {settings.image}")
    output = storage.absolute(settings.output)
    figure = figures.mixing_maps(found.weight_CMK, found.captions)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    facts = {"checkpoint": weights.uri, "image": settings.image}
    sections = [
        image_tag(image),
        "<h2>Cosines</h2><p>Of the image feature given a caption (row) with each caption (column). In a column, the "
        "feature given that very caption should be the closest.</p>",
        _cosines(found),
        f"<h2>Mixing weights</h2>{svg(figure)}",
    ]
    storage.write_bytes(storage.join(output, "explanation.png"), png.getvalue())
    content = page("What the captions change", sections, facts)
    storage.write_bytes(storage.join(output, "explanation.html"), content.encode())
    values = {"captions": found.captions, "weights": found.weight_CMK.tolist(), "cosines": found.cosine_CC.tolist()}
    storage.write_json(storage.join(output, "explanation.json"), {"settings": vars(settings)} | values)
    print(f"{_text(found)}\n\n{storage.join(output, 'explanation.html')}")
    return found


def _cosines(found: "Explanation") -> str:
    """The diagonal is green where it is the largest of its column, and red where not."""
    best = found.cosine_CC.argmax(axis=0)
    head = "".join(f"<th>{html.escape(caption)}</th>" for caption in found.captions)
    rows = []
    for given, caption in enumerate(found.captions):
        cells = [
            f'<td class="n{"" if of != given else " right" if best[of] == of else " wrong"}">{cosine:.3f}</td>'
            for of, cosine in enumerate(found.cosine_CC[given])
        ]
        rows.append(f"<tr><th>given {html.escape(caption)}</th>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'


def _text(found: "Explanation") -> str:
    width = max(map(len, found.captions)) + len("given ")
    return "\n".join(
        f"{'given ' + caption:<{width}}  {'  '.join(f'{cosine:6.3f}' for cosine in cosines)}"
        for caption, cosines in zip(found.captions, found.cosine_CC, strict=True)
    )


def cli() -> None:
    """The command line."""
    command.run(Explain, explain_image, "Show what captions change in a trained Llip's view of an image.")


if __name__ == "__main__":
    cli()
