"""Analyse frozen image features: linear probe and spectrum, of one or more checkpoints.

    uv run pipelines/analyse.py output/runs/llip output/runs/siglip \\
        --probe-train sets/flowers_train --probe-test sets/flowers_test --spectrum output/evaluation/scenes_in_style

Leaves `analysis.html` and, last, `analysis.json`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from llip import storage
from pipelines import command
from pipelines.checkpoints import WeightsOptions, chosen_device


@dataclass(frozen=True, kw_only=True)
class Analyse(WeightsOptions):
    """Weights that are analysed, and the sets that they are analysed on."""

    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run folders, checkpoints, folders of open_clip, or files of weights."""
    probe_train: str | None = None
    """Folder of the classification set that the linear probe is fitted to, validation split included."""
    probe_test: str | None = None
    """Folder of the classification set that it is tested on."""
    spectrum: str | None = None
    """Folder of an evaluation set whose first 5,000 images give the spectrum."""
    output: str = "output/analysis"
    """Folder for analysis.html and analysis.json."""
    batch_size: int = 64
    """Images encoded at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the models; auto: a GPU where there is one."""

    def __post_init__(self) -> None:
        if (self.probe_train is None) != (self.probe_test is None):
            raise ValueError("--probe-train and --probe-test belong together")
        if self.probe_train is None and self.spectrum is None:
            raise ValueError("nothing to do: name --probe-train and --probe-test, --spectrum, or all three")


def analyse(settings: Analyse) -> dict[str, dict[str, Any]]:
    """Results of every checkpoint, by its name. Raises ValueError, before any work, for what cannot be used."""
    import torch

    from llip.evaluation import linear_probe
    from llip.evaluation.encode import InProcess
    from llip.evaluation.sets import read_set
    from llip.evaluation.spectrum import effective_rank, spectrum

    device = chosen_device(settings.device)
    found = [settings.weights(uri) for uri in settings.checkpoints]
    checkpoints = {weights.given.rsplit("/", 1)[1]: weights for weights in found}
    if len(checkpoints) < len(found):
        raise ValueError(f"checkpoints need distinct names; these are {', '.join(settings.checkpoints)}")
    folders = (settings.probe_train, settings.probe_test, settings.spectrum)
    train, test, images = (read_set(folder) if folder else None for folder in folders)
    results: dict[str, dict[str, Any]] = {name: {} for name in checkpoints}
    for name, weights in checkpoints.items():
        run = InProcess(model=weights.load().to(device).eval(), batch_size=settings.batch_size)
        with torch.inference_mode():
            if train and test:
                probe = linear_probe.evaluate(train, test, run)
                results[name] |= {metric: m.value for metric, m in probe.metrics.items()} | {"C": probe.strength}
            if images:
                values = spectrum(images.name, images.table, run)
                results[name] |= {"effective_rank": effective_rank(values), "singular_values": values}
    output = storage.absolute(settings.output)
    storage.write_bytes(storage.join(output, "analysis.html"), _page(results).encode())
    plain = {
        name: of_run | ({"singular_values": of_run["singular_values"].tolist()} if images else {})
        for name, of_run in results.items()
    }
    storage.write_json(storage.join(output, "analysis.json"), {"settings": vars(settings), "results": plain})
    print(f"{_text(results)}\n\n{storage.join(output, 'analysis.html')}")
    return results


def _numbers(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {name: {k: v for k, v in of_run.items() if isinstance(v, float)} for name, of_run in results.items()}


def _text(results: dict[str, dict[str, Any]]) -> str:
    return "\n".join(
        f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in numbers.items())}"
        for name, numbers in _numbers(results).items()
    )


def _page(results: dict[str, dict[str, Any]]) -> str:
    from llip.evaluation import figures
    from llip.page import page, svg, table

    numbers = _numbers(results)
    keys = list(next(iter(numbers.values())))
    rows = [(name, *(f"{of_run[key]:.4g}" for key in keys)) for name, of_run in numbers.items()]
    values = {name: of_run["singular_values"] for name, of_run in results.items() if "singular_values" in of_run}
    plot = f"<h2>Spectrum of the output tokens</h2>{svg(figures.spectra(values))}" if values else ""
    return page("Image features", [table(["", *keys], rows), plot])


def cli() -> None:
    """The command line."""
    command.run(Analyse, analyse, "Linear probe and spectrum of checkpoints.")


if __name__ == "__main__":
    cli()
