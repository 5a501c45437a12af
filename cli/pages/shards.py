"""The page of `vlb inspect-shard --html`: facts, histograms and a gallery of images with their RoIs.

Promise: what is shown is stated on the page: how many images of how many, where pictures are from, how many have none.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cli.pages.page import render
from cli.pages.pictures import PictureFolder, from_folder, stored_picture
from vlbert_data.errors import ShardError
from vlbert_data.manifest import FILE_NAME as MANIFEST
from vlbert_data.report import Images, facts, spread
from vlbert_data.types import Array, ImageRois
from vlbert_data.verify import CHANGED, Verdict

# Of the classes stored with a RoI, so many of the likeliest are shown.
CLASSES_SHOWN = 5
LEAST_PROBABILITY = 0.005
FINDINGS_SHOWN = 200
SCRIPTS = ("shards_figures.js", "shards_gallery.js")
NO_PICTURES = "none is stored; build with --thumbnails, or give --images DIR"


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a page is to show: `most_images`, spread evenly; pictures from a folder of image files, or stored ones."""

    most_images: int
    pictures_from: Path | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPage:
    """A page and what is said of it: images shown of `of`, pictures among them."""

    html: bytes
    shown: int
    of: int
    pictures: int


def make_page(path: Path, wanted: Wanted, advance: Callable[[int], None] = lambda done: None) -> ShardPage:
    """Return the page of a folder or a shard file. advance: called with how many images are done.

    Raises:
        ConfigError: no picture is found in the folder of pictures.
        ShardError: damaged, and no verdict says so.
    """
    title, damaged = f"{path.name} · shard report", wanted.verdict is not None and not wanted.verdict.sound
    verdict = None if wanted.verdict is None else verdict_facts(wanted.verdict)
    images = _open(path) if damaged else Images.open(path)
    if images is None:
        page = render(title, SCRIPTS, {"path": str(path), "verdict": verdict, "facts": None}, [])
        return ShardPage(html=page, shown=0, of=0, pictures=0)
    among = _sound_images(images, wanted.verdict)
    records = [images.read_sound(int(image)) for image in among[spread(len(among), wanted.most_images)]]
    pictures, origin = _pictures(records, wanted.pictures_from, advance)
    count = sum(picture is not None for picture in pictures)
    found = facts(images, among)
    data = {
        "path": str(path),
        "facts": found,
        "verdict": verdict,
        "class_names": [] if images.schema.label_space is None else images.schema.label_space.class_names,
        "attribute_names": _attribute_names(found),
        "shown": {"images": len(records), "of": len(images), "sound": len(among), "pictures": count, "from": origin},
        "images": list(map(image_facts, records)),
    }
    return ShardPage(html=render(title, SCRIPTS, data, pictures), shown=len(records), of=len(images), pictures=count)


def _open(path: Path) -> Images | None:
    """Return a damaged folder where its manifest and index can be read, else None, as for a damaged shard file.

    A single file is not opened: without an index lmdb itself would search it, and damage could end this process.
    """
    try:
        return Images.open(path) if path.is_dir() else None
    except ShardError:
        return None


def _sound_images(images: Images, verdict: Verdict | None) -> Array:
    """Return int64, rising: the images whose records the verdict has read and found good."""
    everything = np.arange(len(images))
    if verdict is None or verdict.sound:
        return everything
    assert images.folder is not None, "a damaged file is not opened"
    index, manifest = images.folder.index, images.folder.manifest
    unread = {finding.file for finding in verdict.findings if finding.image_id is None and finding.problem != CHANGED}
    if {MANIFEST, manifest.index.file} & {finding.file for finding in verdict.findings}:
        return everything[:0]
    is_read = np.array([entry.file not in unread for entry in manifest.shards])[index.shard]
    for finding in verdict.findings:
        if finding.image_id is not None and (image := index.find(finding.image_id)) is not None:
            is_read[image] = False
    sound: Array = everything[is_read]
    return sound


def _pictures(
    records: Sequence[ImageRois], path: Path | None, advance: Callable[[int], None]
) -> tuple[list[bytes | None], str]:
    """Return the pictures of records and where they are from, in words."""
    if path is not None:
        return from_folder(PictureFolder(path), [record.image_id for record in records], advance), f"from {path}"
    pictures = [stored_picture(record.thumbnail) for record in records]
    return pictures, "stored thumbnails" if any(pictures) else NO_PICTURES


def verdict_facts(verdict: Verdict) -> dict[str, Any]:
    """Return what verifying found, as JSON types, the first findings only."""
    findings = [asdict(finding) for finding in verdict.findings[:FINDINGS_SHOWN]]
    return {
        "sound": verdict.sound,
        "files": verdict.files,
        "bytes": verdict.bytes,
        "num_findings": len(verdict.findings),
        "findings": findings,
    }


def image_facts(record: ImageRois) -> dict[str, Any]:
    """Return what the gallery shows of an image; a RoI as [x0, y0, x1, y1, score, [class, probability, ...], attribute,
    its probability]."""
    views = record.masked_views
    return {
        "id": record.image_id,
        "w": record.width_px,
        "h": record.height_px,
        "captions": list(record.captions),
        "rois": [_roi(record, number) for number in range(record.num_rois)],
        "views": [] if views is None else [chosen.nonzero()[0].tolist() for chosen in views.chosen],
    }


def _roi(record: ImageRois, number: int) -> list[Any]:
    rois = record.rois
    classes: list[float] = []
    pairs = zip(rois.label_ids[number, :CLASSES_SHOWN], rois.label_probs[number, :CLASSES_SHOWN], strict=True)
    for place, (label, probability) in enumerate(pairs):
        if place == 0 or probability >= LEAST_PROBABILITY:
            classes += [int(label), round(float(probability), 3)]
    box = [round(float(edge), 1) for edge in rois.boxes[number]]
    found: list[Any] = [*box, round(float(rois.scores[number]), 3), classes]
    if rois.attribute_ids is not None and rois.attribute_probs is not None:
        found += [int(rois.attribute_ids[number]), round(float(rois.attribute_probs[number]), 3)]
    return found


def _attribute_names(found: dict[str, Any]) -> list[str] | None:
    """Return the names of attributes, where the detector brought them."""
    names = found.get("detector", {}).get("attribute_names")
    return names if isinstance(names, list) else None
