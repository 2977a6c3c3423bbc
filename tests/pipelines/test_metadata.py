"""Building metadata: counts and pointwise mutual information from hand-made numbers, lemmas, titles."""

from pathlib import Path

import pytest
from helpers.small_pools import pool_rows, write_parquet

from llip import storage
from pipelines.metadata import Metadata, build
from pipelines.stages.match import metadata, wordnet

WORDNET = Path("/usr/share/wordnet")
TEXT = ["new york is big", "new york, new haven", "is new york", "a red cat", "a red"]
"""16 words. "new york" occurs 3 times, "new" 4 and "york" 3 times: log2(3·16 / (4·3)) = 2 bits."""


def entries(output: Path) -> list[str]:
    found: list[str] = storage.read_json(f"{output}/{metadata.NAME}")
    assert metadata.load(f"{output}/{metadata.NAME}") == found
    return found


def corpus(folder: Path, files: int) -> str:
    folder.mkdir()
    for i in range(files):
        lines = TEXT[len(TEXT) * i // files : len(TEXT) * (i + 1) // files]
        (folder / f"{i}.txt").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


@pytest.mark.usefixtures("ray_session")
class TestCorpus:
    @pytest.mark.parametrize(
        ("min_count", "min_pmi", "expected"),
        [
            (3, 2.0, ["new", "new york", "york"]),
            (3, 2.01, ["new", "york"]),
            (2, 2.9, ["new", "york", "a", "a red", "is", "red"]),  # log2(2·16 / (2·2)) = 3 bits
            (2, 3.1, ["new", "york", "a", "is", "red"]),
        ],
    )
    def test_words_and_pairs_by_hand(self, tmp_path: Path, min_count: int, min_pmi: float, expected: list[str]) -> None:
        assert sum(len(line.replace(",", "").split()) for line in TEXT) == 16
        folder = corpus(tmp_path / "corpus", 2)
        build(Metadata(corpus=folder, output=str(tmp_path / "out"), min_count=min_count, min_pmi=min_pmi))
        assert entries(tmp_path / "out") == expected

    def test_files_do_not_change_the_list(self, tmp_path: Path) -> None:
        results = []
        for files in (1, 3):
            settings = Metadata(corpus=corpus(tmp_path / f"c{files}", files), output=str(tmp_path / f"o{files}"))
            results.append(build(Metadata(**vars(settings) | {"min_count": 1, "min_pmi": 0.5})))
        assert results[0].files == results[1].files

    def test_a_pool_is_a_corpus_too(self, tmp_path: Path) -> None:
        rows = pool_rows(60)
        build(Metadata(corpus=write_parquet(tmp_path / "pool", rows), output=str(tmp_path / "out"), min_count=30))
        words = [word for row in rows for text in row["captions"] for word in text.replace(",", "").split()]
        expected = {word for word in words if words.count(word) >= 30}
        assert {entry for entry in entries(tmp_path / "out") if " " not in entry} == expected

    def test_sources_follow_each_other_without_repetition(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "titles").write_text("New York\t500\nred\t90\nObscure\t3\nBig Cat\t900\n")
        settings = Metadata(
            wordnet=wordnet_folder(tmp_path / "wordnet"),
            corpus=corpus(tmp_path / "corpus", 1),
            titles=str(tmp_path / "titles"),
            output=str(tmp_path / "out"),
            min_count=2,
        )
        first = build(settings)
        assert entries(tmp_path / "out") == [
            *["physical entity", "Bank of England", "cat", "run", "red", "galore"],
            *["new", "york", "a", "a red", "is"],
            *["Big Cat", "New York"],
        ]
        assert first.summary == {"wordnet": 6, "corpus": 6, "titles": 3} and first.rows == 13
        capsys.readouterr()
        assert build(settings) == first and "already" in capsys.readouterr().out
        (tmp_path / "titles").write_text("Other\n")
        with pytest.raises(ValueError, match=r"other settings.*titles"):
            build(settings)


def wordnet_folder(folder: Path) -> str:
    """Files of a WordNet database with a few synsets."""
    folder.mkdir()
    licence = "  1 This software and database is being provided to you\n"
    synsets = {
        "noun": "00001930 03 n 01 physical_entity 0 001 ~ 00002452 n 0000 | an entity\n"
        "08349350 14 n 02 Bank_of_England 0 cat 1 000 | a bank\n",
        "verb": "01926311 38 v 01 run 0 000 01 + 02 00 | move fast\n",
        "adj": "00372111 00 s 02 red 0 galore(ip) 0 000 | of a colour\n",
        "adv": "",
    }
    for part, lines in synsets.items():
        (folder / f"data.{part}").write_text(licence + lines)
    return str(folder)


def test_lemmas_keep_their_case_and_lose_their_markers(tmp_path: Path) -> None:
    found = wordnet.lemmas(wordnet_folder(tmp_path / "wordnet"))
    assert found == ["physical entity", "Bank of England", "cat", "run", "red", "galore"]


@pytest.mark.slow
@pytest.mark.skipif(not WORDNET.exists(), reason="Debian's package wordnet-base is not installed")
def test_wordnet_itself() -> None:
    """WordNet 3.0 has 147,306 words, which its own index lists in small letters."""
    lines = [line for part in wordnet.PARTS for line in (WORDNET / f"index.{part}").read_text().splitlines()]
    listed = {line.partition(" ")[0].replace("_", " ") for line in lines if not line.startswith("  ")}
    found = wordnet.lemmas(str(WORDNET))
    assert {lemma.lower() for lemma in found} == listed and len(listed) == 147_306
    assert "Abraham Lincoln" in found and len(set(found)) == len(found)


def test_a_broken_database_is_refused(tmp_path: Path) -> None:
    folder = Path(wordnet_folder(tmp_path / "wordnet"))
    (folder / "data.verb").write_text("01926311 38 v 04 run 0\n")
    with pytest.raises(ValueError, match=r"data.verb, line 1 is no synset"):
        wordnet.lemmas(str(folder))
    (folder / "data.verb").unlink()
    with pytest.raises(ValueError, match=r"data.verb does not exist; --wordnet is the folder"):
        wordnet.lemmas(str(folder))


def test_titles_by_views(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("b\t70\na\t71\nb\t80\nc\t69\n\nplain\n")
    assert metadata.titles(str(tmp_path / "t"), 70) == ["b", "a", "plain"]
    (tmp_path / "t").write_text("a\tmany\n")
    with pytest.raises(ValueError, match="line 1: 'many' is no number of views"):
        metadata.titles(str(tmp_path / "t"), 70)


@pytest.mark.parametrize(
    ("values", "message"),
    [({}, "give --corpus, --wordnet or --titles"), ({"corpus": "x", "min_count": 0}, "--min-count is 0")],
)
def test_contradicting_settings_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Metadata(**values)  # type: ignore[arg-type]
