"""The Parquet index of a folder: a row an image. Promise: small, columnar, and enough to plan without opening a shard.

Columns: image_id (string), shard, row, num_rois, num_captions, width_px, height_px (int32), crc32 (uint32, of the
record's contents) and value_offset (int64, the byte of the shard file at which an LMDB value begins; -1 in HDF5).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlbert_data.errors import ShardError
from vlbert_data.types import Array

# The most that are held at once; an image's row is about 70 bytes, and thrice that while it is written.
ROWS_A_GROUP = 1 << 18
SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("num_rois", pa.int32()),
        ("num_captions", pa.int32()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("crc32", pa.uint32()),
        ("value_offset", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageIndex:
    """All columns in memory as numpy arrays [n], about 45 bytes an image; ids stay in Arrow."""

    image_ids: pa.ChunkedArray = field(repr=False)
    shard: Array
    row: Array
    num_rois: Array
    num_captions: Array
    width_px: Array
    height_px: Array
    crc32: Array
    value_offset: Array

    def __len__(self) -> int:
        return len(self.shard)

    def image_id(self, image: int) -> str:
        """Return the id of image number `image`."""
        return str(self.image_ids[image].as_py())

    def find(self, image_id: str) -> int | None:
        """Return the number of the image with this id, or None."""
        found = pc.index(self.image_ids, image_id).as_py()
        return None if found < 0 else int(found)

    def shard_slice(self, shard: int) -> slice:
        """Return where the rows of `shard` stand; they follow one another in order."""
        # Of the column's own type: numpy would make a copy of the whole column in a larger one.
        borders = np.array([shard, shard + 1], self.shard.dtype)
        return slice(*np.searchsorted(self.shard, borders).tolist())


def from_table(table: pa.Table) -> ImageIndex:
    """Return the index held by an Arrow table of `SCHEMA`."""
    columns = {name: table[name].to_numpy() for name in SCHEMA.names if name != "image_id"}
    return ImageIndex(image_ids=table["image_id"], **columns)


def save(tables: Iterable[pa.Table], path: Path) -> None:
    """Write the tables one after another as one Parquet file; equal rows give equal bytes, whatever the tables.

    Tables are taken one by one, and no more than ROWS_A_GROUP rows and one table are held at once.
    """
    # A stream, not the path: Arrow takes only names that are text.
    with path.open("wb") as stream, pq.ParquetWriter(stream, SCHEMA, compression="zstd") as writer:
        waiting = SCHEMA.empty_table()
        for table in tables:
            waiting = pa.concat_tables([waiting, table.cast(SCHEMA)])
            while len(waiting) > ROWS_A_GROUP:
                writer.write_table(waiting.slice(0, ROWS_A_GROUP))
                waiting = waiting.slice(ROWS_A_GROUP)
        writer.write_table(waiting)


def read_rows(path: Path) -> pa.Table:
    """Return the table in a Parquet file of `SCHEMA`, read by this thread alone.

    Arrow's own threads can abort a process that ends soon after they began to read: on a busy machine, one in twenty.

    Raises:
        pa.ArrowException, OSError, ValueError: missing, damaged, or of other columns.
    """
    with path.open("rb") as stream:
        return pq.ParquetFile(stream, pre_buffer=False).read(use_threads=False).cast(SCHEMA)


def load(path: Path) -> ImageIndex:
    """Return the index in `path`.

    Raises:
        ShardError: missing, damaged, of other columns, or not ordered by shard and row.
    """
    try:
        table = read_rows(path)
    except FileNotFoundError as error:
        raise ShardError(f"{path}: there is no index. Copy the folder again or rebuild it.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ShardError(f"{path}: the index is damaged: {error}. Copy the folder again or rebuild it.") from error
    index = from_table(table)
    shards, rows = np.diff(index.shard), np.diff(index.row)
    if ((shards < 0) | ((shards == 0) & (rows <= 0))).any():
        raise ShardError(f"{path}: the index is not ordered by shard and row. Copy the folder again or rebuild it.")
    return index
