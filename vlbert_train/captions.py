"""Caption examples: which caption of which image is example number i. Promise: arithmetic over the index, no list.

The images of all folders count as one row, those that were not chosen left out; so do their captions. An image with
five captions gives five examples, one after another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from vlbert_data import runs
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.token_file import TokenRuns
from vlbert_data.types import Array
from vlbert_train.hashing import mix, uniforms
from vlbert_train.tokens import TokenCache

# An odd number: a polynomial in it over the bytes of an id, modulo 2^64, mixed at the end, is the id's hash.
ID_BASE = np.uint64(0x9E3779B97F4A7C15)
IDS_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """Where n caption examples lie: folder, image in it and caption in it (its row in the token cache), int64 [n]."""

    folder: Array
    image: Array
    row: Array


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """The chosen images of one folder. chosen: int64 [m], none for all. cu_examples: int64 [m + 1], of chosen ones.

    cu_rows: int64 [images + 1], captions before each image of the folder.
    """

    folder: ShardFolder
    cache: TokenCache
    chosen: Array | None = field(repr=False)
    cu_examples: Array = field(repr=False)
    cu_rows: Array = field(repr=False)

    @property
    def num_images(self) -> int:
        return len(self.cu_examples) - 1

    def image(self, number: Array) -> Array:
        return number if self.chosen is None else self.chosen[number]


class CaptionSet:
    """Examples 0 .. len - 1. Safe to use from several threads."""

    def __init__(self, parts: Sequence[tuple[ShardFolder, TokenCache, Array | None]]) -> None:
        """Take folders with their caches and the images chosen of each, int64 rising, or all."""
        self._parts = [_part(*part) for part in parts]
        self._first_examples = runs.borders(np.array([part.cu_examples[-1] for part in self._parts], np.int64))
        self._first_images = runs.borders(np.array([part.num_images for part in self._parts], np.int64))

    def __len__(self) -> int:
        return int(self._first_examples[-1])

    @property
    def num_images(self) -> int:
        """Return the number of chosen images."""
        return int(self._first_images[-1])

    @property
    def folders(self) -> list[ShardFolder]:
        """Return the folders by number."""
        return [part.folder for part in self._parts]

    def shard_sizes(self) -> Array:
        """Return int64 [shards of all folders]: how many examples lie in each."""
        sizes = [np.zeros(0, np.int64)]
        for part in self._parts:
            # Images come in the order of shards, so the examples of a shard lie between two borders.
            shards = part.folder.index.shard if part.chosen is None else part.folder.index.shard[part.chosen]
            borders = np.searchsorted(shards, np.arange(len(part.folder.manifest.shards) + 1))
            sizes.append(np.diff(part.cu_examples[borders]))
        return np.concatenate(sizes)

    def locate(self, examples: Array) -> Located:
        """Return where examples, int64 [n], lie."""
        folder, image, row = (np.empty(len(examples), np.int64) for _ in range(3))
        folder[:] = np.searchsorted(self._first_examples, examples, side="right") - 1
        for number, part, inside in self._groups(folder):
            own = examples[inside] - self._first_examples[number]
            place = np.searchsorted(part.cu_examples, own, side="right") - 1
            image[inside] = part.image(place)
            row[inside] = part.cu_rows[image[inside]] + own - part.cu_examples[place]
        return Located(folder=folder, image=image, row=row)

    def other_images(self, examples: Array) -> tuple[Array, Array]:
        """Return for examples int64 [n] (folder, image), int64 [n] each: of another image, half the set away.

        There must be two images at least.
        """
        folder = np.searchsorted(self._first_examples, examples, side="right") - 1
        number = np.empty(len(examples), np.int64)
        for which, part, inside in self._groups(folder):
            own = examples[inside] - self._first_examples[which]
            number[inside] = np.searchsorted(part.cu_examples, own, side="right") - 1 + self._first_images[which]
        number = (number + self.num_images // 2) % self.num_images
        other = np.searchsorted(self._first_images, number, side="right") - 1
        image = np.empty(len(examples), np.int64)
        for which, part, inside in self._groups(other):
            image[inside] = part.image(number[inside] - self._first_images[which])
        return other, image

    def lengths(self, located: Located) -> Array:
        """Return int64 [n]: the number of tokens of each caption, without [CLS] and [SEP]."""
        found = np.empty(len(located.row), np.int64)
        for _, part, inside in self._groups(located.folder):
            found[inside] = part.cache.lengths(located.row[inside])
        return found

    def stored_rois(self, folder: Array, image: Array) -> Array:
        """Return int64 [n]: how many RoIs are stored of each image, given by folder and number in it."""
        found = np.empty(len(image), np.int64)
        for _, part, inside in self._groups(folder):
            found[inside] = part.folder.index.num_rois[image[inside]]
        return found

    def tokens(self, located: Located, num_tokens: Array) -> TokenRuns:
        """Return the first `num_tokens`, int64 [n], tokens of each caption."""
        if len(self._parts) == 1:
            return self._parts[0].cache.gather(located.row, num_tokens)
        cu_lengths = runs.borders(num_tokens)
        ids, starts_word = np.empty(cu_lengths[-1], np.int64), np.empty(cu_lengths[-1], np.bool_)
        for _, part, inside in self._groups(located.folder):
            found = part.cache.gather(located.row[inside], num_tokens[inside])
            places = runs.places(cu_lengths[:-1][inside], num_tokens[inside])
            ids[places], starts_word[places] = found.ids, found.starts_word
        return TokenRuns(ids=ids, starts_word=starts_word, cu_lengths=cu_lengths)

    def name(self, example: int) -> str:
        """Return what a person calls an example: its folder, image and caption."""
        located = self.locate(np.array([example]))
        part, image = self._parts[int(located.folder[0])], int(located.image[0])
        caption = int(located.row[0] - part.cu_rows[image])
        return f"{part.folder.path} image {part.folder.index.image_id(image)} caption {caption}"

    def _groups(self, folder: Array) -> list[tuple[int, _Part, Array | slice]]:
        """Return (number, part, which) for each folder that occurs in `folder`, int64 [n]."""
        if len(self._parts) == 1:
            return [(0, self._parts[0], slice(None))]
        numbers = np.unique(folder).tolist()
        return [(number, self._parts[number], np.flatnonzero(folder == number)) for number in numbers]


def _part(folder: ShardFolder, cache: TokenCache, chosen: Array | None) -> _Part:
    cu_rows = runs.borders(folder.index.num_captions)
    cu_examples = cu_rows if chosen is None else runs.borders(folder.index.num_captions[chosen])
    return _Part(folder=folder, cache=cache, chosen=chosen, cu_examples=cu_examples, cu_rows=cu_rows)


def kept_aside(image_ids: pa.ChunkedArray, fraction: float) -> Array:
    """Return bool [n]: which images are kept for validation, a share `fraction` of them, by a hash of their ids alone.

    So an image is on the same side in every run and in every folder.
    """
    slices = (chunk.slice(at, IDS_AT_ONCE) for chunk in image_ids.chunks for at in range(0, len(chunk), IDS_AT_ONCE))
    return np.concatenate([np.zeros(0, np.bool_), *(uniforms(_hash_texts(texts)) < fraction for texts in slices)])


def _hash_texts(texts: pa.StringArray) -> Array:
    """Return uint64 [n], a hash of each text's bytes."""
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    places = runs.places(np.zeros(len(lengths), np.int64), lengths)
    powers = np.multiply.accumulate(np.full(int(lengths.max(initial=0)) + 1, ID_BASE))
    sums = np.zeros(len(data) + 1, np.uint64)
    np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[places], out=sums[1:])
    borders = offsets - offsets[0]
    return mix(sums[borders[1:]] - sums[borders[:-1]])
