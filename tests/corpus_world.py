"""Corpora and what is in them, for tests."""

import json
from pathlib import Path

from small_text import make_corpus

from vlbert_data.corpus import CorpusFolder
from vlbert_data.corpus_build import CorpusResult
from vlbert_data.tokenizer import load_tokenizer


def build(source: Path, vocabulary: Path, out: Path, **settings: object) -> CorpusResult:
    return make_corpus([source], vocabulary, out, **settings).run()


def documents_in(folder: Path) -> list[list[int]]:
    """Return the ids of every document of a corpus."""
    corpus = CorpusFolder.open(folder)
    found = []
    for number in range(corpus.num_files):
        file = corpus.file(number)
        found += [file.ids[a:b].tolist() for a, b in zip(file.offsets, file.offsets[1:], strict=False)]
    return found


def tokenised_whole(documents: list[str], vocabulary: Path) -> list[list[int]]:
    runs = load_tokenizer(vocabulary).encode(documents)
    return [runs.ids[a:b].tolist() for a, b in zip(runs.cu_lengths, runs.cu_lengths[1:], strict=False)]


def contents(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def rejects_of(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text().splitlines()]
