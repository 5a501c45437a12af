"""Masks, against slow versions that look at one word, one RoI or one pair at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_batches import draw, slow_overlap, slow_words

from vlbert_data import runs
from vlbert_data.token_file import TokenRuns
from vlbert_data.types import Array
from vlbert_train.config import MaskingConfig
from vlbert_train.masking import MaskKeys, choose_views, hide_overlapping, mask_rois, mask_words

MASK, VOCABULARY = 4, 1000
KEYS = MaskKeys.training(7)
CONFIGS = (
    MaskingConfig(),
    MaskingConfig(word_share=0.5, word_mask_share=0.4, word_random_share=0.4, roi_share=0.6, roi_hide_share=0.5),
    MaskingConfig(word_share=1.0, word_mask_share=0.0, word_random_share=1.0, roi_share=1.0, roi_hide_share=1.0),
    MaskingConfig(word_share=0.0, roi_share=0.3),
)


def make_tokens(seed: int, lengths: list[int]) -> TokenRuns:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    return TokenRuns(
        ids=rng.integers(5, VOCABULARY, total),
        starts_word=rng.random(total) < 0.6,
        cu_lengths=runs.borders(np.array(lengths, np.int64)),
    )


def slow_words_of_all(tokens: TokenRuns, keys: MaskKeys, masking: MaskingConfig) -> tuple[list[int], list[int]]:
    shown, asked = [], []
    for run in range(len(tokens)):
        begin, end = tokens.cu_lengths[run : run + 2].tolist()
        own = list(zip(tokens.ids[begin:end].tolist(), tokens.starts_word[begin:end].tolist(), strict=True))
        found = slow_words(own, keys.those(np.array([run])), masking, MASK, VOCABULARY)
        shown += found[0]
        asked += [begin + place for place in found[1]]
    return shown, asked


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), max_size=8), st.integers(0, 1000), st.sampled_from(CONFIGS))
def test_masked_words_are_those_of_going_word_by_word(lengths: list[int], seed: int, masking: MaskingConfig) -> None:
    tokens = make_tokens(seed, lengths)
    keys = KEYS.of(np.arange(len(lengths)) + 10 * seed, np.full(len(lengths), 3))
    found = mask_words(tokens, keys, masking, mask_id=MASK, vocab_size=VOCABULARY)
    shown, asked = slow_words_of_all(tokens, keys, masking)
    assert found.shown.tolist() == shown
    assert found.asked.tolist() == asked


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 30), max_size=8), st.integers(0, 1000), st.sampled_from(CONFIGS))
def test_masked_rois_are_those_of_going_one_by_one(lengths: list[int], seed: int, masking: MaskingConfig) -> None:
    keys = KEYS.of(np.arange(len(lengths)) + 10 * seed, np.full(len(lengths), 3))
    asked, hidden = mask_rois(np.array(lengths, np.int64), keys, masking)
    chances = [draw(keys.rois[run], k) for run, length in enumerate(lengths) for k in range(length)]
    assert asked.tolist() == [chance < masking.roi_share for chance in chances]
    assert hidden.tolist() == [chance < masking.roi_share * masking.roi_hide_share for chance in chances]


def test_shares_are_those_of_the_papers() -> None:
    lengths = np.full(4000, 25)
    tokens = make_tokens(1, lengths.tolist())
    keys = KEYS.of(np.arange(4000), np.zeros(4000, np.int64))
    found = mask_words(tokens, keys, MaskingConfig(), mask_id=MASK, vocab_size=VOCABULARY)
    shown, told = found.shown[found.asked], tokens.ids[found.asked]
    asked, hidden = mask_rois(lengths, keys, MaskingConfig())
    masked, kept = (shown == MASK).mean(), (shown == told).mean()
    shares = {
        "words": (len(found.asked) / len(tokens.ids), 0.15),
        "[MASK]": (masked, 0.8 + 0.1 / VOCABULARY),
        "kept": (kept, 0.1 + 0.1 / VOCABULARY),
        "RoIs": (asked.mean(), 0.15),
        "hidden": (hidden.sum() / asked.sum(), 0.9),
    }
    for name, (share, wanted) in shares.items():
        assert share == pytest.approx(wanted, abs=0.012), name
    untouched = np.ones(len(tokens.ids), bool)
    untouched[found.asked] = False
    assert np.array_equal(found.shown[untouched], tokens.ids[untouched])


def test_masks_do_not_depend_on_the_rest_of_the_batch() -> None:
    lengths = [12, 0, 7, 30, 1]
    examples, epochs = np.array([90, 5, 17, 4, 33]), np.array([0, 1, 1, 2, 2])
    tokens, masking = make_tokens(3, lengths), CONFIGS[1]
    together = mask_words(tokens, KEYS.of(examples, epochs), masking, mask_id=MASK, vocab_size=VOCABULARY)
    rois = mask_rois(np.array(lengths), KEYS.of(examples, epochs), masking)
    for run, length in enumerate(lengths):
        part = slice(*tokens.cu_lengths[run : run + 2].tolist())
        own = TokenRuns(
            ids=tokens.ids[part], starts_word=tokens.starts_word[part], cu_lengths=np.array([0, length], np.int64)
        )
        keys = KEYS.of(examples[run : run + 1], epochs[run : run + 1])
        alone = mask_words(own, keys, masking, mask_id=MASK, vocab_size=VOCABULARY)
        assert np.array_equal(alone.shown, together.shown[part])
        inside = (together.asked >= part.start) & (together.asked < part.stop)
        assert np.array_equal(alone.asked + part.start, together.asked[inside])
        for of_all, of_one in zip(rois, mask_rois(np.array([length]), keys, masking), strict=True):
            assert np.array_equal(of_all[part], of_one)


def test_epochs_examples_and_seeds_have_masks_of_their_own() -> None:
    lengths = np.full(1, 200)
    drawn = {
        tuple(mask_rois(lengths, MaskKeys.training(seed).of(np.array([example]), np.array([epoch])), CONFIGS[1])[0])
        for seed in (0, 1)
        for example in (0, 1)
        for epoch in (0, 1)
    }
    assert len(drawn) == 8


def test_validation_has_masks_that_no_seed_changes_and_that_training_does_not_have() -> None:
    keys = [MaskKeys.validation(), MaskKeys.validation(), MaskKeys.training(0)]
    drawn = [mask_rois(np.full(1, 200), key.of(np.zeros(1, int), np.zeros(1, int)), CONFIGS[1])[0] for key in keys]
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


def slow_overlap_of_all(boxes: Array, lengths: list[int], hidden: Array, threshold: float) -> list[bool]:
    found: list[bool] = []
    for length in lengths:
        own = slice(len(found), len(found) + length)
        found += slow_overlap(boxes[own], hidden[own].tolist(), threshold)
    return found


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(0, 12), max_size=5),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    st.floats(0.0, 1.0),
)
def test_overlapping_rois_are_those_of_comparing_pair_by_pair(
    lengths: list[int], seed: int, threshold: float, share: float
) -> None:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    corners = rng.integers(0, 20, (total, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 12, (total, 2))], axis=1).astype(np.float32)
    hidden = rng.random(total) < share
    found = hide_overlapping(boxes, np.array(lengths, np.int64), hidden, threshold)
    assert found.tolist() == slow_overlap_of_all(boxes, lengths, hidden, threshold)


def test_a_roi_inside_a_masked_one_and_a_roi_around_it_are_hidden_and_their_own_neighbours_are_not() -> None:
    boxes = np.array(
        [
            [10, 10, 20, 20],  # masked
            [12, 12, 15, 15],  # inside it
            [0, 0, 40, 40],  # around it
            [17, 10, 27, 20],  # 3 of 10 columns shared
            [38, 38, 60, 60],  # overlaps only what is around
        ],
        np.float32,
    )
    hidden = np.array([True, False, False, False, False])
    assert hide_overlapping(boxes, np.array([5]), hidden, 0.5).tolist() == [True, True, True, False, False]
    assert hide_overlapping(boxes, np.array([5]), hidden, 0.2).tolist() == [True, True, True, True, False]
    # In another image the same boxes show nothing of it.
    assert hide_overlapping(boxes, np.array([1, 4]), hidden, 0.0).tolist() == [True, False, False, False, False]


def test_every_view_is_seen_equally_often() -> None:
    keys = MaskKeys.training(0).of(np.arange(6000), np.zeros(6000, np.int64))
    counts = np.bincount(choose_views(keys.views, 4), minlength=4)
    assert len(counts) == 4
    assert np.abs(counts - 1500).max() < 150
