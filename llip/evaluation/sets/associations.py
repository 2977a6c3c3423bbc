"""WinoGAViL as it was published (Bitton et al., NeurIPS 2022): `winogavil_dataset.csv`, and the images of
`winogavil_images.zip`, unpacked, beside or below it.

A row has a `cue`, `candidates` and `associations`; both are JSON lists of names. The image of a name is `<name>.jpg`.
The caption is the cue in small letters with an article before it, as in DataComp's evaluation (Gadre et al., NeurIPS
2023).
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from llip import storage
from llip.data import text_files
from llip.evaluation.sets import image_references, names
from llip.evaluation.sets.evaluation_set import COLUMNS, EvaluationSet

LIST = re.compile(r"(.*/)?winogavil_dataset\.csv")
FIELDS = ("cue", "candidates", "associations")
IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def roots(uri: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    for path in files:
        if LIST.fullmatch(path):
            folder = path.rpartition("/")[0]
            yield folder, names.of_set(uri, folder)


def read(uri: str, name: str, files: Sequence[str]) -> EvaluationSet:
    listed = storage.join(uri, next(path for path in files if LIST.fullmatch(path) and "/" not in path))
    places = {path.rpartition("/")[2].rpartition(".")[0]: f"{uri}/{path}" for path in files if path.endswith(IMAGES)}
    dealt: dict[str, list[tuple[str, int, bool]]] = {}
    for number, (cue, candidates, associations) in enumerate(_rows(listed)):
        for image in candidates:
            dealt.setdefault(image, []).append((cue, number, image in associations))
    if missing := [image for image in dealt if image not in places]:
        raise ValueError(
            f"{listed} names {missing[0]}, whose image ({missing[0]}.jpg) is nowhere beside or below it "
            f"({len(missing)} of {len(dealt)} miss); winogavil_images.zip has to be unpacked there"
        )
    references = [{"uri": places[image], "offset": 0, "size": None} for image in dealt]
    columns = {
        column: pa.array([[entry[place] for entry in of_image] for of_image in dealt.values()], kind)
        for place, (column, kind) in enumerate(list(COLUMNS["association"].items())[1:])
    }
    table = pa.table({"image": pa.array(references, image_references.PART)} | columns)
    return EvaluationSet(name=name, task="association", table=table)


def _rows(file: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Caption, candidates and associations of each row. Raises ValueError naming file, row and field."""
    reader = csv.DictReader(io.StringIO(text_files.decoded(storage.read_bytes(file), file), newline=""))
    if missing := [field for field in FIELDS if field not in (reader.fieldnames or ())]:
        raise ValueError(f"{file} needs the columns {', '.join(FIELDS)}; {missing[0]} is missing")
    for number, row in enumerate(reader):
        where = f"{file}, row {number}"
        candidates, associations = (_names(where, field, row[field]) for field in FIELDS[1:])
        cue = (row["cue"] or "").strip().lower()
        if not cue or not set(associations) < set(candidates):
            raise ValueError(
                f"{where}: cue {cue!r}, candidates {row['candidates']}, associations {row['associations']}; a row "
                "needs a cue, and some of its candidates, not all, as associations"
            )
        yield f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}", candidates, associations


def _names(where: str, field: str, text: str | None) -> list[str]:
    try:
        found: Any = json.loads(text or "")
    except ValueError:
        found = None
    names_alone = isinstance(found, list) and all(isinstance(name, str) and name for name in found)
    if not names_alone or not found or len(set(found)) < len(found):
        raise ValueError(
            f'{where}: {field} is {text!r}; it has to be a JSON list of distinct names, as ["ash", "eagle"]'
        )
    return list(found)
