"""Metadata: the list of entries that captions are matched with, read from a file, from titles, or built from the pool's
own captions."""

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llip import storage
from llip.data import text_files
from pipelines import schema
from pipelines.stages import read
from pipelines.stages.columns import whole
from pipelines.stages.match.matcher import refuse_repetition
from pipelines.stages.options import MIN_PMI, MOST_ENTRIES
from pipelines.stages.read import Pool, files
from pipelines.stages.work import Partition, Stage, run

NAME = "metadata.json"
TEXT = "text"
"""Format of a corpus of .txt files."""
TEXT_LINES = 50_000
"""Lines that are counted at once."""
PARTS = 32
"""Tables of counts that are held before they are merged."""
COUNTED = pa.schema([("text", pa.string()), ("pair", pa.bool_()), ("count", pa.int64())])
"""A word, or two with a space between them, and how often it occurs."""
MIN_COUNT = 2
"""Occurrences of a word or pair that make it an entry, where nothing else is asked for."""
WORD = r"^[\p{L}\p{N}].*[\p{L}\p{N}]$|^[\p{L}\p{N}]$"
"""Form of an entry: it begins and ends with a letter or a digit."""


def load(uri: str) -> list[str]:
    """Entries of a JSON list or an object whose keys they are, of a text file with one entry a line or JSON Lines, also
    compressed by gzip, or of a Parquet file with one column of strings. Space around an entry, with which it would
    match nothing, is left out; that is printed.

    Raises ValueError naming the file, and the row, where it is none of these or an entry is no string, empty or a
    repetition.
    """
    if not storage.exists(uri):
        raise ValueError(
            f"{uri} does not exist; --metadata names a JSON list, text with an entry a line, or one-column Parquet"
        )
    content = storage.read_bytes(uri)
    try:
        entries = _parse(uri, content)
    except (ValueError, OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise ValueError(f"{uri} cannot be read as metadata: {error}") from error
    if not entries:
        raise ValueError(f"{uri} holds no entries")
    for i, entry in enumerate(entries):
        if not isinstance(entry, str) or not entry.strip() or not text_files.is_unicode(entry):
            raise ValueError(f"{uri}: entry {i} is {entry!r}; an entry is a string that is not empty")
    refuse_repetition(entries, uri)
    trimmed = [entry.strip() for entry in entries]
    if padded := [entry for entry, bare in zip(entries, trimmed, strict=True) if entry != bare]:
        print(f"{uri}: {len(padded):,} entries have space around them, which is left out, as in {padded[0]!r}")
    return list(dict.fromkeys(trimmed))


def _parse(uri: str, content: bytes) -> list[Any]:
    if uri.endswith(".gz"):
        return _parse(uri.removesuffix(".gz"), gzip.decompress(content))
    if uri.endswith((".csv", ".tsv")):
        raise ValueError("it may have several columns; name a text file with an entry a line")
    if uri.endswith(".jsonl"):
        return [json.loads(line) for line in text_files.lines(content, uri)]
    if uri.endswith(".parquet"):
        table = pq.read_table(pa.BufferReader(content))
        if table.num_columns != 1:
            raise ValueError(f"it has the columns {', '.join(table.column_names)}; one column of strings is needed")
        return table.column(0).to_pylist()
    if uri.endswith(".json"):
        text = text_files.decoded(content, uri)
        values = json.loads(text, object_pairs_hook=list)
        if not isinstance(values, list):
            raise ValueError(f"it holds a {type(values).__name__}; a list of strings or an object of them is needed")
        if not text.lstrip().startswith("{"):
            return values
        if nested := [key for key, value in values if isinstance(value, list)]:
            raise ValueError(
                f"{nested[0]!r} has a list; of lists for several languages each is a file: en.json, ja.json"
            )
        return [key for key, _ in values]
    return [*text_files.lines(content, uri)]


def titles(uri: str, min_views: int) -> list[str]:
    """Distinct titles of a text file with one a line, or a title, a tab and its page views.

    Titles with `min_views` stay, by falling views and else in the order of the file. Raises ValueError naming a line
    whose views are no number.
    """
    if not storage.exists(uri):
        raise ValueError(f"{uri} does not exist; --titles is a text file with a title a line")
    found: dict[str, int] = {}
    for number, line in text_files.numbered_lines(uri):
        title, tab, views = line.partition("\t")
        if tab and not views.strip().isdecimal():
            raise ValueError(f"{uri}, line {number}: {views!r} is no number of views")
        if title.strip():
            found[title.strip()] = max(found.get(title.strip(), 0), int(views) if tab else min_views)
    return sorted((title for title, views in found.items() if views >= min_views), key=lambda title: -found[title])


def open_corpus(uri: str, partition_rows: int) -> Pool:
    """Texts to count: .txt files with a text a line, or a pool with captions. Raises ValueError for neither."""
    found = files.find(uri)
    if any(files.suffix(f.name) != ".txt" for f in found):
        return read.open_pool(uri, partition_rows=partition_rows)
    partitions = tuple(Partition(index=i, file=f.uri, name=f.name, size=1) for i, f in enumerate(found))
    digest = files.identity(found)
    return Pool(
        uri=uri, format=TEXT, partitions=partitions, columns=schema.with_extras([]), noun="files", digest=digest
    )


def count_partition(partition: Partition, *, pool_format: str, folder: str) -> dict[str, Any]:
    """Count the words and pairs of neighbouring words of a partition's texts into `folder`."""
    parts: list[pa.Table] = []
    for texts in _texts(pool_format, partition):
        parts.append(_grams(texts))
        if len(parts) == PARTS:
            parts = [_merge(parts)]
    merged = _merge(parts)
    with storage.atomic_writer(_counts_name(folder, partition)) as file:
        pq.write_table(merged, file, compression="zstd")
    return {"words": pc.sum(pc.if_else(merged["pair"], 0, merged["count"])).as_py() or 0}


def _texts(pool_format: str, partition: Partition) -> Iterator[pa.StringArray]:
    if pool_format == TEXT:
        with storage.opened(partition.file) as handle:
            lines = io.TextIOWrapper(handle, "utf-8-sig", errors="replace", newline="\n")
            while block := list(islice(lines, TEXT_LINES)):
                yield pa.array(block, pa.string())
        return
    for table in read.tables(pool_format, partition, (schema.CAPTIONS,)):
        yield whole(table[schema.CAPTIONS]).flatten()


def of_corpus(corpus: Pool, *, folder: str, markers: str, min_count: int, min_pmi: float = MIN_PMI) -> list[str]:
    """`build` over all partitions of a corpus, counted by Ray into `folder`; markers: see `Stage`."""
    results = run(
        Stage(name="metadata", markers=markers, noun=corpus.noun),
        corpus.partitions,
        count_partition,
        sizes=[partition.size for partition in corpus.partitions],
        shared={"pool_format": corpus.format, "folder": folder},
    )
    words = sum(result["words"] for result in results)
    return build(corpus.partitions, folder=folder, words=words, min_count=min_count, min_pmi=min_pmi)


def build(
    partitions: Sequence[Partition], *, folder: str, words: int, min_count: int, min_pmi: float = MIN_PMI
) -> list[str]:
    """Entries by falling count: words, and pairs whose pointwise mutual information is at least `min_pmi` bits, seen
    `min_count` times or more.

    PMI of a pair (a, b) is log2(p(a b) / (p(a) p(b))) with probabilities relative to the number of words (Church and
    Hanks, 1990). A pure function of the texts.
    """
    table = _merge([_read_counts(folder, partition) for partition in partitions])
    texts, pairs, counts = (whole(table[name]) for name in ("text", "pair", "count"))
    single = dict(
        zip(texts.filter(pc.invert(pairs)).to_pylist(), counts.filter(pc.invert(pairs)).to_pylist(), strict=True)
    )
    frequent = table.filter(pc.greater_equal(table["count"], min_count))
    chosen: list[tuple[int, str]] = []
    for text, pair, count in zip(*(frequent[name].to_pylist() for name in ("text", "pair", "count")), strict=True):
        if pair:
            left, _, right = text.partition(" ")
            if np.log2(count * words / (single[left] * single[right])) < min_pmi:
                continue
        chosen.append((-count, text))
    if not chosen:
        raise ValueError(
            f"no word occurs {min_count} times in the captions; lower --metadata-min-count or give --metadata"
        )
    return [text for _, text in sorted(chosen)[:MOST_ENTRIES]]


def _grams(texts: pa.StringArray) -> pa.Table:
    """Words and pairs of words of texts with their counts. A pair never reaches over punctuation, since matching
    sees it as a token."""
    spaced = pc.replace_substring_regex(pc.fill_null(texts, ""), r"([,.;:?!`])", r" \1 ")
    lists = pc.split_pattern(pc.replace_substring_regex(spaced, r"[\t\n\r]", " "), " ")
    tokens = lists.flatten()
    parents = pc.list_parent_indices(lists)
    is_word = pc.match_substring_regex(tokens, WORD)
    neighbours = pc.and_(pc.equal(parents[1:], parents[:-1]), pc.and_(is_word[1:], is_word[:-1]))
    pairs = pc.binary_join_element_wise(tokens[:-1].filter(neighbours), tokens[1:].filter(neighbours), " ")
    return pa.concat_tables([_counted(tokens.filter(is_word), False), _counted(pairs, True)])


def _counted(texts: pa.Array, pair: bool) -> pa.Table:
    values = pc.value_counts(texts)
    return pa.table(
        {"text": values.field("values"), "pair": pa.repeat(pair, len(values)), "count": values.field("counts")}
    )


def _merge(parts: Sequence[pa.Table]) -> pa.Table:
    grouped = (
        pa.concat_tables([COUNTED.empty_table(), *parts])
        .group_by(["text", "pair"], use_threads=False)
        .aggregate([("count", "sum")])
    )
    return grouped.rename_columns(["text", "pair", "count"])


def _counts_name(folder: str, partition: Partition) -> str:
    return storage.join(folder, f"words-{partition.index:06d}.parquet")


def remove_counts(folder: str) -> None:
    """Remove what `count_partition` left."""
    for uri in storage.listing(folder, ".parquet"):
        if uri.rsplit("/", 1)[-1].startswith("words-"):
            storage.remove(uri)


def _read_counts(folder: str, partition: Partition) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read_bytes(_counts_name(folder, partition))))
