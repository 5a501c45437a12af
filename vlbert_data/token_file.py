"""Files of token ids, mapped into memory. Promise: any run of tokens is a view that costs microseconds and no copy.

An Arrow IPC file of one record batch, a row a text (a document of a corpus, a caption of an image):

    tokens       large_list<struct<id: uint16 | uint32, starts_word: bool>>
    line_starts  large_list<uint32>, only in a corpus: the tokens, counted from the file's first, that begin a line

In Arrow's layout of lists all ids of the file stand one after another, and the list's offsets are the texts' borders.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlbert_data.errors import ShardError
from vlbert_data.types import Array

# Positions of lines are stored as uint32.
MAX_TOKENS = 2**32 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRuns:
    """n runs of tokens, one after another: run i is [cu_lengths[i], cu_lengths[i + 1]).

    ids: [T], int64 where read for training, the stored dtype where just made. starts_word: bool [T], True at a token
    that begins a word. cu_lengths: int64 [n + 1], from 0 to T.
    """

    ids: Array
    starts_word: Array
    cu_lengths: Array

    def __len__(self) -> int:
        return len(self.cu_lengths) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFile:
    """A mapped file of T tokens in D texts; it holds no file descriptor and survives fork.

    ids: uint16 or uint32 [T]. word_bits: uint8 [>= T / 8], bit t % 8 of byte t // 8 is 1 where token t begins a word.
    offsets: int64 [D + 1], text d is [offsets[d], offsets[d + 1]). line_starts: uint32 [N], rising, empty where lines
    are not stored. metadata: what the writer noted. All arrays are read-only views of the file.
    """

    path: Path
    ids: Array
    word_bits: Array
    offsets: Array
    line_starts: Array
    metadata: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Return T."""
        return len(self.ids)

    def starts_word(self, start: int, stop: int) -> Array:
        """Return bool [stop - start]: which of the tokens [start, stop) begin a word."""
        first = start >> 3
        bits = np.unpackbits(self.word_bits[first : (stop + 7) >> 3], bitorder="little")
        return bits[start - 8 * first : stop - 8 * first].view(np.bool_)

    @staticmethod
    def open(path: Path) -> "TokenFile":
        """Return the file at `path`, mapped.

        Raises:
            ShardError: missing, cut short, damaged, or not a token file.
        """
        try:
            # Closing it gives the file descriptor back; the mapping lives as long as the arrays.
            with pa.memory_map(str(path)) as mapped:
                reader = pa.ipc.open_file(mapped)
                metadata = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
                if reader.num_record_batches != 1 or reader.schema.names[:1] != ["tokens"]:
                    raise ShardError(f"{path}: an Arrow file, but not of tokens. Build it again.")
                return _views(path, reader.get_batch(0), metadata)
        except FileNotFoundError as error:
            raise ShardError(f"{path}: there is no such file. Copy it again or build it again.") from error
        except (pa.ArrowException, OSError) as error:
            raise ShardError(f"{path}: damaged or cut short ({error}). Copy it again or build it again.") from error


def _views(path: Path, batch: pa.RecordBatch, metadata: Mapping[str, str]) -> TokenFile:
    tokens = batch.column(0)
    values = tokens.values
    bits = values.field(1).buffers()[1]
    lines = batch.column(1).values if batch.num_columns > 1 else pa.array([], pa.uint32())
    return TokenFile(
        path=path,
        ids=values.field(0).to_numpy(zero_copy_only=True),
        word_bits=np.frombuffer(bits, np.uint8) if bits else np.zeros(0, np.uint8),
        offsets=tokens.offsets.to_numpy(zero_copy_only=True),
        line_starts=lines.to_numpy(zero_copy_only=True),
        metadata=metadata,
    )


def write(path: Path, tokens: TokenRuns, lines: tuple[Array, Array] | None, metadata: Mapping[str, str]) -> None:
    """Write a token file to `path`; equal arguments give equal bytes.

    tokens: ids in the dtype to store; starts_word either bool [T], or uint8 [>= T / 8] bits as in `TokenFile`. lines:
    (line_starts uint32 [N], offsets int64 [D + 1] of each text's lines in it). Mapped arrays are not read into memory.

    Raises:
        OSError: the disk is full, or the like.
    """
    words = tokens.starts_word
    bits = np.packbits(words, bitorder="little") if words.dtype == np.bool_ else words
    columns = {"tokens": _token_column(tokens.ids, bits, tokens.cu_lengths)}
    if lines is not None:
        columns["line_starts"] = pa.LargeListArray.from_arrays(_column(lines[1]), _column(lines[0]))
    schema = pa.schema([pa.field(name, column.type, nullable=False) for name, column in columns.items()])
    batch = pa.record_batch(list(columns.values()), schema=schema.with_metadata(dict(metadata)))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _token_column(ids: Array, bits: Array, offsets: Array) -> pa.LargeListArray:
    words = pa.Array.from_buffers(pa.bool_(), len(ids), [None, pa.py_buffer(np.ascontiguousarray(bits))])
    fields = [
        pa.field("id", pa.from_numpy_dtype(ids.dtype), nullable=False),
        pa.field("starts_word", pa.bool_(), nullable=False),
    ]
    return pa.LargeListArray.from_arrays(
        _column(offsets), pa.StructArray.from_arrays([_column(ids), words], fields=fields)
    )


def _column(values: Array) -> pa.Array:
    """Return an Arrow array over the very memory of `values`."""
    whole = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(whole.dtype), len(whole), [None, pa.py_buffer(whole)])
