"""The paper's three tables of costs and of tokens, in one command.

    uv run tests/benchmarks/bench_paper_tables.py --output output/tables

1. Seconds of a training step by model, random images and captions.
2. Seconds an image to be classified, against the number of prompts.
3. K and patch tokens: small models trained alike on the built-in corpus, and what they reach. Run again, it goes on
   with the models that miss.

`--only 1 2` leaves the third out, which trains for minutes a model.
"""

import statistics
from dataclasses import dataclass, replace

import bench_training_step
import bench_zero_shot
import pytest
import torch
import tyro

from llip import storage
from llip.config import TrainingConfig
from llip.evaluation import Metric
from pipelines import prepare_data
from pipelines.evaluate import Evaluate, evaluate
from pipelines.launching import Run, train_and_evaluate
from pipelines.pretrain import Pretrain

SHOWN = ("text_to_image_map", "image_to_text_r1", "top1")


@dataclass(frozen=True, kw_only=True)
class Settings:
    only: tuple[int, ...] = (1, 2, 3)
    """Tables to make."""
    size: str = "b32"
    """Towers of the first two tables: tiny, b32, b16, l14, h14 or g14."""
    tokens: int = 32
    """Their K."""
    batch_size: int = 8
    """Images of a training step in the first, of a batch in the second."""
    rounds: int = 5
    ablation_tokens: tuple[int, ...] = (1, 4, 8, 16)
    """K of the small models, each without and with the patch tokens beside the mixture tokens."""
    steps: int = 1200
    """Of the small models."""
    corpus_images: int | None = None
    """Of the built-in corpus; its own number where not given."""
    output: str = "output/tables"
    """Folder of the small models."""
    threads: int = 1
    """CPU threads."""


def training_seconds(settings: Settings) -> str:
    """CPU seconds of a step, the models in turn; ratios to CLIP are taken within a round."""
    size, tokens = settings.size, settings.tokens
    names = [f"clip_{size}", f"siglip_{size}", f"register_{size}_k{tokens}", f"llip_{size}_k{tokens}"]
    data = bench_training_step.batch(settings.batch_size)
    steps = {name: bench_training_step.step_here(name, *data) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(settings.rounds + 1):
        for name, step in steps.items():
            seconds[name].append(bench_training_step.seconds(step))
    lines = ["| model | seconds a step | over CLIP |", "| --- | ---: | ---: |"]
    for name, of_model in seconds.items():
        ratios = [a / b for a, b in zip(of_model[1:], seconds[names[0]][1:], strict=True)]  # the first warms up
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"
        lines.append(f"| {name} | {statistics.median(of_model[1:]):.3f} | {spread} |")
    return "\n".join(lines)


def inference_seconds(settings: Settings) -> str:
    given = bench_zero_shot.Settings(
        recipe=f"llip_{settings.size}_k{settings.tokens}",
        batch_size=settings.batch_size,
        rounds=settings.rounds,
        threads=settings.threads,
    )
    return bench_zero_shot.latency(given).table(bench_zero_shot.CLIP)


def small_model(tokens: int, patch_tokens: bool, steps: int) -> TrainingConfig:
    """Patch tokens go with temperature 1, as in the paper."""
    config = Pretrain(recipe="llip_tiny_k8", overrides={"k": tokens, "steps": steps}).training()
    if not patch_tokens:
        return config
    head = replace(config.model.head, patch_tokens=True, temperature=1.0)
    return replace(config, model=replace(config.model, head=head))


def tokens_and_patches(settings: Settings) -> str:
    output = storage.absolute(settings.output)
    data = prepare_data.prepare(output, pool=None, shards=None, evaluation=None, corpus_images=settings.corpus_images)
    assert data.evaluation is not None, "the built-in corpus has evaluation sets"
    found: dict[str, dict[str, Metric]] = {}
    for patch_tokens in (False, True):
        for tokens in settings.ablation_tokens:
            name = f"K={tokens}{' + patches' if patch_tokens else ''}"
            folder = storage.join(output, "runs", f"k{tokens}{'-patches' if patch_tokens else ''}")
            config = small_model(tokens, patch_tokens, settings.steps)
            train_and_evaluate(Run(config=config, shards=data.shards, folder=folder))
            found[name] = evaluate(Evaluate(checkpoint=folder, evaluation=data.evaluation))
    rows = sorted(metric for metric in next(iter(found.values())) if metric.split("/", 1)[1] in SHOWN)
    lines = [f"| metric | chance | {' | '.join(found)} |", "| --- |" + " ---: |" * (1 + len(found))]
    for metric in rows:
        values = [f"{of_model[metric].value:.3f}" for of_model in found.values()]
        lines.append(f"| {metric} | {next(iter(found.values()))[metric].chance:.3f} | {' | '.join(values)} |")
    return "\n".join(lines)


TABLES = {
    1: ("Seconds of a training step", training_seconds),
    2: ("Seconds an image, against prompts", inference_seconds),
    3: ("K and patch tokens", tokens_and_patches),
}


def main(settings: Settings) -> None:
    torch.set_num_threads(settings.threads)
    for number in settings.only:
        title, table = TABLES[number]
        print(f"{number}. {title}\n\n{table(settings)}\n", flush=True)


@pytest.mark.bench
def test_the_ablation_trains_and_tabulates_every_model(tmp_path) -> None:  # type: ignore[no-untyped-def]
    settings = Settings(output=str(tmp_path), ablation_tokens=(1, 2), steps=2, corpus_images=192)
    table = tokens_and_patches(settings).splitlines()
    assert table[0].endswith("| K=1 | K=2 | K=1 + patches | K=2 + patches |")
    assert len(table) > 4 and all(row.count("|") == 7 for row in table)
    assert tokens_and_patches(settings).splitlines() == table, "done models are read back"


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
