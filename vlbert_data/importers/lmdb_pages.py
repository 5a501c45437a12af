"""LMDB files read page by page, without liblmdb. Promise: a damaged file costs its damaged pages, never the process.

liblmdb maps the file and trusts every number in it, so a damaged or truncated file ends the process that reads it. This
module reads pages with ordinary file reads and checks each number before it is used. The pages of keys are read once;
after that the place of each record is known and values can be read in any order, by any process.

Format (LMDB 0.9, data version 1, 64-bit, little-endian): pages 0 and 1 each hold a meta record, of which the one with
the higher transaction id counts; it names the root of a B+ tree. A page begins with 16 bytes: its own number, padding,
flags, and two 16-bit bounds, between which there is free space. Node offsets follow, sorted by key. A node is 8 bytes
(size or child page, flags, key size), the key, and the value or the number of its first overflow page.

Source: mdb.c of LMDB 0.9, structures MDB_page, MDB_node, MDB_db and MDB_meta.
"""

import itertools
import os
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.types import Array

MAGIC = 0xBEEFC0DE
DATA_VERSION = 1
PAGE_HEADER = struct.Struct("<QHHHH")  # number, pad, flags, lower, upper
META = struct.Struct("<IIQQ")  # magic, version, address, map size
DATABASE = struct.Struct(
    "<IHHQQQQQ"
)  # pad (of the first database: the page size), flags, depth, pages x 3, entries, root
META_TAIL = struct.Struct("<QQ")  # last page, transaction id
NODE = struct.Struct("<HHHH")  # low and high half of a size or page, flags, key size
BRANCH, LEAF, OVERFLOW, META_PAGE, LEAF2 = 0x01, 0x02, 0x04, 0x08, 0x20
BIG_DATA, SUB_DATA, DUPLICATES = 0x01, 0x02, 0x04
# Flags of a database whose keys or values are not plain: several values a key, integers as keys, reversed order.
ODD_DATABASE = 0x02 | 0x04 | 0x08 | 0x10 | 0x20 | 0x40
NO_PAGE = 2**64 - 1
PAGE_SIZES = tuple(2**power for power in range(9, 17))
MAX_DEPTH = 32
# Bytes of a file are numbered by 63 bits and a page has 2^16 at most.
MAX_PAGE = 2**46
# Damages told one by one; a file may have millions.
MAX_DAMAGES = 100
DATA_NAME = "data.mdb"


class LmdbRefusedError(RefusedDataError):
    """A file that is no LMDB database that can be read, or a record in it that is damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LmdbIndex:
    """Where the records of a database are.

    nodes: int64 [records], the byte at which each record's node begins, in the order of keys. num_stated: the number
    of records that the database says it has; where `damages` (a sentence for each bad page) lists any, some are lost.
    """

    path: Path
    page_bytes: int
    nodes: Array
    num_stated: int
    damages: tuple[str, ...]


def lmdb_file(path: Path) -> Path:
    """Return the database's file, where `path` is that file or the folder that liblmdb made for it."""
    return path / DATA_NAME if path.is_dir() else path


def looks_like_lmdb(path: Path) -> bool:
    """Return whether a file, or `data.mdb` in a folder, begins as LMDB files do."""
    try:
        with lmdb_file(path).open("rb") as stream:
            start = stream.read(PAGE_HEADER.size + 4)
    except OSError:
        return False
    return start[PAGE_HEADER.size :] == MAGIC.to_bytes(4, "little")


