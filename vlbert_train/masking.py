"""What is hidden and what is asked. Promise: a pure hash of (seed, epoch, example, position), whole batches at once.

Letters: n sequences, T their words' tokens, R their RoIs without the whole image, V masked views. Positions count
within a sequence: tokens from its first word, RoIs from its most confident one.
"""

from dataclasses import dataclass

import numpy as np

from vlbert_data.compiled import compiled
from vlbert_data.token_file import TokenRuns
from vlbert_data.types import Array
from vlbert_train.config import MaskingConfig
from vlbert_train.hashing import Words, below, stream_key, uniforms_of_runs, words


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskKeys:
    """Keys of the random choices, uint64 [k] each: k = 1 for a stream, k = n for the sequences of a batch."""

    words: Words
    replacements: Words
    rois: Words
    views: Words

    @staticmethod
    def training(seed: int) -> "MaskKeys":
        """Return the keys of a run."""
        return MaskKeys(
            words=stream_key(seed, "word-mask"),
            replacements=stream_key(seed, "word-replacement"),
            rois=stream_key(seed, "roi-mask"),
            views=stream_key(seed, "view"),
        )

    @staticmethod
    def validation() -> "MaskKeys":
        """Return keys that are the same in every run, so that what runs with other seeds reach can be compared."""
        keys = [words(stream_key(0, "validation"), np.array([number])) for number in range(4)]
        return MaskKeys(words=keys[0], replacements=keys[1], rois=keys[2], views=keys[3])

    def of(self, examples: Array, epochs: Array) -> "MaskKeys":
        """Return the keys of examples, int64 [n], in their epochs, int64 [n]."""
        found = (words(words(key, epochs), examples) for key in (self.words, self.replacements, self.rois, self.views))
        return MaskKeys(**dict(zip(("words", "replacements", "rois", "views"), found, strict=True)))

    def those(self, which: Array) -> "MaskKeys":
        """Return the keys of some sequences, `which`: bool [n], or their numbers."""
        of_words, replacements = self.words[which], self.replacements[which]
        return MaskKeys(words=of_words, replacements=replacements, rois=self.rois[which], views=self.views[which])


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedWords:
    """shown: int64 [T], what the model sees. asked: int64 [M], rising, the places in 0..T-1 whose token is asked."""

    shown: Array
    asked: Array


def mask_words(
    tokens: TokenRuns, keys: MaskKeys, masking: MaskingConfig, *, mask_id: int, vocab_size: int
) -> MaskedWords:
    """Return the words asked of sequences whose tokens, without [CLS] and [SEP], are `tokens`.

    Each word is asked with probability word_share, whole; all its tokens become [MASK], or each a random token of the
    vocabulary, or stay. The first token of a sequence begins a word, even where the text was cut inside one.
    Source: BERT (arXiv 1810.04805, section 3.1) with whole-word masking, as VL-BERT's released code does it.
    """
    lengths = np.diff(tokens.cu_lengths)
    draws, replacements = (uniforms_of_runs(of_runs, lengths) for of_runs in (keys.words, keys.replacements))  # [T]
    masked = masking.word_share * masking.word_mask_share
    shares = (masking.word_share, masked, masked + masking.word_share * masking.word_random_share)
    shown, asked = tokens.ids.copy(), np.empty(len(tokens.ids), np.int64)
    words_begin = (tokens.starts_word, tokens.cu_lengths)
    num = _mask_words(words_begin, (draws, replacements), shares, (mask_id, vocab_size), (shown, asked))
    return MaskedWords(shown=shown, asked=asked[:num])


