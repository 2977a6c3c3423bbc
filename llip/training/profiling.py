"""A trace of a few steps for Chrome's or Perfetto's viewer, and one page about where their time goes."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from llip import storage
from llip.runs.tracking import Tracker

FIRST, WARMUP, STEPS = 3, 2, 3
"""Steps that pass before, those that the profiler warms up in, and those that it keeps."""

PHASES = ("load", "forward", "loss", "backward", "reduce", "update")
"""Names under which the loop and what it calls record what they do (`torch.profiler.record_function`).

`reduce` ends a step on all ranks: it takes the norm of the gradient and gathers the measurements.
"""
TRACE, PAGE, HTML = "profile/trace.json", "profile/summary.md", "profile/summary.html"
_COLLECTIVES = ("nccl", "gloo:")
_BAR, _OPERATORS = 40, 15


def trace_steps(folder: str, tracker: Tracker, *, images: int, device: torch.device) -> profile:
    """A profiler whose `step()` follows every step of `images` images.

    After `FIRST + WARMUP + STEPS` of them it leaves `TRACE` and `PAGE` in the run's folder and with the tracker.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    return profile(
        activities=activities,
        schedule=schedule(wait=FIRST, warmup=WARMUP, active=STEPS, repeat=1),
        on_trace_ready=partial(_finish, folder=folder, tracker=tracker, images=images, device=device),
    )


def _finish(traced: profile, *, folder: str, tracker: Tracker, images: int, device: torch.device) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "trace.json")
        traced.export_chrome_trace(str(path))
        trace = path.read_text()
    events = list(traced.key_averages())
    found = phases_and_operators(events, images=images, device=device)
    for name, content in ((TRACE, trace), (PAGE, summary(found)), (HTML, html(found))):
        storage.write_bytes(storage.join(folder, name), content.encode())
        tracker.artifact(name, content)


def _collectives(events: list[Any], device: torch.device) -> float:
    """Time in which collectives are under way, over that of the steps; on a GPU that of their kernels."""
    times = ((e.key, e.self_device_time_total if device.type == "cuda" else e.cpu_time_total) for e in events)
    return sum(time for name, time in times if name.startswith(_COLLECTIVES)) / _total(events)


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """Time of the steps, by what it is spent on."""

    millis: float
    """Time of a step, milliseconds."""
    images: int
    """Images of a step on this rank."""
    text: str
    phases: tuple[tuple[str, float, float], ...]
    """Name, milliseconds a step, share."""
    kind: str
    """Kind of the listed operators: kernel or operator."""
    operators: tuple[tuple[str, float, float, float], ...]
    """Name, milliseconds a step, share, calls a step; the longest first."""


def phases_and_operators(events: list[Any], *, images: int, device: torch.device) -> StepProfile:
    """Profile of a step, from the profiler's events by name."""
    total, gpu = _total(events), device.type == "cuda"
    millis = total / STEPS / 1000
    phases = {name: sum(e.cpu_time_total for e in events if e.key == name) for name in PHASES}
    phases["rest"] = total - sum(phases.values())
    operators = {
        e.key: (e.self_device_time_total if gpu else e.self_cpu_time_total, e.count)
        for e in events
        if e.key not in PHASES and not e.key.startswith("ProfilerStep")
    }
    first = sorted(operators, key=lambda name: -operators[name][0])[:_OPERATORS]
    text = (
        f"{STEPS} steps of {images} images on this rank, under the profiler: {millis:,.1f} ms each, "
        f"{1000 * images / millis:,.0f} images/s. "
        f"Collectives are under way in {_collectives(events, device):.1%} of the time, waited for or not."
    )
    if gpu:
        busy = sum(time for time, _ in operators.values()) / total
        text += (
            f" Kernels take {busy:.0%} of the time. Phases are of the host: `reduce` is where it waits for the device."
        )
    return StepProfile(
        millis=millis,
        images=images,
        text=text,
        phases=tuple((name, time / STEPS / 1000, time / total) for name, time in phases.items()),
        kind="kernel" if gpu else "operator",
        operators=tuple(
            (name[:80], time / STEPS / 1000, time / total, calls / STEPS)
            for name in first
            for time, calls in [operators[name]]
        ),
    )


def html(found: StepProfile) -> str:
    """The page."""
    from llip.page import render  # and Matplotlib with it, which no worker that starts should wait for

    rows = [(name, f"{ms:,.2f}", f"{share:.1%}", f"{calls:.4g}") for name, ms, share, calls in found.operators]
    values = {"text": found.text, "phases": found.phases, "kind": found.kind, "operators": rows, "trace": TRACE}
    headlines = [
        ("a step", f"{found.millis:,.1f} ms", f"{found.images} images on this rank"),
        ("images/s", f"{1000 * found.images / found.millis:,.0f}", "under the profiler"),
    ]
    return render("profile.html", title="Where a step's time goes", headlines=headlines, facts={}, **values)


def summary(found: StepProfile) -> str:
    """The page as Markdown, with a bar for every phase."""
    lines = ["# Where a step's time goes", "", found.text, ""]
    lines += ["| phase | ms | share | |", "| --- | ---: | ---: | --- |"]
    lines += [f"| {n} | {ms:,.2f} | {share:.1%} | {'█' * round(_BAR * share)} |" for n, ms, share in found.phases]
    lines += ["", f"| {found.kind} | ms | share | calls |", "| --- | ---: | ---: | ---: |"]
    for name, ms, share, calls in found.operators:
        label = name.replace("|", "\\|")
        lines.append(f"| {label} | {ms:,.2f} | {share:.1%} | {calls:.4g} |")
    return "\n".join([*lines, "", f"`{TRACE}` opens in chrome://tracing and in Perfetto.", ""])


def _total(events: list[Any]) -> float:
    """Microseconds of all steps."""
    return sum(e.cpu_time_total for e in events if e.key.startswith("ProfilerStep"))
