"""Evaluate a trained Llip under other temperatures of its mixing weights.

    uv run pipelines/temperature.py --checkpoint output/runs/<name> --evaluation output/evaluation

Leaves `temperature.html`, `temperature.md` and, last, `temperature.json`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llip import storage
from pipelines import command
from pipelines.evaluate import EvaluationOptions, output_folder, runner, sources_of

if TYPE_CHECKING:  # torch is imported once the options are right, so that --help and a refusal come at once
    from llip.evaluation.temperature import TemperatureCurve


@dataclass(frozen=True, kw_only=True)
class Temperature(EvaluationOptions):
    """Models to evaluate, the sets, and the temperatures."""

    temperatures: tuple[float, ...] = ()
    """Besides the trained one, which is always among them; from an eighth to eight times it where none is given."""


def sweep_temperature(settings: Temperature) -> "TemperatureCurve":
    """Raises ValueError, before any work, for a checkpoint or a set that cannot be used."""
    import torch

    from llip.evaluation import figures
    from llip.evaluation.temperature import FACTORS, sweep
    from llip.page import page, svg, table

    weights = settings.weights(settings.checkpoint)
    output = output_folder(settings, weights)
    sets = [source.read() for source in sources_of(settings)]
    model = weights.load().eval()
    trained = model.config.mixing_temperature
    temperatures = settings.temperatures or tuple(trained * factor for factor in FACTORS)
    with torch.inference_mode():
        found = sweep(model, sets, temperatures, runner(model, settings))
    plot = svg(figures.by_temperature(found.values, found.temperatures, trained))
    best = table(["metric", "best τ"], [(metric, f"{found.best(metric):.3g}") for metric in found.values])
    facts = {"checkpoint": weights.uri, "trained temperature": f"{trained:.3g}"}
    content = page("Temperature at evaluation", [plot, best], facts)
    storage.write_bytes(storage.join(output, "temperature.html"), content.encode())
    storage.write_bytes(storage.join(output, "temperature.md"), f"{found.table()}\n".encode())
    storage.write_json(storage.join(output, "temperature.json"), vars(found))
    print(f"{found.table()}\n\n{storage.join(output, 'temperature.html')}")
    return found


def cli() -> None:
    """The command line."""
    command.run(Temperature, sweep_temperature, "Evaluate a trained Llip under other temperatures.")


if __name__ == "__main__":
    cli()
