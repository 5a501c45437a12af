"""An import in a few words, for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.foreign_files import Detections
from vlbert_data.build.config import BuildConfig
from vlbert_data.importers.base import FormatOptions
from vlbert_data.importers.captions import open_captions
from vlbert_data.importers.image_sizes import open_image_sizes
from vlbert_data.importers.labels import LabelChoice
from vlbert_data.importers.open import open_importer
from vlbert_data.importers.run import Beside, Import
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.types import Array


def make_import(
    source: Path | list[Path],
    out: Path,
    *,
    captions: Path | None = None,
    sizes: Path | None = None,
    labels: LabelChoice = LabelChoice(),  # noqa: B008  (frozen)
    key_pattern: str | None = None,
    format_name: str | None = None,
    **settings: Any,
) -> Import:
    """Return an import that was not run yet."""
    sources = source if isinstance(source, list) else [source]
    options = FormatOptions(class_names=labels.class_names, labels=not labels.absent)
    return Import(
        folder=out,
        importer=open_importer([str(path) for path in sources], format_name=format_name, options=options),
        config=BuildConfig(**settings),
        beside=Beside(
            labels=labels,
            captions=None if captions is None else open_captions(captions),
            sizes=None if sizes is None else open_image_sizes(sizes),
            key_pattern=key_pattern,
        ),
    )


def run_import(source: Path | list[Path], out: Path, **given: Any) -> ShardFolder:
    """Import and return the finished folder."""
    make_import(source, out, **given).run()
    return ShardFolder.open(out)


def rejects(folder: ShardFolder) -> list[dict[str, Any]]:
    """Return the lines of rejects.jsonl."""
    return [json.loads(line) for line in (folder.path / "rejects.jsonl").read_text().splitlines()]


def foreground_order(found: Detections) -> Array:
    """Return the order of RoIs that shards promise, the slow obvious way."""
    confidence = [max(row[1:]) for row in found.cls_prob.tolist()]
    return np.array(sorted(range(found.num), key=lambda roi: -confidence[roi]))
