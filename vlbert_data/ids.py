"""Image ids by their hashes. Promise: 8 bytes an id, and what is equal in them is equal in fact but for chance."""

import hashlib

import numpy as np

from vlbert_data.types import Array


def id_hash(image_id: str) -> int:
    """Return 64 bits of an id. Two of 3.3 million ids share them by chance once in three million sources."""
    # JSON can name halves of characters, which are no text; no id is one, but they are looked for.
    raw = image_id.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def later_duplicates(id_hashes: Array) -> Array:
    """Return int64, rising: the numbers whose id an earlier number has already. id_hashes: uint64 [n]."""
    order = np.argsort(id_hashes, kind="stable")  # [n]
    repeats = id_hashes[order][1:] == id_hashes[order][:-1]  # [n - 1]
    later: Array = np.sort(order[1:][repeats])
    return later
