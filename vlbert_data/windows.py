"""Windows: which runs of a corpus's tokens are examples. Promise: window i is arithmetic, the same on every machine.

Three policies, all O(log n) a window and computed for many windows at once; none keeps anything for each window:

    document      each document is cut into windows of nearly equal length; every token of it is in exactly one
    flat          the whole corpus is cut every `length` tokens, across documents
    lines-joined  a window begins at every line and takes in the following lines; so windows overlap
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from vlbert_data import runs
from vlbert_data.addresses import address
from vlbert_data.copies import copy_runs
from vlbert_data.corpus import CorpusFolder
from vlbert_data.errors import ConfigError, ShardError
from vlbert_data.types import Array

Policy = Literal["document", "flat", "lines-joined"]
POLICIES: tuple[Policy, ...] = ("document", "flat", "lines-joined")
# A cut is moved back by up to so many tokens to the begin of a word; words of more pieces are rare and may be cut.
WORD_SLACK = 4
# Documents that share one entry of the index: 64 make it 1/64 of the documents' number, and are scanned at once.
BLOCK = 64
# The number of the highest bit of 0 .. 2^(WORD_SLACK + 1) - 1.
HIGHEST_BIT = np.array([number.bit_length() - 1 for number in range(2 << WORD_SLACK)])
CHUNK_DOCUMENTS = BLOCK << 14


class WindowIndex(Protocol):
    """Windows 0 .. len - 1 of a corpus."""

    def __len__(self) -> int:
        """Return the number of windows."""
        ...

    @property
    def tokens_left_out(self) -> int:
        """Return how many of the corpus's tokens are in no window."""
        ...

    def spans(self, windows: Array) -> tuple[Array, Array]:
        """Return for window numbers int64 [n] (starts, stops), int64 [n] each: positions for `CorpusFolder.gather`.

        A window has 1 to `length` tokens. Its first token may continue a word whose begin is in another window.
        """
        ...


