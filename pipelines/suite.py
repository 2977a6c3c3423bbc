"""Evaluate a checkpoint on a folder of CLIP_benchmark's tars, and print it as papers do: Llip's 22 and DataComp's 38
tasks, each by its own metric, their means, and what is missing.

    uv run pipelines/suite.py --checkpoint output/runs/<name> --evaluation /data/clip_benchmark

Leaves what `evaluate.py` leaves, and `suite.md`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llip import storage
from pipelines import command
from pipelines.evaluate import Evaluate, evaluate, output_folder, sources_of

if TYPE_CHECKING:  # torch is imported once the options are right, so that --help comes at once
    from llip.evaluation.suites import Results


@dataclass(frozen=True, kw_only=True)
class SuiteOfTasks(Evaluate):
    """Model and tasks to evaluate, and the form of the report."""

    suites: tuple[Literal["llip", "datacomp"], ...] = ("llip", "datacomp")
    """Collections of tasks to print."""
    expected: tuple[str, ...] = ()
    """`task=accuracy`, as `imagenetv2=0.58`: what standard models of this model's ImageNet accuracy reach under a
    shift. The accuracy beyond it is the model's effective robustness (Taori et al., NeurIPS 2020)."""

    def references(self) -> dict[str, float]:
        """Expected accuracies by task. Raises ValueError for what is no `task=accuracy`."""
        found = {}
        for text in self.expected:
            task, _, accuracy = text.partition("=")
            try:
                found[task] = float(accuracy)
            except ValueError:
                found[task] = -1.0
            if not 0 <= found[task] <= 1:
                raise ValueError(f"--expected {text}: a task and an accuracy in [0, 1], as imagenetv2=0.58")
        return found

    def __post_init__(self) -> None:
        super().__post_init__()
        self.references()


def suite(settings: SuiteOfTasks) -> "dict[str, Results]":
    """Evaluate, print the tables, and return the results by suite.

    Raises ValueError, before any work, as `evaluate` does, for two sets of one task, and for an expectation of a task
    of which there is no set.
    """
    from llip.evaluation.suites import SUITES, Results, by_task

    given, references = by_task(source.name for source in sources_of(settings)), settings.references()
    tasks = dict.fromkeys(task for name in settings.suites for task in SUITES[name].tasks if task in given)
    if unknown := [task for task in references if task not in tasks]:
        raise ValueError(
            f"--expected {unknown[0]}: no set of such a task is evaluated; there are {', '.join(tasks) or 'none'}"
        )
    metrics = evaluate(settings)
    found: dict[str, Results] = {name: Results.of(SUITES[name], metrics) for name in settings.suites}
    text = "\n".join(results.markdown(references) for results in found.values())
    uri = storage.join(output_folder(settings, settings.weights(settings.checkpoint)), "suite.md")
    storage.write_bytes(uri, f"{text}\n".encode())
    print(f"\n{text}\n{uri}")
    return found


def cli() -> None:
    """The command line."""
    command.run(SuiteOfTasks, suite, "Evaluate a checkpoint on suites of zero-shot tasks.")


if __name__ == "__main__":
    cli()
