"""Lengths after truncation, against taking away one at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from slow_batches import slow_joint

from vlbert_train.config import DataConfig
from vlbert_train.truncation import kept_lengths, text_limit

LENGTHS = st.lists(st.tuples(st.integers(2, 150), st.integers(0, 150)), min_size=1, max_size=20)


@given(LENGTHS, st.integers(4, 130), st.integers(0, 120))
def test_joint_lengths_are_those_of_taking_away_one_by_one(
    lengths: list[tuple[int, int]], limit: int, max_rois: int
) -> None:
    text, rois = np.array(lengths).T
    found = kept_lengths(text, rois, DataConfig(truncation="joint", max_length=limit, max_rois=max_rois))
    slow = [slow_joint(t, 1 + min(r, max_rois), limit) for t, r in lengths]
    assert list(zip(found[0].tolist(), found[1].tolist(), strict=True)) == slow


@given(LENGTHS, st.integers(4, 130), st.integers(0, 120))
def test_separate_limits_know_nothing_of_one_another(
    lengths: list[tuple[int, int]], max_text: int, max_rois: int
) -> None:
    text, rois = np.array(lengths).T
    data = DataConfig(truncation="separate", max_text=max_text, max_rois=max_rois)
    found = kept_lengths(text, rois, data)
    assert found[0].tolist() == [min(t, max_text) for t, _ in lengths]
    assert found[1].tolist() == [1 + min(r, max_rois) for _, r in lengths]


def test_texts_alone_have_the_limit_of_their_policy() -> None:
    assert text_limit(DataConfig(max_length=48, max_text=90)) == 48
    assert text_limit(DataConfig(truncation="separate", max_length=48, max_text=90)) == 90
