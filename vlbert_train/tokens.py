"""Token ids of captions. Promise: a folder is tokenised once for each tokenizer, and then only mapped into memory.

The cache is one Arrow file for each (shards, tokenizer), a row a caption in the order of the index (see
`vlbert_data.token_file`). It lies outside the shard folder, which never changes, and may be deleted at any time.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlbert_data import token_file, token_runs
from vlbert_data.errors import ShardError, VlbError
from vlbert_data.shards import files
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.token_file import TokenFile, TokenRuns
from vlbert_data.tokenizer import TextTokenizer
from vlbert_data.types import Array

# Part of the key: raise it when the same captions and tokenizer give another file.
CACHE_VERSION = 1
IMAGES_AT_ONCE = 4096

# Told how many images are tokenised, of how many.
Advance = Callable[[int, int], None]


def default_cache_dir() -> Path:
    """Return $VLB_CACHE_DIR, or `vlbert` in the user's cache folder ($XDG_CACHE_HOME, ~/.cache)."""
    if own := os.environ.get("VLB_CACHE_DIR"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlbert"


def cache_key(shards: str, tokenizer: TextTokenizer) -> str:
    """Return what tells the captions of shards with this content hash, read with this tokenizer, from all others."""
    return files.blake2b_json([CACHE_VERSION, shards, tokenizer.fingerprint])


def cache_path(cache: Path, key: str) -> Path:
    """Return the file for a key."""
    return cache / f"captions-{key[:32]}.arrow"


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCache:
    """The tokens of all captions of a folder: caption 0 of image 0 first. Safe to use from several threads."""

    file: TokenFile

    @staticmethod
    def open(
        folder: ShardFolder,
        tokenizer: TextTokenizer,
        cache_dir: Path | None = None,
        advance: Advance = lambda done, total: None,
    ) -> "TokenCache":
        """Return the tokens of a folder's captions, made now if nobody made them before.

        Of several processes that ask at once, one makes them and the others wait. A damaged file is made again.

        Raises:
            ShardError: a shard that is missing or damaged.
            VlbError: the cache cannot be written.
        """
        cache = default_cache_dir() if cache_dir is None else cache_dir
        key = cache_key(folder.manifest.content_hash, tokenizer)
        path = cache_path(cache, key)
        found = _open(path, folder, key)
        if found is None:
            with _explain(cache), _locked(cache, path.with_suffix(".lock")):
                found = _open(path, folder, key) or _make(path, folder, tokenizer, key, advance)
        return TokenCache(file=found)

    def __len__(self) -> int:
        return len(self.file)

    def lengths(self, captions: Array) -> Array:
        """Return int64 [n]: the number of tokens of each caption, without [CLS] and [SEP]."""
        offsets = self.file.offsets
        lengths: Array = offsets[captions + 1] - offsets[captions]
        return lengths

    def gather(self, captions: Array, num_tokens: Array) -> TokenRuns:
        """Return the first `num_tokens`, int64 [n], tokens of each of `captions`, int64 [n]."""
        starts = self.file.offsets[captions]
        return token_runs.gather(self.file, starts, starts + num_tokens)


def _open(path: Path, folder: ShardFolder, key: str) -> TokenFile | None:
    """Return the file at `path`; None if it is absent, damaged or not that of the key."""
    if not path.exists():
        return None
    try:
        found = TokenFile.open(path)
    except ShardError:
        return None
    is_whole = found.metadata.get("key") == key and len(found) == folder.manifest.num_captions
    return found if is_whole else None


def _make(path: Path, folder: ShardFolder, tokenizer: TextTokenizer, key: str, advance: Advance) -> TokenFile:
    parts = []
    for first in range(0, len(folder), IMAGES_AT_ONCE):
        images = range(first, min(first + IMAGES_AT_ONCE, len(folder)))
        parts.append(tokenizer.encode([caption for image in images for caption in folder.captions(image)]))
        advance(images.stop, len(folder))
    tokens = TokenRuns(
        ids=np.concatenate([np.zeros(0, tokenizer.dtype), *(part.ids for part in parts)]),
        starts_word=np.concatenate([np.zeros(0, np.bool_), *(part.starts_word for part in parts)]),
        cu_lengths=np.cumsum(np.concatenate([np.zeros(1, np.int64), *(np.diff(part.cu_lengths) for part in parts)])),
    )
    if len(tokens) != folder.manifest.num_captions:
        raise ShardError(
            f"{folder.path}: {len(tokens)} captions in its shards, {folder.manifest.num_captions} in its manifest. "
            "Run vlb inspect-shard --verify."
        )
    metadata = {"key": key, "shards": folder.manifest.content_hash, "tokenizer": tokenizer.fingerprint}
    with files.atomic_path(path) as temporary:
        token_file.write(temporary, tokens, None, metadata)
    return TokenFile.open(path)


@contextlib.contextmanager
def _locked(cache: Path, path: Path) -> Iterator[None]:
    """Let one process at a time inside; the lock goes with the process, whatever becomes of it."""
    cache.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _explain(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VlbError(
            f"{cache}: the tokens of captions cannot be kept there: {error.strerror or error}. "
            "Make room, or set VLB_CACHE_DIR to a folder that can be written."
        ) from error
