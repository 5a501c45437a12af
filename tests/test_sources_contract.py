"""What every source promises, whatever it reads."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_inputs import (
    everything,
    img2dataset_row,
    items,
    photo,
    rejects,
    sample_files,
    write_coco,
    write_img2dataset_shard,
    write_jsonl,
    write_photos,
    write_tar,
)

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.images import decode_rgb
from vlbert_data.sources.base import Source, SourceItem, SourceReject
from vlbert_data.sources.open import open_source


def make_coco(folder: Path) -> list[Path]:
    write_photos(folder, (f"{i}.jpg" for i in range(7)))
    images = [{"id": i % 6, "file_name": f"{i}.jpg", "width": 12, "height": 8} for i in range(7)]
    captions = [(i, f"caption {j} of {i}") for j in range(2) for i in (0, 1, 2, 4, 5, 77)]
    return [write_coco(folder / "captions.json", images, captions)]


def make_tsv(folder: Path) -> list[Path]:
    write_photos(folder, (f"{i:08d}.jpg" for i in range(7)))
    path = folder / "cc.tsv"
    path.write_text("".join(f"caption {i}\thttp://example.org/{i}\n" for i in range(5)) + "broken line\nlast\turl")
    return [path]


def make_jsonl(folder: Path) -> list[Path]:
    write_photos(folder, (f"{i}.jpg" for i in range(9)))
    first = [{"image": f"{i}.jpg", "caption": f"caption {i}", "id": i % 3} for i in range(4)]
    second = [{"image": f"{i}.jpg", "captions": ["a", "b"]} for i in range(4, 9)]
    return [
        write_jsonl(folder / "a.jsonl", first),
        write_jsonl(folder / "b.jsonl", [*second[:2], "{broken", *second[2:]]),
    ]


def make_parquet(folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for part, count in enumerate((7, 1, 4)):
        rows = [
            {"image": {"bytes": photo(i), "path": f"{i}.jpg"}, "caption": f"caption {i}", "id": i if part else None}
            for i in range(count)
        ]
        rows[-1]["caption"] = None if part else "last"
        paths.append(folder / f"{part}.parquet")
        schema = pa.schema(
            [
                ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                ("caption", pa.string()),
                ("id", pa.int64()),
            ]
        )
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), paths[-1], row_group_size=3)
    return paths


def make_webdataset(folder: Path) -> list[Path]:
    whole = write_tar(folder / "00.tar", sample_files(["a", "b", "c"]))
    broken = write_tar(folder / "01.tar", [*sample_files(["a", "b"]), ("c.txt", b"no image"), *sample_files(["a"])])
    data = write_tar(folder / "02.tar", sample_files(["a", "b", "c"])).read_bytes()
    (folder / "02.tar").write_bytes(data[: len(data) // 2])
    return [whole, broken, folder / "02.tar"]


def make_img2dataset(layout: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        for shard in (0, 2):
            rows = [img2dataset_row(shard, index) for index in (3, 0, 1, 7, 5)]
            rows[2] |= img2dataset_row(shard, 1, status="failed_to_download", error_message="HTTP Error 404: Not found")
            write_img2dataset_shard(folder, shard, rows, layout)
        (folder / "00003.parquet").write_bytes(b"")
        return [folder]

    return make


MAKERS: dict[str, Callable[[Path], list[Path]]] = {
    "coco": make_coco,
    "conceptual-captions": make_tsv,
    "jsonl": make_jsonl,
    "parquet": make_parquet,
    "webdataset": make_webdataset,
    "img2dataset webdataset": make_img2dataset("webdataset"),
    "img2dataset files": make_img2dataset("files"),
    "img2dataset parquet": make_img2dataset("parquet"),
}


@pytest.fixture(scope="module", params=list(MAKERS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path], Source]:
    name = request.param
    folder = tmp_path_factory.mktemp("data") / "input"
    folder.mkdir()
    paths = MAKERS[name](folder)
    return name, paths, open_source(paths)


Made = tuple[str, list[Path], Source]


def comparable(entry: SourceItem | SourceReject) -> str:
    return repr(entry) if isinstance(entry, SourceReject) else f"{entry!r} {entry.location.read()!r}"


def test_the_format_is_told_from_the_content(made: Made) -> None:
    name, _, source = made
    assert source.facts()["format"] == name.split()[0]


def test_every_number_comes_once_and_in_order(made: Made) -> None:
    _, _, source = made
    assert [entry.number for entry in everything(source)] == list(range(len(source)))
    assert items(source) and rejects(source)  # each of these inputs has both


def test_items_keep_their_promises(made: Made) -> None:
    _, _, source = made
    found = items(source)
    assert len({item.image_id for item in found}) == len(found)
    for item in found:
        assert item.image_id and item.file_name
        assert item.captions and all(caption and caption == caption.strip() for caption in item.captions)
        pixels = decode_rgb(item.location.read())
        assert item.expected_size_px in (None, (pixels.shape[1], pixels.shape[0]))
        json.dumps(dict(item.extra), allow_nan=False)


def test_rejects_say_where_why_and_what(made: Made) -> None:
    for reject in rejects(made[2]):
        assert reject.where and reject.reason and reject.detail
        assert reject.reason == reject.reason.lower() and len(reject.reason) < 40


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_range_alone_equals_that_part_of_the_whole(made: Made, data: st.DataObject) -> None:
    _, paths, source = made
    start = data.draw(st.integers(0, len(source)))
    stop = data.draw(st.integers(start, len(source) + 3))
    alone = open_source(paths)
    expected = [comparable(entry) for entry in everything(source)[start:stop]]
    assert [comparable(entry) for entry in alone.read(start, stop)] == expected


def test_sources_and_items_travel_to_other_processes(made: Made) -> None:
    _, _, source = made
    list(source.read(0, 2))  # whatever is kept from reading must not hinder
    copy = pickle.loads(pickle.dumps(source))
    assert [comparable(entry) for entry in everything(copy)] == [comparable(entry) for entry in everything(source)]
    assert copy.fingerprint() == source.fingerprint()


def test_facts_are_json_and_name_every_input_file(made: Made) -> None:
    _, paths, source = made
    facts = json.loads(json.dumps(source.facts(), allow_nan=False))
    assert facts["count"] == len(source)
    for path in paths:
        if path.is_file():
            (file,) = (file for file in facts["files"] if file["name"] == path.name)
            assert file["bytes"] == path.stat().st_size
            assert file["hashed"] == "whole" and len(bytes.fromhex(file["blake2b"])) == 16


def copied(paths: list[Path], folder: Path) -> list[Path]:
    """Return the same inputs in a copy of their folder."""
    shutil.copytree(paths[0] if paths[0].is_dir() else paths[0].parent, folder)
    return [folder / path.name if path.is_file() else folder for path in paths]


def test_the_fingerprint_stays_when_the_data_move(made: Made, tmp_path: Path) -> None:
    _, paths, source = made
    assert open_source(copied(paths, tmp_path / "elsewhere")).fingerprint() == source.fingerprint()


def test_a_changed_byte_in_any_input_file_changes_the_fingerprint(made: Made, tmp_path: Path) -> None:
    _, paths, source = made
    moved = copied(paths, tmp_path / "changed")
    files = [path for path in moved if path.is_file()] or sorted(moved[0].glob("0000[02].[pt]a*"))
    assert files
    for path in files:
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        try:
            assert open_source(moved).fingerprint() != source.fingerprint(), path
        except ConfigError as error:
            assert str(path) in str(error)  # a change that makes the input unusable is told
        path.write_bytes(data)


def test_a_vanished_image_costs_its_record_only(made: Made) -> None:
    _, _, source = made
    for item in items(source):
        path = getattr(item.location, "path", None)
        if path is None:
            continue  # came with its row
        Path(path).rename(f"{path}.away")
        try:
            with pytest.raises(RecordRejectedError) as caught:
                item.location.read()
        finally:
            Path(f"{path}.away").rename(path)
        assert caught.value.reason in ("image not found", "image not readable")
