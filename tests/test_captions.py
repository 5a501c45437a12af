"""Which images are kept aside and which caption an example is: against counting one by one."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_text import write_vocabulary

from vlbert_data.shards.folder import ShardFolder
from vlbert_data.synthetic import write_shards
from vlbert_data.tokenizer import load_tokenizer
from vlbert_train.captions import IDS_AT_ONCE, CaptionSet, kept_aside
from vlbert_train.hashing import mix, uniforms
from vlbert_train.tokens import TokenCache


def slow_side(text: str) -> float:
    """Return the chance of an id: a polynomial over its bytes modulo 2^64, mixed."""
    total = sum((byte + 1) * pow(0x9E3779B97F4A7C15, place + 1, 2**64) for place, byte in enumerate(text.encode()))
    return float(uniforms(mix(np.array([total % 2**64], np.uint64)))[0])


def test_an_image_is_on_the_same_side_wherever_its_id_stands() -> None:
    ids = ["a", "", "train2014_0001", "\u732b.jpg", *(f"{number:012d}" for number in range(300)), "a"]
    wanted = [slow_side(text) < 0.3 for text in ids]
    whole = pa.chunked_array([pa.array(ids)])
    pieces = pa.chunked_array([pa.array(["x", *ids[:7]]).slice(1), pa.array(ids[7:200]), pa.array(ids[200:])])
    assert kept_aside(whole, 0.3).tolist() == wanted
    assert kept_aside(pieces, 0.3).tolist() == wanted


def test_a_larger_share_keeps_what_a_smaller_one_kept() -> None:
    ids = pa.chunked_array([pa.array([f"{number}.jpg" for number in range(IDS_AT_ONCE + 5000)])])
    small, large = kept_aside(ids, 0.01), kept_aside(ids, 0.1)
    assert small.mean() == pytest.approx(0.01, abs=0.002)
    assert large.mean() == pytest.approx(0.1, abs=0.005)
    assert not (small & ~large).any()
    assert not kept_aside(ids, 0.0).any()
    assert len(kept_aside(pa.chunked_array([], pa.string()), 0.5)) == 0


@pytest.mark.parametrize("chosen", ["all", "some"])
def test_examples_are_the_captions_of_the_chosen_images_in_order(tmp_path: Path, chosen: str) -> None:
    tokenizer = load_tokenizer(write_vocabulary(tmp_path / "vocab.txt"))
    parts, wanted = [], []
    for number, (images, captions) in enumerate(((7, 3), (1, 1), (5, 2))):
        folder = ShardFolder.open(
            write_shards(
                tmp_path / str(number), num_images=images, captions_an_image=captions, shard_size=3, seed=number
            )
        )
        keeps = None if chosen == "all" else np.arange(0, images, 2)
        parts.append((folder, TokenCache.open(folder, tokenizer, tmp_path / "cache"), keeps))
        for image in range(images) if keeps is None else keeps.tolist():
            wanted += [(number, image, text) for text in folder.captions(image)]
    found = CaptionSet(parts)
    assert len(found) == len(wanted)
    for order in (np.arange(len(found)), np.random.default_rng(0).permutation(len(found))):
        located = found.locate(order)
        texts = [wanted[number][2] for number in order.tolist()]
        assert list(zip(located.folder.tolist(), located.image.tolist(), strict=True)) == [
            wanted[number][:2] for number in order.tolist()
        ]
        lengths = found.lengths(located)
        tokens = found.tokens(located, lengths)
        alone = tokenizer.encode(texts)
        assert np.array_equal(tokens.ids, alone.ids)
        assert np.array_equal(tokens.cu_lengths, alone.cu_lengths)
        assert np.array_equal(tokens.starts_word, alone.starts_word)
    others = list(zip(*(side.tolist() for side in found.other_images(np.arange(len(found)))), strict=True))
    assert all(other != own[:2] for other, own in zip(others, wanted, strict=True))
    assert set(others) == {own[:2] for own in wanted}
