"""A small tokenizer, texts with everything that texts have, and corpora made of them."""

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlbert_data.corpus_build import CorpusBuild, CorpusSettings
from vlbert_data.synthetic import COLOURS, SHAPES
from vlbert_data.tokenizer import load_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("the", "a", "in", "picture", "said", "times", "and", "sea", "town", "old", "captain", "went", "slowly")


def write_vocabulary(path: Path) -> Path:
    """Write a vocab.txt that knows some words, and every other word of ASCII letters and digits in pieces."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    signs = [*LETTERS, *"0123456789", *".,;'-"]
    pieces = [f"##{sign}" for sign in signs] + ["##ing", "##ed", "##ly"]
    path.write_text("\n".join([*special, *signs, *pieces, *WORDS, *COLOURS, *SHAPES]) + "\n")
    return path


def make_text(seed: int, num_documents: int) -> str:
    """Return documents separated by blank lines: several lines each, long words, trailing spaces, wide characters."""
    rng = random.Random(seed)
    return "\n\n".join(_document(rng) for _ in range(num_documents)) + "\n"


def _document(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(1, 6)):
        own = [rng.choice(WORDS) for _ in range(rng.randint(1, 12))]
        own += ["".join(rng.choices(LETTERS, k=rng.randint(3, 9))) for _ in range(rng.randint(0, 3))]
        rng.shuffle(own)
        lines.append(" ".join(own) + rng.choice(("", ".", " ", "\r", " \u4e16\u754c", " caf\u00e9")))
    return "\n".join(lines)


def documents_of(text: str) -> list[str]:
    """Return the documents of a text the slow way."""
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def make_corpus(inputs: Sequence[Path], vocabulary: Path, out: Path, **settings: Any) -> CorpusBuild:
    """Return a build of a corpus; `settings` are fields of CorpusSettings."""
    return CorpusBuild(
        folder=out,
        inputs=[str(path) for path in inputs],
        tokenizer=load_tokenizer(vocabulary),
        settings=CorpusSettings(**{"unit_bytes": 1024, **settings}),
    )


if __name__ == "__main__":
    # A build in a process of its own, for tests that kill it: INPUT VOCABULARY OUT SETTINGS_JSON
    make_corpus([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]), **json.loads(sys.argv[4])).run()