def open_windows(corpus: CorpusFolder, *, length: int, policy: Policy = "document", min_tokens: int = 8) -> WindowIndex:
    """Return the windows of at most `length` tokens of a corpus; shorter remains than `min_tokens` are left out.

    document: a document is cut into as few windows as word borders allow, all about equally long; documents shorter
    than `min_tokens` are left out. flat: only the last window may be shorter. lines-joined: every line begins a window
    of exactly `length` tokens, and after the last line comes the first one. Source: VL-BERT's released text corpus
    joins lines until they have at least 64 words and then cuts at 64 tokens; a word is at least one token.

    Raises:
        ConfigError: an unknown policy, or lengths that make no sense.
        ShardError: a corpus file that is missing or damaged, or a corpus that gives not one window.
    """
    if length < 1 or min_tokens < 1 or min_tokens > length:
        raise ConfigError(f"text windows of {min_tokens} to {length} tokens; needed: 1 <= least <= most.")
    index: WindowIndex
    if policy == "document":
        index = DocumentWindows.of(corpus, length, min_tokens)
    elif policy == "flat":
        index = FlatWindows(num_tokens=corpus.num_tokens, length=length, min_tokens=min_tokens)
    elif policy == "lines-joined":
        index = LineWindows(corpus=corpus, length=length, line_counts=_line_counts(corpus))
    else:
        raise ConfigError(f"there is no window policy {policy!r}; there are {', '.join(POLICIES)}.")
    if len(index) == 0:
        raise ShardError(
            f"{corpus.path}: {corpus.num_tokens} tokens in {corpus.manifest.num_documents} documents give no window of "
            f"{min_tokens} to {length} tokens ({policy}). Take shorter windows, or let them cross documents."
        )
    return index


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatWindows:
    """Window i is [i * length, (i + 1) * length), whatever documents it crosses."""

    num_tokens: int
    length: int
    min_tokens: int

    def __len__(self) -> int:
        return (self.num_tokens + self.length - self.min_tokens) // self.length

    @property
    def tokens_left_out(self) -> int:
        """Return the tokens of a last window that would be too short."""
        return max(0, self.num_tokens - len(self) * self.length)

    def spans(self, windows: Array) -> tuple[Array, Array]:
        """Return (starts, stops) of windows int64 [n]."""
        starts = np.asarray(windows, np.int64) * self.length
        return starts, np.minimum(starts + self.length, self.num_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class LineWindows:
    """Window i is `length` tokens from the begin of line i; line_counts: int64 [files + 1], lines before each file."""

    corpus: CorpusFolder
    length: int
    line_counts: Array = field(repr=False)

    def __len__(self) -> int:
        return int(self.line_counts[-1])

    @property
    def tokens_left_out(self) -> int:
        """Return the tokens that no window reaches because their line is longer than a window."""
        left_out = 0
        for number, entry in enumerate(self.corpus.manifest.files):
            borders = np.append(self.corpus.file(number).line_starts, entry.tokens).astype(np.int64)
            left_out += int(np.maximum(np.diff(borders) - self.length, 0).sum())
        return left_out

    def spans(self, windows: Array) -> tuple[Array, Array]:
        """Return (starts, stops) of windows int64 [n]; stops may pass the end, where the corpus begins again."""
        windows = np.asarray(windows, np.int64)
        files = np.searchsorted(self.line_counts, windows, side="right") - 1
        lines = windows - self.line_counts[files]
        begins = np.empty(len(lines), np.uint32)
        size = np.full(len(lines), begins.itemsize)
        sources = self.corpus.origins(files)[:, 3] + begins.itemsize * lines
        copy_runs(address(begins) + runs.borders(size)[:-1], sources, size)
        starts = self.corpus.file_starts[files] + begins
        return starts, starts + self.length


def _line_counts(corpus: CorpusFolder) -> Array:
    counts = np.zeros(corpus.num_files + 1, np.int64)
    np.cumsum([entry.lines for entry in corpus.manifest.files], out=counts[1:])
    return counts


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentWindows:
    """Documents of n tokens in w windows; window k is [k n / w, (k + 1) n / w), its ends moved back to word borders.

    blocks of up to BLOCK documents of one file: block_windows int64 [blocks + 1], the number of each block's first
    window; block_file, block_document int64 [blocks], where its first document is.
    """

    corpus: CorpusFolder
    length: int
    min_tokens: int
    tokens_left_out: int
    block_windows: Array = field(repr=False)
    block_file: Array = field(repr=False)
    block_document: Array = field(repr=False)

    @staticmethod
    def of(corpus: CorpusFolder, length: int, min_tokens: int) -> "DocumentWindows":
        """Return the windows of a corpus, reading its documents' offsets once, 8 bytes a document."""
        windows, places, left_out = [np.zeros(1, np.int64)], [np.zeros((0, 2), np.int64)], 0
        for number in range(corpus.num_files):
            for first, lengths in _chunks_of_lengths(corpus.file(number).offsets):
                counts = _window_counts(lengths, length, min_tokens)
                left_out += int(lengths[counts == 0].sum())
                begins = np.arange(0, len(lengths), BLOCK)
                windows.append(np.add.reduceat(counts, begins))
                places.append(np.stack([np.full(len(begins), number), first + begins], axis=1))
        block_places = np.concatenate(places)
        return DocumentWindows(
            corpus=corpus,
            length=length,
            min_tokens=min_tokens,
            tokens_left_out=left_out,
            block_windows=np.cumsum(np.concatenate(windows)),
            block_file=block_places[:, 0],
            block_document=block_places[:, 1],
        )

    def __len__(self) -> int:
        return int(self.block_windows[-1])

    def spans(self, windows: Array) -> tuple[Array, Array]:
        """Return (starts, stops) of windows int64 [n]; no window leaves its document."""
        windows = np.asarray(windows, np.int64)
        blocks = np.searchsorted(self.block_windows, windows, side="right") - 1
        offsets = self._offsets(blocks)  # [n, BLOCK + 1]
        lengths = np.diff(offsets, axis=1)  # [n, BLOCK]
        counts = _window_counts(lengths, self.length, self.min_tokens)
        ends = np.cumsum(counts, axis=1)
        inside = windows - self.block_windows[blocks]
        document = (ends <= inside[:, None]).sum(axis=1)
        rows = np.arange(len(windows))
        num_windows = counts[rows, document]
        number = inside - ends[rows, document] + num_windows  # 0 .. num_windows - 1 in its document
        begin, num_tokens = offsets[rows, document], lengths[rows, document]
        cuts = np.stack([number, number + 1]) * num_tokens // num_windows  # [2, n]
        inner = (cuts > 0) & (cuts < num_tokens)
        starts, stops = cuts + begin
        for span, moves in ((starts, inner[0]), (stops, inner[1])):
            self._move_back(span, moves, self.block_file[blocks])
        return starts, stops

    def _offsets(self, blocks: Array) -> Array:
        """Return positions int64 [n, BLOCK + 1] of the borders of each block's documents, the last one repeated."""
        files, first = self.block_file[blocks], self.block_document[blocks]
        documents = np.array([entry.documents for entry in self.corpus.manifest.files])
        num = np.minimum(BLOCK, documents[files] - first) + 1  # [n], borders of documents in each block
        offsets = np.empty((len(blocks), BLOCK + 1), np.int64)
        size = offsets.itemsize
        targets = address(offsets) + offsets.strides[0] * np.arange(len(blocks))
        copy_runs(targets, self.corpus.origins(files)[:, 2] + size * first, size * num)
        if (num <= BLOCK).any():
            last = offsets[np.arange(len(blocks)), num - 1]
            offsets = np.where(np.arange(BLOCK + 1) < num[:, None], offsets, last[:, None])
        offsets += self.corpus.file_starts[files][:, None]
        return offsets

    def _move_back(self, positions: Array, moves: Array, files: Array) -> None:
        """Move those of `positions` int64 [n] where `moves` bool [n] to the begin of a word, if one is near."""
        rows = np.flatnonzero(moves)
        slack, files = _slack(self.length), files[rows]
        places = positions[rows] - self.corpus.file_starts[files]
        # A cut lies more than the slack behind its document's first token: see `_window_counts`.
        low = places - slack
        first = low >> 3
        # The bits of up to 5 tokens, in one byte or two.
        bits = np.zeros(len(rows), np.dtype("<u2"))
        targets = address(bits) + bits.itemsize * np.arange(len(rows))
        copy_runs(targets, self.corpus.origins(files)[:, 1] + first, (places >> 3) - first + 1)
        begins = (bits >> (low & 7)) & ((1 << slack + 1) - 1)
        positions[rows] -= np.where(begins > 0, slack - HIGHEST_BIT[begins], 0)


def _slack(length: int) -> int:
    return min(WORD_SLACK, length // 4)


def _window_counts(lengths: Array, length: int, min_tokens: int) -> Array:
    """Return int64, the number of windows for documents of `lengths` tokens, any shape.

    Cuts move back by up to the slack, so windows are planned at most `length` - slack long; a window that begins and
    ends with its document has no cut and may have the full length.
    """
    counts = -(-lengths // (length - _slack(length)))
    return np.where(lengths < min_tokens, 0, np.where(lengths <= length, 1, counts))


def _chunks_of_lengths(offsets: Array) -> Iterator[tuple[int, Array]]:
    """Yield (first document, int64 lengths) for chunks of a file's documents, whole blocks but for the last."""
    for first in range(0, len(offsets) - 1, CHUNK_DOCUMENTS):
        yield first, np.diff(offsets[first : first + CHUNK_DOCUMENTS + 1])
