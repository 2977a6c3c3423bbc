"""Drops duplicates of images: those inside the pool, and those of the images of evaluation sets."""

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
from pipelines.stages.work import Stage, counts, digest, intermediate, run, spill

BIN_RECORDS = 1 << 20
"""Records of a bin, about: what one task holds."""


def without_duplicates(pool: Pool, matched: Matched, dedup: Dedup, image_rules: ImageRules) -> Matched:
    """The matches without those of duplicates; which rows these are is kept beside the matches."""
    sets = dedup.sets()
    config = {
        "duplicates": dedup.duplicates,
        "distance": dedup.distance,
        "evaluation": [source.digest() for source in sets],
        "image_rules": repr(image_rules),
    }
    folder = storage.join(matched.folder, "duplicates", digest(config))
    if manifest.is_done(folder, "duplicates", config):
        print(f"{folder} says already which rows are duplicates")
        return replace(matched, counts=intermediate.read_array(storage.join(folder, matching.COUNTS)), dropped=folder)
    progress = storage.join(folder, "progress")
    _resolve(pool, matched, dedup, image_rules, [source.uri for source in sets], folder, progress)
    entries_of = partial(matching.matched_entries, folder=matched.folder, dropped=folder)
    left = counts.total(pool.partitions, entries_of, len(matched.entries))
    intermediate.write_array(folder, matching.COUNTS, left)
    manifest.write(folder, Manifest(kind="duplicates", files=(), config=config))
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
    """The three passes of `duplicates`."""
    kinds = levels(dedup, matched.rows)
    bins = -(-matched.rows * sum(len(kind.masks) for kind in kinds) // BIN_RECORDS)
    shared: dict[str, Any] = {"folder": progress, "levels": kinds}
    reading = {"matches": matched.folder, "pool_format": pool.format, "image_rules": image_rules}
    sizes = [partition.size for partition in pool.partitions]
    of_partitions = run(
        Stage(name="fingerprint", markers=progress, noun=pool.noun),
        pool.partitions,
        duplicates.fingerprint_partition,
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
    shared |= {"duplicates": dedup.duplicates}
    dropped = run(
        Stage(name="compare", markers=progress, noun="bins"),
        _parts(progress, {"partition": of_partitions, "evaluation": of_sets}, [0] * bins),
        duplicates.compare_bin,
        sizes=[1] * bins,
        shared=shared | {"partitions": len(pool.partitions)},
    )
    run(
        Stage(name="resolve", markers=progress, noun=pool.noun),
        _parts(progress, {"dropped": dropped}, [result["rows"] for result in of_partitions]),
        duplicates.resolve_partition,
        sizes=sizes,
        shared=shared | {"folder": folder, "progress": progress},
    )


def levels(dedup: Dedup, rows: int) -> list[Level]:
    """Fingerprints that are compared in a pool of so many rows."""
    found = [Level(reason="duplicate", distance=0, masks=fingerprint.masks(0, rows))]
    if dedup.distance is not None:
        masks = fingerprint.masks(dedup.distance, rows)
        found.append(Level(reason="near_duplicate", distance=dedup.distance, masks=masks))
    return found


def _parts(folder: str, results: dict[str, list[dict[str, Any]]], rows: list[int]) -> list[Part]:
    """Parts of the next pass: for each, its pieces of the files that the last pass wrote."""
    files = [
        storage.join(folder, duplicates.spill_name(name, i)) for name, of in results.items() for i in range(len(of))
    ]
    ends = spill.ends([result["bytes"] for of in results.values() for result in of])
    return [Part(index=i, pieces=spill.pieces(files, ends, i, i), rows=n) for i, n in enumerate(rows)]
