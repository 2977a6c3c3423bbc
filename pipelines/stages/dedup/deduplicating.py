"""Dropping copies of images: the pool's own, and those of evaluation sets."""

from dataclasses import replace
from functools import partial
from typing import Any

from llip import storage
from llip.data import manifest
from llip.data.manifest import Manifest
from pipelines.stages.dedup import duplicates, fingerprint
from pipelines.stages.dedup.duplicates import Level, Part
from pipelines.stages.filter.rules import ImageRules
from pipelines.stages.match import matching
from pipelines.stages.match.matched import Matched
from pipelines.stages.options import Dedup
from pipelines.stages.read import Pool
from pipelines.stages.work import Stage, counts, digest, run, spill

BIN_RECORDS = 1 << 20
"""Records of a bin, about: what one task holds."""


def without_copies(pool: Pool, matched: Matched, dedup: Dedup, image_rules: ImageRules) -> Matched:
    """The matches without those of rows that are copies; which rows are is kept beside the matches."""
    sets = dedup.sets()
    config = {
        "copies": dedup.copies,
        "distance": dedup.distance,
        "evaluation": [source.digest() for source in sets],
        "image_rules": repr(image_rules),
    }
    folder = storage.join(matched.folder, "copies", digest(config))
    if manifest.is_done(folder, "copies", config):
        print(f"{folder} says already which rows are copies")
        return replace(matched, counts=counts.read(storage.join(folder, matching.COUNTS)), dropped=folder)
    progress = storage.join(folder, "progress")
    _resolve(pool, matched, dedup, image_rules, [source.uri for source in sets], folder, progress)
    entries_of = partial(matching.matched_entries, folder=matched.folder, dropped=folder)
    left = counts.total(pool.units, entries_of, len(matched.entries))
    counts.write(folder, matching.COUNTS, left)
    manifest.write(folder, Manifest(kind="copies", files=(), config=config))
    storage.remove(progress)
    return replace(matched, counts=left, dropped=folder)


def _resolve(
    pool: Pool,
    matched: Matched,
    dedup: Dedup,
    image_rules: ImageRules,
    sets: list[str],
    folder: str,
    progress: str,
) -> None:
    """The three passes of `copies`."""
    kinds = levels(dedup, matched.rows)
    bins = -(-matched.rows * sum(len(kind.masks) for kind in kinds) // BIN_RECORDS)
    shared: dict[str, Any] = {"folder": progress, "levels": kinds}
    reading = {"matches": matched.folder, "pool_format": pool.format, "image_rules": image_rules}
    sizes = [unit.size for unit in pool.units]
    of_units = run(
        Stage(name="fingerprint", markers=progress, noun=pool.noun),
        pool.units,
        duplicates.fingerprint_unit,
        sizes=sizes,
        shared=shared | reading | {"bins": bins},
    )
    of_sets = []
    if sets:
        of_sets = run(
            Stage(name="fingerprint-sets", markers=progress, noun="sets"),
            list(enumerate(sets)),
            duplicates.fingerprint_evaluation,
            sizes=[1] * len(sets),
            shared=shared | {"bins": bins},
        )
    shared |= {"copies": dedup.copies}
    lost = run(
        Stage(name="compare", markers=progress, noun="bins"),
        _parts(progress, {"unit": of_units, "evaluation": of_sets}, [0] * bins),
        duplicates.compare_bin,
        sizes=[1] * bins,
        shared=shared | {"units": len(pool.units)},
    )
    run(
        Stage(name="resolve", markers=progress, noun=pool.noun),
        _parts(progress, {"lost": lost}, [result["rows"] for result in of_units]),
        duplicates.resolve_unit,
        sizes=sizes,
        shared=shared | {"folder": folder, "progress": progress},
    )


def levels(dedup: Dedup, rows: int) -> list[Level]:
    """What is compared in a pool of so many rows."""
    found = [Level(reason="duplicate", distance=0, masks=fingerprint.masks(0, rows))]
    if dedup.distance is not None:
        masks = fingerprint.masks(dedup.distance, rows)
        found.append(Level(reason="near_duplicate", distance=dedup.distance, masks=masks))
    return found


def _parts(folder: str, results: dict[str, list[dict[str, Any]]], rows: list[int]) -> list[Part]:
    """Where each part of the next pass lies in what the last one wrote, by the name of its files."""
    files = [
        storage.join(folder, duplicates.spill_name(name, i)) for name, of in results.items() for i in range(len(of))
    ]
    ends = spill.ends([result["bytes"] for of in results.values() for result in of])
    return [Part(index=i, pieces=spill.pieces(files, ends, i, i), rows=n) for i, n in enumerate(rows)]
