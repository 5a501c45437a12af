"""Tokens of captions, against tokenising them one by one."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from limits import files_end_at
from small_text import write_vocabulary

from vlbert_data.errors import VlbError
from vlbert_data.manifest import CONTAINERS
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.synthetic import write_shards
from vlbert_data.tokenizer import TextTokenizer, load_tokenizer
from vlbert_train.tokens import TokenCache, default_cache_dir

NUM_IMAGES = 23


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return load_tokenizer(write_vocabulary(tmp_path_factory.mktemp("vocab") / "vocab.txt"))


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    return ShardFolder.open(
        write_shards(tmp_path / "shards", num_images=NUM_IMAGES, captions_an_image=3, shard_size=10)
    )


@pytest.mark.parametrize("container", CONTAINERS)
def test_captions_have_the_tokens_that_each_alone_has(tmp_path: Path, tokenizer: TextTokenizer, container: str) -> None:
    path = write_shards(tmp_path / "shards", num_images=NUM_IMAGES, container=container, shard_size=10)
    folder = ShardFolder.open(path)
    cache = TokenCache.open(folder, tokenizer, tmp_path / "cache")
    texts = [text for image in range(NUM_IMAGES) for text in folder.captions(image)]
    assert len(cache) == len(texts)
    rows = np.array([5, 0, 45, 5, 17])
    alone = [tokenizer.encode([texts[row]]) for row in rows.tolist()]
    assert cache.lengths(rows).tolist() == [len(runs.ids) for runs in alone]
    for most in (0, 3, 1000):
        kept = np.minimum(cache.lengths(rows), most)
        found = cache.gather(rows, kept)
        assert np.array_equal(found.ids, np.concatenate([runs.ids[:most] for runs in alone]))
        assert np.array_equal(found.starts_word, np.concatenate([runs.starts_word[:most] for runs in alone]))
        assert np.diff(found.cu_lengths).tolist() == kept.tolist()


def test_captions_are_tokenised_once(tmp_path: Path, folder: ShardFolder, tokenizer: TextTokenizer) -> None:
    told: list[tuple[int, int]] = []
    first = TokenCache.open(folder, tokenizer, tmp_path / "cache", lambda done, total: told.append((done, total)))
    assert told == [(NUM_IMAGES, NUM_IMAGES)]
    again = TokenCache.open(folder, tokenizer, tmp_path / "cache", lambda done, total: told.append((done, total)))
    assert len(told) == 1
    assert np.array_equal(first.file.ids, again.file.ids)


def test_other_shards_and_other_tokenizers_have_files_of_their_own(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    other_words = tmp_path / "other.txt"
    other_words.write_text((write_vocabulary(tmp_path / "vocab.txt")).read_text() + "zebra\n")
    cache = tmp_path / "cache"
    for seed in (1, 2):
        folder = ShardFolder.open(write_shards(tmp_path / str(seed), num_images=4, seed=seed))
        for each in (tokenizer, load_tokenizer(other_words)):
            TokenCache.open(folder, each, cache)
    assert len(list(cache.glob("captions-*.arrow"))) == 4


@pytest.mark.parametrize("damage", ["cut", "garbage", "another"])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, folder: ShardFolder, tokenizer: TextTokenizer, damage: str
) -> None:
    cache = tmp_path / "cache"
    whole = TokenCache.open(folder, tokenizer, cache).file.ids.copy()
    [path] = cache.glob("captions-*.arrow")
    if damage == "another":
        other = ShardFolder.open(write_shards(tmp_path / "other", num_images=2))
        path.write_bytes(TokenCache.open(other, tokenizer, tmp_path / "elsewhere").file.path.read_bytes())
    else:
        path.write_bytes(path.read_bytes()[:-300] if damage == "cut" else b"not Arrow at all")
    assert np.array_equal(TokenCache.open(folder, tokenizer, cache).file.ids, whole)


def test_a_cache_that_cannot_be_written_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, folder: ShardFolder, tokenizer: TextTokenizer
) -> None:
    cache = tmp_path / "cache"
    with files_end_at(500), pytest.raises(VlbError, match=r"cache: the tokens .* Make room, or set VLB_CACHE_DIR"):
        TokenCache.open(folder, tokenizer, cache)
    assert not list(cache.glob("*captions*.arrow*"))
    TokenCache.open(folder, tokenizer, cache)


def _open_in_child(shards: Path, vocabulary: Path, cache: Path) -> list[int]:
    found = TokenCache.open(ShardFolder.open(shards), load_tokenizer(vocabulary), cache)
    ids: list[int] = found.file.ids.tolist()
    return ids


def test_processes_that_ask_at_once_get_the_same(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", num_images=60)
    vocabulary = write_vocabulary(tmp_path / "vocab.txt")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(_open_in_child, [(shards, vocabulary, tmp_path / "cache")] * 3)
    assert found[0] == found[1] == found[2]
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLB_CACHE_DIR", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("VLB_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "vlbert"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "vlbert"
