"""Windows of a corpus against a slow version that walks over every token."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from small_text import make_corpus, make_text, write_vocabulary

from vlbert_data.corpus import CorpusFolder
from vlbert_data.errors import ConfigError, ShardError
from vlbert_data.windows import BLOCK, Policy, open_windows

LENGTHS = ((64, 8), (16, 1), (10, 10), (3, 1), (1, 1), (100, 60))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> CorpusFolder:
    root = tmp_path_factory.mktemp("corpus")
    (root / "novel.txt").write_bytes(make_text(7, 3 * BLOCK).encode())
    build = make_corpus([root / "novel.txt"], write_vocabulary(root / "vocab.txt"), root / "out", unit_bytes=8192)
    build.run()
    found = CorpusFolder.open(root / "out")
    assert found.num_files > 2
    assert found.manifest.files[0].documents > BLOCK // 4
    return found


def borders_of_documents(corpus: CorpusFolder) -> list[tuple[int, int]]:
    borders = []
    for number in range(corpus.num_files):
        offsets = (corpus.file(number).offsets + corpus.file_starts[number]).tolist()
        borders += list(itertools.pairwise(offsets))
    return borders


def words_of(corpus: CorpusFolder) -> list[bool]:
    files = (corpus.file(number) for number in range(corpus.num_files))
    return [bool(word) for file in files for word in file.starts_word(0, file.num_tokens)]


def slow_document_windows(corpus: CorpusFolder, length: int, least: int) -> list[tuple[int, int]]:
    """Cut each document evenly, then move each cut back to the begin of a word, if one is at most `slack` before."""
    slack, words, found = min(4, length // 4), words_of(corpus), []
    for start, stop in borders_of_documents(corpus):
        size = stop - start
        if size < least:
            continue
        parts = 1 if size <= length else -(-size // (length - slack))
        cuts = [start]
        for part in range(1, parts):
            cut = start + part * size // parts
            near = [place for place in range(cut, cut - slack - 1, -1) if words[place]]
            cuts.append(near[0] if near else cut)
        found += list(itertools.pairwise([*cuts, stop]))
    return found


@pytest.mark.parametrize(("length", "least"), LENGTHS)
def test_documents_are_cut_as_the_slow_version_cuts_them(corpus: CorpusFolder, length: int, least: int) -> None:
    index = open_windows(corpus, length=length, policy="document", min_tokens=least)
    expected = slow_document_windows(corpus, length, least)
    assert len(index) == len(expected)
    starts, stops = index.spans(np.arange(len(index)))
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == expected
    assert all(1 <= stop - start <= length for start, stop in expected)
    left_out = corpus.num_tokens - sum(stop - start for start, stop in expected)
    assert index.tokens_left_out == left_out == sum(b - a for a, b in borders_of_documents(corpus) if b - a < least)


def test_any_windows_in_any_order_are_those_of_all(corpus: CorpusFolder) -> None:
    for policy in ("document", "flat", "lines-joined"):
        index = open_windows(corpus, length=20, policy=policy)
        starts, stops = index.spans(np.arange(len(index)))
        chosen = np.random.default_rng(0).integers(0, len(index), 300)
        some_starts, some_stops = index.spans(chosen)
        np.testing.assert_array_equal(some_starts, starts[chosen])
        np.testing.assert_array_equal(some_stops, stops[chosen])
        for number in chosen[:20]:
            one_start, one_stop = index.spans(np.array([number]))
            assert (one_start[0], one_stop[0]) == (starts[number], stops[number])


@pytest.mark.parametrize(("length", "least"), LENGTHS)
def test_flat_windows_are_slices_of_the_whole_corpus(corpus: CorpusFolder, length: int, least: int) -> None:
    index = open_windows(corpus, length=length, policy="flat", min_tokens=least)
    total = corpus.num_tokens
    expected = [(start, min(start + length, total)) for start in range(0, total, length)]
    expected = [(start, stop) for start, stop in expected if stop - start >= least]
    starts, stops = index.spans(np.arange(len(index)))
    assert list(zip(starts.tolist(), stops.tolist(), strict=True)) == expected
    assert index.tokens_left_out == total - sum(stop - start for start, stop in expected)


def test_joined_lines_are_the_text_from_every_line_on(corpus: CorpusFolder) -> None:
    index = open_windows(corpus, length=64, policy="lines-joined")
    files = [corpus.file(number) for number in range(corpus.num_files)]
    ids = np.concatenate([file.ids for file in files]).tolist()
    begins = [
        int(start) + int(first)
        for file, first in zip(files, corpus.file_starts, strict=False)
        for start in file.line_starts
    ]
    assert len(index) == len(begins) == corpus.manifest.num_lines
    runs = corpus.gather(*index.spans(np.arange(len(index))))
    twice = ids + ids
    for number, begin in enumerate(begins):
        window = runs.ids[runs.cu_lengths[number] : runs.cu_lengths[number + 1]]
        assert window.tolist() == twice[begin : begin + 64]
    lines = np.diff([*begins, corpus.num_tokens])
    assert index.tokens_left_out == np.maximum(lines - 64, 0).sum()


def test_windows_that_make_no_sense_are_refused(corpus: CorpusFolder) -> None:
    for length, least in ((0, 1), (8, 0), (8, 9)):
        with pytest.raises(ConfigError, match="needed: 1 <= least <= most"):
            open_windows(corpus, length=length, min_tokens=least)
    unknown: Policy = "pages"  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="there is no window policy 'pages'; there are document, flat, lines-joined"):
        open_windows(corpus, length=8, policy=unknown)
    with pytest.raises(ShardError, match=r"give no window of 5000 to 5000 tokens \(document\)\. Take shorter windows"):
        open_windows(corpus, length=5000, min_tokens=5000)


def test_many_documents_cost_an_index_of_a_fraction_of_their_number(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("the sea\n" * 200_000)
    make_corpus(
        [tmp_path / "many.txt"],
        write_vocabulary(tmp_path / "vocab.txt"),
        tmp_path / "out",
        document="line",
        unit_bytes=1 << 20,
    ).run()
    index = open_windows(CorpusFolder.open(tmp_path / "out"), length=64, min_tokens=1)
    assert len(index) == 200_000
    assert index.block_windows.nbytes < 8 * (200_000 // BLOCK + 10)  # type: ignore[attr-defined]
    starts, stops = index.spans(np.arange(0, 200_000, 111))
    np.testing.assert_array_equal(starts, np.arange(0, 400_000, 222))
    np.testing.assert_array_equal(stops, starts + 2)
