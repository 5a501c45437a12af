"""The world on disk: photos, captions, texts, small models. Promise: a finished world is not made again.

FOLDER/train/photos/00000.jpg ...   FOLDER/train/captions.jsonl   what is learned from
FOLDER/validation/...                                             the same, of other scenes
FOLDER/texts/stories-0.txt ...                                    documents with blank lines between them
FOLDER/vocab.txt                                                  the tokenizer's vocabulary
FOLDER/words.txt                                                  words that only the picture tells, a group a line
FOLDER/models/detector, FOLDER/models/describer                   models that know this world
FOLDER/build.toml                                                 settings of vlb build-shards for them
FOLDER/world.json                                                 written last: what was asked for
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vlbert_data.errors import ConfigError
from vlbert_data.shards.files import read_json, write_bytes
from vlbert_data.tour.scenes import HEIGHT_PX, WIDTH_PX, make_scene
from vlbert_data.tour.sentences import WORD_GROUPS, make_captions, make_document, vocabulary

# Made by benchmarks/train_tour_models.py.
MODELS = Path(__file__).parent / "models"
# Fewer than scenes may have: so that it is learned in minutes which of them a caption means.
MOST_THINGS = 3
JPEG_QUALITY = 92
DOCUMENTS_A_FILE = 500
BUILD_SETTINGS = f"""\
min_rois = 1  # a photo shows two or three shapes
max_rois = 8
score_threshold = 0.1
nms = 0.5
label_topk = 8
masked_views = 2  # for masking.leakage = "pixels"
short_side_px = {HEIGHT_PX}  # photos are small: described as they are
long_side_px = {WIDTH_PX}
batch_size = 16
"""
# Streams of random numbers beside that of scenes, (seed, number).
CAPTIONS, TEXTS = 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldSize:
    """How much of a world: photos to learn from and to validate on, documents of text; seed: which world."""

    train_images: int = 3000
    validation_images: int = 400
    documents: int = 2000
    seed: int = 0


def make_world(folder: Path, size: WorldSize, advance: Callable[[int], None] = lambda done: None) -> bool:
    """Make the world in `folder`, and return whether it had to be made; advance: told how many photos are done.

    Raises:
        ConfigError: the folder holds another world.
    """
    done, wanted = folder / "world.json", asdict(size)
    if done.exists():
        if read_json(done, what="a world of the tour") != wanted:
            raise ConfigError(
                f"{folder}: holds a world of another size or seed. Begin anew with --fresh, or elsewhere with --out."
            )
        return False
    (folder / "texts").mkdir(parents=True, exist_ok=True)
    _write_split(folder / "train", size.seed, range(size.train_images), advance)
    held_out = range(size.train_images, size.train_images + size.validation_images)
    _write_split(folder / "validation", size.seed, held_out, lambda count: advance(size.train_images + count))
    for first in range(0, size.documents, DOCUMENTS_A_FILE):
        numbers = range(first, min(first + DOCUMENTS_A_FILE, size.documents))
        documents = [make_document(np.random.default_rng((size.seed, number, TEXTS))) for number in numbers]
        path = folder / "texts" / f"stories-{first // DOCUMENTS_A_FILE}.txt"
        write_bytes(path, ("\n\n".join(documents) + "\n").encode())
    write_bytes(folder / "vocab.txt", ("\n".join(vocabulary()) + "\n").encode())
    groups = (f"{name}: {' '.join(words)}\n" for name, words in WORD_GROUPS.items())
    write_bytes(folder / "words.txt", "".join(groups).encode())
    write_bytes(folder / "build.toml", BUILD_SETTINGS.encode())
    shutil.copytree(MODELS, folder / "models", dirs_exist_ok=True)
    write_bytes(done, json.dumps(wanted).encode())
    return True


def _write_split(folder: Path, seed: int, numbers: range, advance: Callable[[int], None]) -> None:
    """Write the photos of scenes `numbers` and the JSONL that describes them."""
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    lines = []
    for count, number in enumerate(numbers, 1):
        scene = make_scene(seed, number, most=MOST_THINGS)
        name = f"photos/{number:05d}.jpg"
        Image.fromarray(scene.pixels).save(folder / name, quality=JPEG_QUALITY)
        captions = make_captions(scene, np.random.default_rng((seed, number, CAPTIONS)))
        lines.append(json.dumps({"id": f"{number:05d}", "image": name, "captions": captions}) + "\n")
        advance(count)
    write_bytes(folder / "captions.jsonl", "".join(lines).encode())
