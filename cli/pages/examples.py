"""The page of `vlb evaluate --html`: figures, and captions with what was guessed of their masked words and RoIs.

Promise: every guess stands beside the truth, and which captions are shown of how many is said on the page.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cli.pages.page import render
from cli.pages.pictures import PictureFolder, stored_picture
from vlbert_data.types import ImageRois
from vlbert_train.evaluate import Report
from vlbert_train.guesses import Guess, GuessedExample

SCRIPTS = ("evaluation_figures.js", "evaluation_examples.js")


class _Pictures:
    """The pictures of a page, each once; `place` says where an image's stands."""

    def __init__(self, folder: PictureFolder | None) -> None:
        self._folder = folder
        self._places: dict[str, int] = {}
        self.all: list[bytes | None] = []

    def place(self, record: ImageRois) -> int:
        if record.image_id not in self._places:
            stored = stored_picture(record.thumbnail)
            self._places[record.image_id] = len(self.all)
            self.all.append(stored if self._folder is None else self._folder.picture(record.image_id))
        return self._places[record.image_id]


def make_page(
    report: Report, examples: Iterable[GuessedExample], class_names: tuple[str, ...], pictures_from: Path | None = None
) -> bytes:
    """Return the page of a report and some of the captions that it measured.

    class_names: what stored class ids mean. pictures_from: a folder of image files; None shows stored thumbnails.

    Raises:
        ConfigError: there is no such folder.
    """
    pictures = _Pictures(None if pictures_from is None else PictureFolder(pictures_from))
    found = [_example(example, pictures) for example in examples]
    data: Mapping[str, Any] = {"report": report.as_json(), "class_names": class_names, "examples": found}
    return render(f"{Path(report.checkpoint).name} · evaluation", SCRIPTS, data, pictures.all)


def _example(example: GuessedExample, pictures: _Pictures) -> dict[str, Any]:
    image = example.image
    return {
        "name": example.name,
        "id": image.image_id,
        "w": image.width_px,
        "h": image.height_px,
        "picture": pictures.place(image),
        "other": None if example.other is None else _other(example.other, pictures),
        "pieces": example.pieces,
        "words": [
            {
                **asdict(word),
                "guesses": _pairs(word.guesses),
                "other_guesses": _pairs(word.other_guesses),
                "probability": _rounded(word.probability),
                "other_probability": None if word.other_probability is None else _rounded(word.other_probability),
            }
            for word in example.words
        ],
        "masked": [{**asdict(roi), "truth": _pairs(roi.truth), "guesses": _pairs(roi.guesses)} for roi in example.rois],
        "hidden": example.hidden,
        "rois": [_roi(image, number) for number in range(example.num_rois)],
    }


def _other(record: ImageRois, pictures: _Pictures) -> dict[str, Any]:
    return {"id": record.image_id, "picture": pictures.place(record), "w": record.width_px, "h": record.height_px}


def _roi(record: ImageRois, number: int) -> list[float | None]:
    """Return [x0, y0, x1, y1, class or None] of a RoI."""
    labels = record.rois.label_ids[number]
    return [*(round(float(edge), 1) for edge in record.rois.boxes[number]), int(labels[0]) if len(labels) else None]


def _pairs(guesses: tuple[Guess, ...]) -> list[tuple[str, float]]:
    return [(guess.name, _rounded(guess.probability)) for guess in guesses]


def _rounded(probability: float) -> float:
    return round(probability, 4)
