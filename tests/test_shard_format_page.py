"""docs/shard-format.md is enough to read a shard: its own code reads both containers as our reader does."""

import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlbert_data.shards.files import blake2b_json, blake3_file
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.schema import record_arrays
from vlbert_data.synthetic import write_shards

PAGE = Path(__file__).parents[1] / "docs" / "shard-format.md"
CASES: list[dict[str, Any]] = [
    {},
    {"masked_views": 3, "has_attributes": True, "thumbnails": True, "num_rois": (0, 3)},
    {"label_topk": 0, "captions_an_image": 1},
]


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's Python block defines."""
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert "vlbert" not in block.replace('"vlbert-shard"', "")
    names: dict[str, Any] = {}
    exec(compile(block, PAGE.name, "exec"), names)
    return names


@pytest.mark.parametrize("container", ["lmdb", "hdf5"])
@pytest.mark.parametrize("case", CASES)
def test_the_pages_reader_reads_what_ours_does(
    page: dict[str, Any], tmp_path: Path, container: str, case: dict[str, Any]
) -> None:
    folder = ShardFolder.open(write_shards(tmp_path / "s", container=container, shard_size=5, **case))
    read: Callable[[Path], Iterator[dict[str, Any]]] = page[f"read_{container}"]
    images = [image for shard in folder.manifest.shards for image in read(folder.path / shard.file)]
    assert len(images) == len(folder) == 8
    for number, found in enumerate(images):
        record = folder.read(number)
        arrays = record_arrays(record, folder.manifest.schema)
        for field, array in arrays:
            assert found[field.name].dtype == field.dtype
            np.testing.assert_array_equal(found[field.name], array)
        assert set(found) - {field.name for field, _ in arrays} == {
            *("image_id", "width_px", "height_px", "captions", "thumbnail", "crc32")
        }
        assert (found["image_id"], tuple(found["captions"])) == (record.image_id, record.captions)
        assert (found["width_px"], found["height_px"]) == (record.width_px, record.height_px)
        assert found["thumbnail"] == (record.thumbnail or b"")
        assert found["crc32"] == crc_as_described(found, [field.name for field, _ in arrays])


def crc_as_described(image: dict[str, Any], fields: list[str]) -> int:
    """Return the CRC-32 over what the page names."""
    sizes = [image["width_px"], image["height_px"], len(image["scores"]), len(image["captions"]), 0]
    data = np.array(sizes, "<u4").tobytes() + b"".join(image[name].tobytes() for name in fields)
    for text in (*image["captions"], image["image_id"]):
        data += np.array(len(text.encode()), "<u4").tobytes() + text.encode()
    return zlib.crc32(data + image["thumbnail"])


def test_hashes_and_places_are_as_the_page_says(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "s", shard_size=5)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    others = {key: value for key, value in manifest.items() if key != "content_hash"}
    assert blake2b_json(others) == manifest["content_hash"]
    for entry in (*manifest["shards"], manifest["index"], manifest["rejects_file"]):
        assert blake3_file(folder / entry["file"]) == entry["blake3"]
        assert (folder / entry["file"]).stat().st_size == entry["bytes"]
    for row in pq.read_table(folder / "index.parquet").to_pylist():
        data = (folder / manifest["shards"][row["shard"]]["file"]).read_bytes()
        assert row["value_offset"] % 64 == 16
        assert data[row["value_offset"] :][:4] == b"VLBR"


def test_every_key_and_column_is_on_the_page(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    folder = write_shards(tmp_path / "s", container="hdf5", masked_views=1, has_attributes=True)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    names = [*manifest, *manifest["label_space"], *manifest["shards"][0]]
    names += pq.read_schema(folder / "index.parquet").names
    with h5py.File(folder / "shard-00000.h5") as file:
        names += list(file.attrs)
        file.visit(names.append)
    told = set(re.findall(r"`([^`\s]+)`", text)) | {"roi", "image", "view", "caption"}
    assert not [name for name in names if name not in told]


def test_token_files_are_as_the_page_says(tmp_path: Path) -> None:
    from vlbert_data.token_file import TokenRuns, write

    runs = TokenRuns(
        ids=np.arange(5, dtype=np.uint16),
        starts_word=np.array([1, 0, 1, 1, 0], np.bool_),
        cu_lengths=np.array([0, 2, 5]),
    )
    lines = (np.array([0, 2, 4], np.uint32), np.array([0, 1, 3], np.int64))
    write(tmp_path / "x.arrow", runs, lines, {})
    with pa.OSFile(str(tmp_path / "x.arrow")) as stream:
        table = pa.ipc.open_file(stream).read_all()
    words = [[(0, True), (1, False)], [(2, True), (3, True), (4, False)]]
    assert [[tuple(token.values()) for token in text] for text in table["tokens"].to_pylist()] == words
    assert table["line_starts"].to_pylist() == [[0], [2, 4]]
    assert (
        str(table.schema.field("tokens").type.value_type) == "struct<id: uint16 not null, starts_word: bool not null>"
    )
