"""Small inputs of every format, made on the spot."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from vlbert_data.sources.base import Source, SourceItem, SourceReject


def photo(number: int = 0, *, size: tuple[int, int] = (12, 8), file_format: str = "JPEG") -> bytes:
    """Return an encoded picture of (width, height) whose colour tells its number."""
    colour = (number * 37 % 256, number * 91 % 256, 128)
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, file_format)
    return stream.getvalue()


def write_photos(folder: Path, names: Iterable[str]) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(number))
    return folder


def write_tar(path: Path, files: Sequence[tuple[str, bytes]], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sample_files(keys: Iterable[str], *, caption: str = "a photo") -> list[tuple[str, bytes]]:
    """Return image, text and JSON files of webdataset samples."""
    files = []
    for number, key in enumerate(keys):
        facts = {"caption": "not this one", "url": f"http://example.org/{key}", "width": 12, "height": 8}
        files.append((f"{key}.jpg", photo(number)))
        files.append((f"{key}.txt", f" {caption} {key}\n".encode()))
        files.append((f"{key}.json", json.dumps(facts).encode()))
    return files


def write_coco(path: Path, images: Sequence[Mapping[str, Any]], captions: Sequence[tuple[Any, Any]]) -> Path:
    annotations = [{"id": i, "image_id": image_id, "caption": text} for i, (image_id, text) in enumerate(captions)]
    licenses = [{"id": 4, "name": "Attribution License", "url": "http://example.org/by"}]
    path.write_text(json.dumps({"licenses": licenses, "images": list(images), "annotations": annotations}))
    return path


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    """Write records, one a line; text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in records))
    return path


def img2dataset_row(shard: int, index: int, **changes: Any) -> dict[str, Any]:
    """Return a row as img2dataset 1.47 writes it for a photo that it downloaded; `changes` override."""
    row = {
        "url": f"http://example.org/{shard}/{index}.jpg",
        "caption": f"photo {index} of shard {shard}",
        "key": f"{shard * 10000 + index:09d}",
        "status": "success",
        "error_message": None,
        "width": 12,
        "height": 8,
        "original_width": 24,
        "original_height": 16,
        "exif": "{}",
        "sha256": f"{index:064x}",
    }
    if changes.get("status", "success") != "success":
        row |= {"width": None, "height": None, "original_width": None, "original_height": None, "sha256": None}
    return row | changes


IMG2DATASET_SCHEMA = [
    ("url", pa.string()),
    ("caption", pa.string()),
    ("key", pa.string()),
    ("status", pa.string()),
    ("error_message", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("original_width", pa.int32()),
    ("original_height", pa.int32()),
    ("exif", pa.string()),
    ("sha256", pa.string()),
]


def write_img2dataset_shard(folder: Path, shard: int, rows: Sequence[dict[str, Any]], layout: str) -> None:
    """Write one finished shard: the table in the order of `rows`, the images of its successes, the statistics last."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{shard:05d}"
    good = [row for row in rows if row["status"] == "success"]
    images = {row["key"]: photo(int(row["key"]), size=(row["width"] or 12, row["height"] or 8)) for row in good}
    schema = list(IMG2DATASET_SCHEMA)
    if layout == "parquet":
        schema.append(("jpg", pa.binary()))
        rows = [row | {"jpg": images.get(row["key"])} for row in rows]
    elif layout == "webdataset":
        files = [
            (f"{key}.{ending}", data)
            for key, image in images.items()
            for ending, data in (("jpg", image), ("json", b"{}"), ("txt", b"x"))
        ]
        write_tar(folder / f"{name}.tar", files)
    else:
        for key, image in images.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{key}.jpg").write_bytes(image)
            (folder / name / f"{key}.json").write_text("{}")
    pq.write_table(
        pa.Table.from_pylist(list(rows), schema=pa.schema(schema)), folder / f"{name}.parquet", row_group_size=3
    )
    statistics = {"count": len(rows), "successes": len(good), "failed_to_download": len(rows) - len(good)}
    (folder / f"{name}_stats.json").write_text(json.dumps(statistics))


def everything(source: Source) -> list[SourceItem | SourceReject]:
    return list(source.read(0, len(source)))


def items(source: Source) -> list[SourceItem]:
    return [entry for entry in everything(source) if isinstance(entry, SourceItem)]


def rejects(source: Source) -> list[SourceReject]:
    return [entry for entry in everything(source) if isinstance(entry, SourceReject)]


def average_colour(data: bytes) -> tuple[int, ...]:
    with Image.open(io.BytesIO(data)) as image:
        return tuple(int(value) for value in np.asarray(image.convert("RGB")).reshape(-1, 3).mean(axis=0).round())
