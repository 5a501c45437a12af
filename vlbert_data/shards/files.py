"""Files that are whole or absent. Promise: what stands under its own name was written to the end and synced."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blake3 import blake3

from vlbert_data.errors import ShardError

HASH_CHUNK_BYTES = 1 << 20


def temporary_name(path: Path) -> Path:
    """Return the name under which `path` is written before it is whole."""
    return path.with_name(f".{path.name}.tmp")


def publish(temporary: Path, path: Path, *, meanwhile: Callable[[], None] = lambda: None) -> str:
    """Sync `temporary` to disk, rename it to `path`, sync the folder, and return the hex BLAKE3 of its bytes.

    So a power cut leaves all or nothing. The hash is computed while the disk works. meanwhile: what else can be done
    with `temporary` then; if it raises, nothing is renamed.
    """
    with ThreadPoolExecutor(2) as pool, temporary.open("rb") as stream:
        digest, other = pool.submit(blake3_file, temporary), pool.submit(meanwhile)
        os.fsync(stream.fileno())
        found = digest.result()
        other.result()
    temporary.replace(path)
    sync_folder(path.parent)
    return found


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_space(folder: Path, num_bytes: int) -> None:
    """Pass where the disk of `folder` has room for so many bytes more.

    Raises:
        OSError: it has not, as the system itself would say when the disk is full.
    """
    if shutil.disk_usage(folder).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def try_size(path: Path, num_bytes: int) -> None:
    """Make an empty file at `path`, after seeing that it could have so many bytes.

    Raises:
        OSError: it could not: the disk is full, a quota or a limit is reached.
    """
    require_space(path.parent, num_bytes)
    with path.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, num_bytes)
            stream.truncate(0)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; on success it becomes `path`, on an error it is removed."""
    temporary = temporary_name(path)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def no_empty_folder(path: Path) -> Iterator[None]:
    """Give room for work that makes the folder `path`; if it fails, remove what it made of the path, where it is empty.

    A folder that was there before stays.
    """
    absent = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in absent:
            with contextlib.suppress(OSError):  # something is in it, or it was never made
                folder.rmdir()
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, all or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def blake3_file(path: Path) -> str:
    """Return the hex BLAKE3 of a file's bytes, read in constant memory; `b3sum` prints the same."""
    digest, chunk = blake3(), memoryview(bytearray(HASH_CHUNK_BYTES))
    with path.open("rb", buffering=0) as stream:
        while size := stream.readinto(chunk):
            digest.update(chunk[:size])
    return digest.hexdigest()


def blake2b_json(facts: Any) -> str:
    """Return the hex blake2b-256 of JSON types in canonical form; the order of keys does not matter."""
    return hashlib.blake2b(canonical_json(facts), digest_size=32).hexdigest()


def canonical_json(facts: Any) -> bytes:
    """Return JSON types as UTF-8 with sorted keys and no spaces: equal facts, equal bytes."""
    return encode_json(json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False))


def encode_json(text: str) -> bytes:
    """Return JSON text as UTF-8; what UTF-8 cannot write, such as file names that are no text, as JSON escapes."""
    return text.encode(errors="backslashreplace")


def read_json(path: Path, *, what: str) -> Any:
    """Return the parsed JSON of `path`.

    Raises:
        ShardError: missing, unreadable or not JSON; `what` says what the file is.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ShardError(f"{path}: there is no {what}.") from error
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ShardError(f"{path}: not the {what} it should be: {error}. Restore it or rebuild the folder.") from error
