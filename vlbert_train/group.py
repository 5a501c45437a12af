"""Several batches made at once: read, truncated, masked and packed. Promise: a batch does not depend on its neighbours.

Everything but the features is made for all batches of a group together; features are copied when a batch is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlbert_data import runs
from vlbert_data.token_file import TokenRuns
from vlbert_data.types import Array
from vlbert_train.assemble import Layout, Packed, Words, pack
from vlbert_train.batch import Batch
from vlbert_train.config import DataConfig, MaskingConfig
from vlbert_train.features import StoredFeatures
from vlbert_train.images import Images
from vlbert_train.masking import MaskKeys, NamedWords, hide_named, mask_words
from vlbert_train.rois import RoiRules, read_rois
from vlbert_train.schedule import Picks
from vlbert_train.sets import Meaning, Sets
from vlbert_train.truncation import kept_lengths


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """What the batches of a group are made of: for each its captions and its texts, and the step that it belongs to.

    other_image: each caption with the RoIs of another example's image, which are masked but not asked. named: the words
    to hide in place of random ones.
    """

    sets: Sets
    keys: MaskKeys
    captions: Sequence[Picks]
    texts: Sequence[Picks]
    steps: Sequence[int]
    other_image: bool = False
    named: NamedWords | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Batches 0 .. D - 1 of a draft. Safe to use from several threads."""

    packed: Packed
    features: StoredFeatures
    num_texts: Sequence[int]
    steps: Sequence[int]

    def batch(self, number: int, *, pin_memory: bool = False) -> Batch:
        """Return batch `number`, its features read now, into page-locked memory if so wanted."""
        features = self.features.read(number, self.num_texts[number], pin_memory=pin_memory)
        return self.packed.batch(number, features, self.steps[number])


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
    """Makes groups by the settings of a run."""

    data: DataConfig
    masking: MaskingConfig
    meaning: Meaning

    def make(self, draft: Draft) -> Group:
        """Return the group of a draft, whose batches each have an example at least.

        Raises:
            ShardError: a shard or corpus file that is missing or damaged.
        """
        layout = Layout.of([len(picks) for picks in draft.captions], [len(picks) for picks in draft.texts])
        captions, texts = _joined(draft.captions), _joined(draft.texts)
        has_image, num_captions = layout.has_image(), draft.sets.num_captions
        examples = _merged(has_image, captions.examples, texts.examples + num_captions)
        keys = draft.keys.of(examples, _merged(has_image, captions.epochs, texts.epochs))
        tokens, images = self._read_captions(draft, captions.examples, layout.captions)
        if draft.sets.texts and len(texts):
            tokens = _merged_runs(has_image, tokens, draft.sets.texts.tokens(texts.examples))
        special, vocab_size = self.meaning.tokenizer.special_ids, self.meaning.tokenizer.vocab_size
        if draft.named is not None:
            masked = hide_named(tokens, draft.named, mask_id=special.mask)
        else:
            masked = mask_words(tokens, keys, self.masking, mask_id=special.mask, vocab_size=vocab_size)
        rules = RoiRules(
            masking=self.masking,
            feature_dim=self.meaning.feature_dim,
            num_labels=self.meaning.num_labels,
            labels_kept=self.meaning.labels_kept,
            asks=not draft.other_image,
        )
        rois = read_rois(images, keys.those(has_image), rules)
        words = Words(tokens=tokens, masked=masked, cls_id=special.cls, sep_id=special.sep)
        return Group(
            packed=pack(words, rois, layout, examples),
            features=rois.features,
            num_texts=np.diff(layout.texts).tolist(),
            steps=draft.steps,
        )

    def _read_captions(self, draft: Draft, examples: Array, cuts: Array) -> tuple[TokenRuns, Images]:
        """Return words and images of the captions, truncated."""
        captions, data = draft.sets.captions, self.data
        if captions is None or not len(examples):
            nothing = np.zeros(0, np.int64)
            tokens = TokenRuns(ids=nothing, starts_word=np.zeros(0, np.bool_), cu_lengths=np.zeros(1, np.int64))
            return tokens, Images(folders=(), folder=nothing, image=nothing, stored=nothing, lengths=nothing, cuts=cuts)
        located = captions.locate(examples)
        folder, image = located.folder, located.image
        stored = captions.stored_rois(folder, image)
        text, rois = kept_lengths(captions.lengths(located) + 2, stored, data)
        if draft.other_image:
            folder, image = captions.other_images(examples)
            stored = captions.stored_rois(folder, image)
            # The words stay as they are with their own image; the other one's RoIs have what room is left.
            rois = kept_lengths(np.full_like(text, 2), stored, data)[1]
            if data.truncation == "joint":
                rois = np.minimum(rois, data.max_length - text)
        images = Images(
            folders=captions.folders, folder=folder, image=image, stored=stored, lengths=rois - 1, cuts=cuts
        )
        return captions.tokens(located, text - 2), images


def _joined(picks: Sequence[Picks]) -> Picks:
    return Picks(
        examples=np.concatenate([part.examples for part in picks]),
        epochs=np.concatenate([part.epochs for part in picks]),
    )


def _merged(has_image: Array, of_captions: Array, of_texts: Array) -> Array:
    """Return int64 [B]: the next one of captions where a sequence has an image, the next one of texts elsewhere."""
    found = np.empty(len(has_image), np.int64)
    found[has_image], found[~has_image] = of_captions, of_texts
    return found


def _merged_runs(has_image: Array, captions: TokenRuns, texts: TokenRuns) -> TokenRuns:
    """Return the runs of captions and of texts in the order of the sequences."""
    lengths = _merged(has_image, np.diff(captions.cu_lengths), np.diff(texts.cu_lengths))
    cu_lengths = runs.borders(lengths)
    ids, starts_word = np.empty(cu_lengths[-1], np.int64), np.empty(cu_lengths[-1], np.bool_)
    for kind, which in ((captions, has_image), (texts, ~has_image)):
        places = runs.places(cu_lengths[:-1][which], lengths[which])
        ids[places], starts_word[places] = kind.ids, kind.starts_word
    return TokenRuns(ids=ids, starts_word=starts_word, cu_lengths=cu_lengths)
