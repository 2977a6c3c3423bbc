"""The recipes as a table, or those whose names hold all words that are given: `python -m llip.recipes b16`."""

import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from llip.recipes import EXPECTED, RECIPES, recipe
from llip.summary import summarise

CAPTION_TOKENS = 20
"""Tokens of the caption whose FLOPs are listed, start and end included, where a model takes as many."""


def listing(words: list[str]) -> Iterator[tuple[str, ...]]:
    """Recipes whose names hold all `words`: name, M parameters, GFLOP an image and a caption, batch, length, top-1."""
    for name in RECIPES:
        if all(word in name for word in words):
            config = recipe(name)
            size = summarise(config.model, min(CAPTION_TOKENS, config.model.text.context_length))
            yield (
                name,
                f"{size.parameters / 1e6:,.1f}",
                f"{size.image_flops / 1e9:,.3g}",
                f"{size.caption_flops / 1e9:,.3g}",
                f"{config.data.batch_size:,}",
                f"{config.steps:,} steps" if config.steps else f"{config.epochs:g} epochs",
                f"{EXPECTED[name]:.1f}" if name in EXPECTED else "",
            )


def main() -> None:
    """Print the listing as a table."""
    table = Table("recipe", title="Recipes", caption="ImageNet: published zero-shot accuracy, where there is any.")
    for column in ("M parameters", "GFLOP image", "GFLOP caption", "batch", "length", "ImageNet %"):
        table.add_column(column, justify="right")
    console = Console(width=None if sys.stdout.isatty() else 120)
    with console.status("counting parameters and FLOPs"):
        for row in listing(sys.argv[1:]):
            table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
