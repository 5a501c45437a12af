"""What is hidden and what is asked. Promise: a pure hash of (seed, epoch, example, position), whole batches at once.

Letters: n sequences, T their words' tokens, R their RoIs without the whole image, V masked views. Positions count
within a sequence: tokens from its first word, RoIs from its most confident one.
"""

from dataclasses import dataclass

import numpy as np

from vlbert_data import runs
from vlbert_data.token_file import TokenRuns
from vlbert_data.types import Array
from vlbert_train.config import MaskingConfig
from vlbert_train.hashing import Words, below, stream_key, uniforms, words


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
    begins = tokens.starts_word.copy()  # [T]
    begins[tokens.cu_lengths[:-1][lengths > 0]] = True
    heads = np.flatnonzero(begins)  # [W], the first token of each word
    owner = np.repeat(np.arange(len(lengths)), lengths)  # [T]
    of_head = owner[heads]
    draws = uniforms(words(keys.words[of_head], heads - tokens.cu_lengths[of_head]))  # [W]
    chosen = np.flatnonzero(draws < masking.word_share)
    sizes = np.diff(heads, append=len(begins))[chosen]
    asked = runs.places(heads[chosen], sizes)  # [M]
    draw = np.repeat(draws[chosen], sizes)  # [M]
    masked = masking.word_share * masking.word_mask_share
    replaced = masked + masking.word_share * masking.word_random_share
    shown = tokens.ids.copy()
    shown[asked[draw < masked]] = mask_id
    places = asked[(draw >= masked) & (draw < replaced)]
    of_place = owner[places]
    shown[places] = below(words(keys.replacements[of_place], places - tokens.cu_lengths[of_place]), vocab_size)
    return MaskedWords(shown=shown, asked=asked)


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
    cu_lengths = runs.borders(lengths)
    owner = runs.owners(lengths)
    draws = uniforms(words(keys.rois[owner], np.arange(len(owner)) - cu_lengths[owner]))  # [R]
    return draws < masking.roi_share, draws < masking.roi_share * masking.roi_hide_share


def hide_overlapping(boxes: Array, lengths: Array, hidden: Array, threshold: float) -> Array:
    """Return bool [R]: RoIs that are hidden or would show one that is.

    A RoI shows a hidden one of its image if more than `threshold` of the smaller of the two lies in the other: then
    either most of the hidden one's pixels are described with it, or it describes nothing else.

    boxes: float32 [R, 4], corners in one unit for each image. lengths: int64 [n], RoIs of each image. hidden: bool [R].
    """
    masked = np.flatnonzero(hidden)  # [H]
    image = runs.owners(lengths)[masked]
    counts = lengths[image]
    others = runs.places(runs.borders(lengths)[image], counts)  # [pairs], for each hidden one all RoIs of its image
    x0, y0, x1, y1 = np.ascontiguousarray(boxes.T)  # [R] each

    def shared_side(low: Array, high: Array) -> Array:
        side: Array = np.minimum(np.repeat(high[masked], counts), high.take(others))
        side -= np.maximum(np.repeat(low[masked], counts), low.take(others))
        np.maximum(side, 0, out=side)
        return side

    shared = shared_side(x0, x1) * shared_side(y0, y1)  # [pairs]
    area = (x1 - x0) * (y1 - y0)  # [R]
    smaller = np.minimum(np.repeat(area[masked], counts), area.take(others))  # [pairs]
    found = hidden.copy()
    found[others[shared > threshold * smaller]] = True
    return found


def choose_views(keys: Words, num_views: int) -> Array:
    """Return int64 [n]: which of an image's masked views, 0..V-1, each example sees; keys: `MaskKeys.views`."""
    return below(words(keys, np.zeros(1, np.int64)), num_views)
