"""Conceptual Captions TSV: caption TAB url, with images downloaded under their row's number. One input is one line."""

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.sources.base import FileImage, SourceItem, SourceReject
from vlbert_data.sources.files import check_line, fingerprint, index_lines, require_folder
from vlbert_data.sources.records import captions_of, item_or_reject, positional_id

# The number of columns is taken from this many first lines.
SAMPLED_LINES = 100
HEADER_NAMES = ("caption", "url")


class ConceptualCaptionsSource:
    """The lines of one TSV; memory holds 8 bytes a line.

    With two columns the image of row i is `{i:08d}.jpg`, rows counted from 0 (a header line is no row); with three the
    third column is the image's path. Both are relative to the images' folder.
    """

    def __init__(self, path: Path, *, images: Path | None = None) -> None:
        """Index the file. images: the folder of the images; by default the file's own.

        Raises:
            ConfigError: the file is unreadable, or its lines are not caption TAB url.
        """
        self._images = images and require_folder(images)
        self._root = path.parent if self._images is None else self._images
        lines = index_lines(path, name=path.name, skip_blank=False)
        self._num_columns = _most_common_width(path, lines.read(0, SAMPLED_LINES))
        first_line = next(lines.read(0, 1)).decode(errors="replace")
        names = tuple(column.strip().lower() for column in first_line.split("\t"))
        self._header_lines = int(names[: len(HEADER_NAMES)] == HEADER_NAMES)
        self._lines = lines

    def __len__(self) -> int:
        """Return the number of lines, without a header."""
        return len(self._lines.starts) - self._header_lines

    def read(self, start: int, stop: int) -> Iterator[SourceItem | SourceReject]:
        """Yield lines `start` to `stop` - 1."""
        skipped = self._header_lines
        for number, line in enumerate(self._lines.read(start + skipped, min(stop, len(self)) + skipped), start=start):
            where = self._lines.where(number + skipped)
            yield item_or_reject(number, where, partial(self._make_item, number, line))

    def facts(self) -> dict[str, Any]:
        """Return format, file, counts and columns."""
        return {
            "format": "conceptual-captions",
            "count": len(self),
            "files": [self._lines.facts.as_json()],
            "images": None if self._images is None else str(self._images),
            "columns": self._num_columns,
            "header": bool(self._header_lines),
        }

    def fingerprint(self) -> str:
        """Return a digest of the file's contents and the name of the images' folder."""
        return fingerprint(self.facts())

    def _make_item(self, number: int, line: bytes) -> SourceItem:
        check_line(line)
        try:
            columns = line.decode().split("\t")
        except UnicodeDecodeError as error:
            raise RecordRejectedError("bad line", f"not UTF-8: {error.reason} at byte {error.start}") from error
        if len(columns) != self._num_columns:
            raise RecordRejectedError(
                "wrong column count", f"{len(columns)} columns between tabs; this file's lines have {self._num_columns}"
            )
        name = columns[2].strip() if self._num_columns == 3 else f"{number:08d}.jpg"
        if not name:
            raise RecordRejectedError("bad line", "the third column, the image's path, is empty")
        return SourceItem(
            number=number,
            image_id=positional_id(number),
            captions=captions_of({"caption": columns[0]}),
            location=FileImage(str(self._root / name)),
            file_name=name,
            extra={"url": columns[1].strip()},
        )


def _most_common_width(path: Path, lines: Iterable[bytes]) -> int:
    """Return how many columns most of the lines have, 2 or 3."""
    counts = Counter(line.count(b"\t") + 1 for line in lines)
    widths = [width for width, _ in counts.most_common() if width in (2, 3)]
    if widths:
        return widths[0]
    if not counts:
        raise ConfigError(f"{path}: an empty file; expected lines of caption TAB url.")
    found = counts.most_common(1)[0][0]
    raise ConfigError(
        f"{path}: the first lines have {found} columns between tabs; expected caption TAB url, or caption TAB url TAB "
        "path of the image."
    )