@compiled
def _mask_words(
    words_begin: tuple[Array, Array],
    draws: tuple[Array, Array],
    shares: tuple[float, float, float],
    ids: tuple[int, int],
    found: tuple[Array, Array],
) -> int:
    """Fill shown and asked; return how many are asked.

    shares: a word whose draw is below the first is asked, below the second becomes [MASK], below the third random.
    """
    starts_word, cu_lengths = words_begin
    word_draws, replacements = draws
    asks, masks, replaces = shares
    mask_id, vocab_size = ids
    shown, asked = found
    num = 0
    for sequence in range(len(cu_lengths) - 1):
        draw = 1.0
        for token in range(cu_lengths[sequence], cu_lengths[sequence + 1]):
            if starts_word[token] or token == cu_lengths[sequence]:
                draw = word_draws[token]
            if draw < asks:
                asked[num] = token
                num += 1
                if draw < masks:
                    shown[token] = mask_id
                elif draw < replaces:
                    shown[token] = np.int64(replacements[token] * vocab_size)
    return num


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedWords:
    """The words `number`, counted from 0 in each sequence, of those whose tokens are True in `tokens`, bool [V]."""

    tokens: Array
    number: int


def hide_named(tokens: TokenRuns, named: NamedWords, *, mask_id: int) -> MaskedWords:
    """Return sequences whose named word is hidden and asked; nothing is asked of those that have no such word."""
    places = np.flatnonzero(named.tokens[tokens.ids])  # [k], of all words that are named
    before, after = np.searchsorted(places, [tokens.cu_lengths[:-1], tokens.cu_lengths[1:]])  # [n] each
    chosen = before + named.number
    asked: Array = places[chosen[chosen < after]]
    shown = tokens.ids.copy()
    shown[asked] = mask_id
    return MaskedWords(shown=shown, asked=asked)


def mask_rois(lengths: Array, keys: MaskKeys, masking: MaskingConfig) -> tuple[Array, Array]:
    """Return (asked, hidden), bool [R] each, for images of `lengths`, int64 [n], RoIs; a hidden one is asked.

    Source: VL-BERT (arXiv 1908.08530, section 3.3).
    """
    draws = uniforms_of_runs(keys.rois, lengths)  # [R]
    return draws < masking.roi_share, draws < masking.roi_share * masking.roi_hide_share


def hide_overlapping(boxes: Array, lengths: Array, hidden: Array, threshold: float) -> Array:
    """Return bool [R]: RoIs that are hidden or would show one that is.

    A RoI shows a hidden one of its image if more than `threshold` of the smaller of the two lies in the other: then
    either most of the hidden one's pixels are described with it, or it describes nothing else.

    boxes: float32 [R, 4], corners in one unit for each image. lengths: int64 [n], RoIs of each image. hidden: bool [R].
    """
    found = hidden.copy()
    _hide_overlapping(boxes, lengths, hidden, np.float32(threshold), found)
    return found


@compiled
def _hide_overlapping(boxes: Array, lengths: Array, hidden: Array, threshold: np.float32, found: Array) -> None:
    widest = 0
    for length in lengths:
        widest = max(widest, length)
    # Coordinate by coordinate, so that one instruction compares a RoI with several others.
    x0, y0, x1, y1, area = np.empty((5, widest), np.float32)
    zero, first = np.float32(0), 0
    for length in lengths:
        # A slice tells the compiler that no index is below zero.
        own_found, own_hidden = found[first : first + length], hidden[first : first + length]
        for roi in range(length):
            x0[roi], y0[roi], x1[roi], y1[roi] = boxes[first + roi]
            area[roi] = (x1[roi] - x0[roi]) * (y1[roi] - y0[roi])
        for roi in range(length):
            if not own_hidden[roi]:
                continue
            own_x0, own_y0, own_x1, own_y1, own_area = x0[roi], y0[roi], x1[roi], y1[roi], area[roi]
            for other in range(length):
                width = max(min(own_x1, x1[other]) - max(own_x0, x0[other]), zero)
                height = max(min(own_y1, y1[other]) - max(own_y0, y0[other]), zero)
                own_found[other] |= width * height > threshold * min(own_area, area[other])
        first += length


def choose_views(keys: Words, num_views: int) -> Array:
    """Return int64 [n]: which of an image's masked views, 0..V-1, each example sees; keys: `MaskKeys.views`."""
    return below(words(keys, np.zeros(1, np.int64)), num_views)
