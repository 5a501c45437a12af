"""What bench_shard_write and bench_shard_read both measure on. Promise: the same records from the same numbers."""

from pathlib import Path

from vlbert_data.shards.job import FolderFacts, write_records
from vlbert_data.shards.schema import record_arrays
from vlbert_data.synthetic import FakeShards, make_records
from vlbert_data.types import ImageRois

SHARD_SIZE = 1000


def fake_features(num_images: int) -> FakeShards:
    """Return the description of images with 10 to 50 RoIs of 2048 float16 features and 32 of 1600 classes."""
    return FakeShards(num_images=num_images, num_rois=(10, 50), feature_dim=2048, num_classes=1600, label_topk=32)


def records_and_bytes(fake: FakeShards) -> tuple[list[ImageRois], list[bytes]]:
    """Return all records, and of each the bytes of its arrays one after another."""
    records = list(make_records(fake))
    schema = fake.schema()
    return records, [b"".join(array.tobytes() for _, array in record_arrays(record, schema)) for record in records]


def write_folder(out: Path, fake: FakeShards, records: list[ImageRois], container: str) -> None:
    """Write records the way every writer of folders does: checked, with CRCs, synced, hashed, indexed."""
    facts = FolderFacts(container=container, schema=fake.schema(), detector={}, describer={}, source={}, build={})
    write_records(out, records, facts, shard_size=SHARD_SIZE)
