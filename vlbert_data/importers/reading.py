"""From input numbers to records of a shard. Promise: what comes of an input depends on the input files alone.

So any range of inputs can be imported alone, again, or in another process.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import Importer, RawRecord
from vlbert_data.importers.captions import CaptionFile
from vlbert_data.importers.image_sizes import ImageSizes
from vlbert_data.importers.keys import KeyPattern, Repeats
from vlbert_data.importers.meaning import Meaning
from vlbert_data.sources.base import SourceReject
from vlbert_data.types import ImageRois, is_unicode

WITHOUT_CAPTION = "images without caption"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of input `number`: an image, a reject, or neither where it was left out; `counts` says what and why.

    num_bytes: how much was read for it.
    """

    number: int
    where: str
    num_bytes: int = 0
    image: ImageRois | None = None
    reject: SourceReject | None = None
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """An opened input and all that is known beside it; picklable, for worker processes."""

    importer: Importer
    meaning: Meaning
    pattern: KeyPattern
    repeats: Repeats
    captions: CaptionFile | None = None
    sizes: ImageSizes | None = None

    def outcomes(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield what comes of inputs `start` to `stop` - 1, in order, one for each."""
        for number, raw in enumerate(self.importer.read(start, stop), start=start):
            yield self._outcome(number, raw, self._holds_its_id)

    def _outcome(self, number: int, raw: RawRecord | SourceReject, holds_its_id: Callable[[int], bool]) -> Outcome:
        if isinstance(raw, SourceReject):
            return Outcome(number=number, where=raw.where, reject=raw)
        try:
            image_id = self.pattern.image_id(raw.key)
            captions = self._captions(raw, image_id)
            if not captions:
                return Outcome(
                    number=number, where=raw.where, num_bytes=raw.num_bytes, counts=Counter({WITHOUT_CAPTION: 1})
                )
            image, counts = self.meaning.convert(raw, image_id, captions, self._size(raw, image_id))
            if not holds_its_id(number):
                raise RecordRejectedError("duplicate image id", f"{image_id!r} is the id of an earlier input")
        except RecordRejectedError as error:
            reject = SourceReject(number=number, where=raw.where, reason=error.reason, detail=error.detail)
            return Outcome(number=number, where=raw.where, num_bytes=raw.num_bytes, reject=reject)
        return Outcome(number=number, where=raw.where, num_bytes=raw.num_bytes, image=image, counts=counts)

    def _holds_its_id(self, number: int) -> bool:
        """Return whether no earlier input of this id is good: the first good one holds it, not a torn one before."""
        for earlier in self.repeats.before(number):
            raw = next(self.importer.read(earlier, earlier + 1))
            if self._outcome(earlier, raw, lambda _: True).image is not None:
                return False
        return True

    def _captions(self, raw: RawRecord, image_id: str) -> tuple[str, ...]:
        """Return the captions of the caption file where there is one, else those that the format has itself."""
        if self.captions is not None:
            return self.captions.of(image_id)
        captions = tuple(text for caption in raw.captions if (text := caption.strip()))
        if not all(map(is_unicode, captions)):
            raise RecordRejectedError("bad caption", "half of a surrogate pair, which UTF-8 cannot write")
        return captions

    def _size(self, raw: RawRecord, image_id: str) -> tuple[int, int]:
        """Return (width, height) in pixels: the size file's word goes before the format's."""
        stated = None if self.sizes is None else self.sizes.of(image_id) or self.sizes.of(raw.key)
        if stated is not None:
            return stated
        if raw.width_px is None or raw.height_px is None:
            raise RecordRejectedError("image size unknown", f"{image_id!r}: give it with --image-sizes FILE")
        return raw.width_px, raw.height_px
