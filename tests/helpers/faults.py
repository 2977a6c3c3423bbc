"""What a disturbed run leaves, held against what an undisturbed one leaves. `benchmarks/bench_faults.py` shows it."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

from llip import storage
from llip.runs import goodput
from llip.runs.tracking import read_metrics

NUMBERS = ("step", "loss", "gradient_norm", "logit_scale", "logit_bias", "learning_rate", "samples")
"""What must not depend on interruptions."""


class Survived(NamedTuple):
    """A line of the table."""

    fault: str
    ended: str
    """How the run ended."""
    losses: str
    """How far they are from those of the undisturbed run."""
    samples: str
    """Whether each step saw the same ones."""
    time: str
    """What its time went to, other than training."""


def numbers(folder: str) -> list[tuple[Any, ...]]:
    """The record of a run, as far as it must not depend on interruptions; without a bias, None stands for it."""
    return [tuple(line.get(name) for name in NUMBERS) for line in read_metrics(folder) if "loss" in line]


def samples(folder: str) -> dict[int, set[str]]:
    """Ids by step over all processes and attempts (see `noted_pretrain`): an attempt that read others adds them."""
    ids: dict[int, set[str]] = defaultdict(set)
    for uri in storage.listing(storage.join(folder, "samples"), ".json"):  # a killed process leaves half of one
        ids[int(uri.rsplit("/", 1)[1].split("-")[0])].update(storage.read_json(uri))
    return ids


def ended(note: Callable[[str, object], None], fault: str, how: str, run: str) -> None:
    """Note a run that ended by a fault, as it has to: there is nothing to hold against another one."""
    note("survived", tuple(Survived(fault, how, "", "", lost_time(run))))


def lost_time(run: str) -> str:
    """What the time of a run went to, over its attempts, in the order of the parts; empty without an account."""
    uri = storage.join(run, goodput.NAME)
    if not storage.exists(uri):
        return ""
    found = goodput.account(storage.read_json(uri))
    seconds = ((part, found[f"seconds_{part}"]) for part in goodput.PARTS if part != "training")
    return ", ".join(f"{part.replace('_', ' ')} {value:.1f} s" for part, value in seconds if value >= 0.05)


def survives(
    note: Callable[[str, object], None],
    fault: str,
    ended: str,
    *,
    run: str,
    undisturbed: str,
    tolerance: float = 0.0,
) -> None:
    """Assert that two runs learned the same from the same samples, and `note` (pytest's record_property) how nearly.

    `tolerance` is of the losses, relative; with 0 every number of the record has to be the same to the bit.
    """
    found, expected = numbers(run), numbers(undisturbed)
    ids, expected_ids = samples(run), samples(undisturbed)
    assert found and expected_ids and [line[0] for line in found] == [line[0] for line in expected]
    difference = max(abs(line[1] / other[1] - 1) for line, other in zip(found, expected, strict=True))
    equal = "to the bit" if found == expected else f"to {difference:.1g}"
    same = f"the same in {len(ids)} steps" if ids == expected_ids else "others"
    note("survived", tuple(Survived(fault, ended, equal, same, lost_time(run))))
    assert ids == expected_ids
    assert difference <= tolerance if tolerance else found == expected