def index_lmdb(
    path: Path,
    *,
    skipped: frozenset[bytes] = frozenset(),
    most_pages: int | None = None,
    enough_records: int | None = None,
) -> LmdbIndex:
    """Return where all records of a database are; only its pages of keys are read, in memory of 8 bytes a record.

    skipped: keys that are no records. most_pages, enough_records: how many pages of keys are read, and after how
    many records no more are, all if None; what an index of less than all leaves out is no damage.

    Raises:
        LmdbRefusedError: no LMDB file, one of another version, or of a kind that feature files are not; cut short.
    """
    with _Pages(lmdb_file(path)) as pages:
        return pages.index(
            _Walk(
                skipped=skipped,
                pages_left=sys.maxsize if most_pages is None else most_pages,
                records_left=sys.maxsize if enough_records is None else enough_records,
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Meta:
    page_bytes: int
    depth: int
    flags: int
    entries: int
    root: int
    last_page: int
    transaction: int


@dataclass(slots=True)
class _Walk:
    """What a walk over the tree has found: places of nodes, damages, and pages seen, of which none comes twice."""

    nodes: list[Array] = field(default_factory=list)
    extents: list[Array] = field(default_factory=list)  # int64 [n, 2], first page and number of pages of each value
    damages: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    last_key: bytes | None = None
    skipped: frozenset[bytes] = frozenset()
    pages_left: int = sys.maxsize
    records_left: int = sys.maxsize
    num_skipped: int = 0

    def damage(self, sentence: str) -> None:
        """Note a damage, unless very many are noted."""
        if len(self.damages) < MAX_DAMAGES:
            self.damages.append(sentence)


class _DamageError(Exception):
    """A page or node whose numbers cannot be."""


class _Pages:
    """The pages of one file, read with bounds checked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise LmdbRefusedError(f"{path}: cannot be read: {error.strerror}. Expected an LMDB file.") from error
        self._num_bytes = os.fstat(self._handle).st_size

    def __enter__(self) -> "_Pages":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def index(self, walk: _Walk) -> LmdbIndex:
        """See `index_lmdb`."""
        meta = self._newest_meta(walk)
        if meta.flags & ODD_DATABASE:
            raise LmdbRefusedError(
                f"{self._path}: a database with several values a key, or integer keys (flags {meta.flags:#x}); feature "
                "files have one value a key. Nothing was read."
            )
        needed = (meta.last_page + 1) * meta.page_bytes
        if needed > self._num_bytes:
            walk.damage(
                f"{self._num_bytes} bytes; the database says it has {needed}. The file is cut short: copy it again"
            )
        if meta.root != NO_PAGE:
            self._walk(meta, meta.root, min(meta.depth, MAX_DEPTH), walk)
        nodes = np.concatenate([np.zeros(0, np.int64), *walk.nodes])
        shared = _overlapping(
            np.concatenate([np.zeros((0, 2), np.int64), *(part.reshape(-1, 2) for part in walk.extents)])
        )
        if shared.any():
            walk.damage(f"{int(shared.sum())} records are said to lie on pages of others; whose they are is not known")
            nodes = nodes[~shared]
        found = len(nodes) + walk.num_skipped
        if not walk.damages and min(walk.pages_left, walk.records_left) > 0 and found != meta.entries:
            walk.damage(f"{found} records found; the database says it has {meta.entries}")
        return LmdbIndex(
            path=self._path,
            page_bytes=meta.page_bytes,
            nodes=nodes,
            num_stated=meta.entries - walk.num_skipped,
            damages=tuple(walk.damages),
        )

    def _newest_meta(self, walk: _Walk) -> _Meta:
        """Return the meta record that counts, which is the older one where the newer is damaged: a damage to tell."""
        first = self._read(0, max(PAGE_SIZES) + 256)
        if len(first) >= 16 and int.from_bytes(first[12:16], "little") == MAGIC:
            raise LmdbRefusedError(f"{self._path}: an LMDB file of a 32-bit system; those of 64-bit ones are read.")
        found = {size: _parse_meta(first[size:]) for size in (0, *PAGE_SIZES)}
        metas = [meta for size, meta in found.items() if meta is not None and size in (0, meta.page_bytes)]
        if not metas:
            raise LmdbRefusedError(
                f"{self._path}: not an LMDB file of data version {DATA_VERSION}, or one with both of its first pages "
                "damaged. Expected a file such as data.mdb; copy it again."
            )
        if len(metas) == 1:
            walk.damage("one of its first two pages is damaged: what was written last may be missing. Copy it again")
        return max(metas, key=lambda meta: meta.transaction)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return os.pread(self._handle, size, offset)
        except OSError as error:
            raise LmdbRefusedError(f"{self._path}: cannot be read at byte {offset}: {error.strerror}.") from error

    def _walk(self, meta: _Meta, page: int, room: int, walk: _Walk) -> None:
        """Add to `walk` what is at and below a page; damage ends the walk of that page only."""
        if walk.pages_left <= 0 or walk.records_left <= 0:
            return
        walk.pages_left -= 1
        try:
            flags, data, places = self._key_page(meta, page, walk)
            if flags == LEAF:
                kept = np.array([_key(data, place) not in walk.skipped for place in places.tolist()], np.bool_)
                walk.num_skipped += int((~kept).sum())
                walk.records_left -= int(kept.sum())
                walk.nodes.append(page * meta.page_bytes + places[kept])
                walk.extents.append(np.array([_extent(data, place, meta) for place in places[kept].tolist()], np.int64))
                return
            if room <= 1:
                raise _DamageError("the tree is deeper than the database says")
            children = [_child(data, int(place)) for place in places]
        except _DamageError as error:
            walk.damage(f"page {page}: {error}")
            return
        for child in children:
            self._walk(meta, child, room - 1, walk)

    def _key_page(self, meta: _Meta, page: int, walk: _Walk) -> tuple[int, bytes, Array]:
        """Return a page's kind, its bytes, and int64 [nodes]: where in them each node begins."""
        if not 2 <= page <= meta.last_page:
            raise _DamageError("no such page")
        if page in walk.seen:
            raise _DamageError("reached twice")
        walk.seen.add(page)
        data = self._read(page * meta.page_bytes, meta.page_bytes)
        if len(data) < meta.page_bytes:
            raise _DamageError("beyond the end of the file")
        number, _, flags, lower, upper = PAGE_HEADER.unpack_from(data)
        kind = flags & (BRANCH | LEAF | OVERFLOW | META_PAGE | LEAF2)
        if number != page or kind not in (BRANCH, LEAF):
            raise _DamageError("not a page of keys")
        if not PAGE_HEADER.size <= lower <= upper <= meta.page_bytes or lower % 2:
            raise _DamageError("bounds that cannot be")
        places = np.frombuffer(data, "<u2", (lower - PAGE_HEADER.size) // 2, PAGE_HEADER.size).astype(np.int64)
        if len(places) < (2 if kind == BRANCH else 1) or (places < upper).any():
            raise _DamageError("no nodes, or nodes outside the page")
        if (places + NODE.size > meta.page_bytes).any():
            raise _DamageError("a node that ends outside the page")
        _check_keys(data, places, kind, walk)
        return kind, data, places


def _check_keys(data: bytes, places: Array, kind: int, walk: _Walk) -> None:
    """Refuse keys that end outside the page or do not rise; those of leaves rise over the whole tree."""
    keys = []
    for place in places.tolist():
        low, high, flags, key_size = NODE.unpack_from(data, place)
        start = place + NODE.size
        size = 0 if kind == BRANCH else 8 if flags & BIG_DATA else low | high << 16
        if start + key_size + size > len(data):
            raise _DamageError("a node that ends outside the page")
        if kind == LEAF and flags & (SUB_DATA | DUPLICATES):
            raise _DamageError("a database inside the database")
        keys.append(data[start : start + key_size])
    rising = keys[1:] if kind == BRANCH else ([] if walk.last_key is None else [walk.last_key]) + keys
    if any(a >= b for a, b in itertools.pairwise(rising)):
        raise _DamageError("keys out of order")
    if kind == LEAF:
        walk.last_key = keys[-1]


def _extent(data: bytes, place: int, meta: _Meta) -> tuple[int, int]:
    """Return first page and number of pages of a value that has pages of its own, (-1, 0) of another."""
    low, high, flags, key_size = NODE.unpack_from(data, place)
    if not flags & BIG_DATA:
        return -1, 0
    page = int.from_bytes(data[place + NODE.size + key_size :][:8], "little")
    return min(page, MAX_PAGE), -(-((low | high << 16) + PAGE_HEADER.size) // meta.page_bytes)


def _overlapping(extents: Array) -> Array:
    """Return bool [n], True for values some page of which is also another's.

    extents: int64 [n, 2], first page and number of pages, 0 pages for values inside a page of keys.
    """
    shared = np.zeros(len(extents), np.bool_)
    own = np.flatnonzero(extents[:, 1] > 0)
    order = own[np.argsort(extents[own, 0], kind="stable")]  # [m] by first page
    first, end = extents[order, 0], extents[order].sum(axis=1)
    # In this order a value shares pages with one behind it if and only if with the next.
    shared[order[:-1]] = end[:-1] > first[1:]
    shared[order[1:]] |= np.maximum.accumulate(end)[:-1] > first[1:]
    return shared


def _key(data: bytes, place: int) -> bytes:
    return data[place + NODE.size : place + NODE.size + NODE.unpack_from(data, place)[3]]


def _child(data: bytes, place: int) -> int:
    low, high, flags, _ = NODE.unpack_from(data, place)
    return int(low | high << 16 | flags << 32)


def _parse_meta(data: bytes) -> _Meta | None:
    """Return the meta record of a page, None where there is none."""
    least = PAGE_HEADER.size + META.size + 2 * DATABASE.size + META_TAIL.size
    if len(data) < least or not PAGE_HEADER.unpack_from(data)[2] & META_PAGE:
        return None
    magic, version, _, _ = META.unpack_from(data, PAGE_HEADER.size)
    free_at = PAGE_HEADER.size + META.size
    page_bytes = DATABASE.unpack_from(data, free_at)[0]
    _, flags, depth, _, _, _, entries, root = DATABASE.unpack_from(data, free_at + DATABASE.size)
    last_page, transaction = META_TAIL.unpack_from(data, free_at + 2 * DATABASE.size)
    if magic != MAGIC or version != DATA_VERSION or page_bytes not in PAGE_SIZES or last_page >= MAX_PAGE:
        return None
    return _Meta(
        page_bytes=page_bytes,
        depth=depth,
        flags=flags,
        entries=entries,
        root=root,
        last_page=last_page,
        transaction=transaction,
    )
