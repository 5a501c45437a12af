"""From input numbers to records of a shard. Promise: what comes of an input depends on the input files alone.

So any range of inputs can be imported alone, again, or in another process.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import Importer, RawRecord, TextRecord
from vlbert_data.importers.captions import CaptionFile
from vlbert_data.importers.image_sizes import ImageSizes
from vlbert_data.importers.keys import KeyPattern, Repeats
from vlbert_data.importers.meaning import Meaning
from vlbert_data.importers.texts import BUNDLE_BYTES, BUNDLE_RECORDS, Named, TextBundle, takes_texts
from vlbert_data.shards.schema import Sealed
from vlbert_data.sources.base import SourceReject
from vlbert_data.types import ImageRois, is_unicode

WITHOUT_CAPTION = "images without caption"
NO_COUNTS = Counter[str]()
# Bundles of text that are converted, or wait for it, while the next one is read.
BUNDLES_AHEAD = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of input `number`: an image, a reject, or neither where it was left out; `counts` says what and why.

    num_bytes: how much was read for it. sealed: the image, where it is checked and summed already.
    """

    number: int
    where: str
    num_bytes: int = 0
    image: ImageRois | None = None
    sealed: Sealed | None = None
    reject: SourceReject | None = None
    counts: Counter[str] = field(default_factory=Counter)


class _Begun(NamedTuple):
    """A record of text on its way, and what its image is called."""

    number: int
    record: TextRecord
    name: Named


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
        if takes_texts(self.meaning):
            yield from self._outcomes_of_texts(start, stop)
            return
        for number, raw in enumerate(self.importer.read(start, stop), start=start):
            yield self._outcome(number, raw, self._holds_its_id)

    def _outcomes_of_texts(self, start: int, stop: int) -> Iterator[Outcome]:
        """Yield the same where records may be text: a thread converts a bundle of them while the next one is read."""
        waiting = deque[tuple[list[Outcome | _Begun], TextBundle, Future[None]]]()
        with ThreadPoolExecutor(1, "texts") as pool:
            for entries in self._begun(start, stop):
                begun = [entry for entry in entries if isinstance(entry, _Begun)]
                bundle = TextBundle(self.meaning, [entry.record for entry in begun], [entry.name for entry in begun])
                waiting.append((entries, bundle, pool.submit(bundle.run)))
                if len(waiting) > BUNDLES_AHEAD:
                    yield from self._ended(*waiting.popleft())
            for ended in waiting:
                yield from self._ended(*ended)

    def _begun(self, start: int, stop: int) -> Iterator[list["Outcome | _Begun"]]:
        """Yield inputs in bundles: text to be converted together, and what came of the others."""
        entries: list[Outcome | _Begun] = []
        num_bytes = 0
        for number, raw in enumerate(self.importer.read_texts(start, stop), start=start):
            entry = self._begin(number, raw)
            entries.append(entry)
            num_bytes += entry.record.num_bytes if isinstance(entry, _Begun) else 0
            if len(entries) == BUNDLE_RECORDS or num_bytes >= BUNDLE_BYTES:
                yield entries
                entries, num_bytes = [], 0
        if entries:
            yield entries

    def _begin(self, number: int, raw: RawRecord | TextRecord | SourceReject) -> "Outcome | _Begun":
        """Return a record of text with its id, captions and size, or what came of any other."""
        if not isinstance(raw, TextRecord):
            return self._outcome(number, raw, self._holds_its_id)
        try:
            image_id = self.pattern.image_id(raw.key)
            captions, size_px = self._captions(raw, image_id), self._size(raw, image_id)
        except RecordRejectedError:
            return self._step_by_step(number)
        if next(self.repeats.before(number), None) is not None:
            return self._step_by_step(number)
        return _Begun(number, raw, Named(image_id, captions, size_px))

    def _ended(self, entries: list["Outcome | _Begun"], bundle: TextBundle, running: Future[None]) -> Iterator[Outcome]:
        """Yield what came of a bundle, when it is converted."""
        running.result()
        places = enumerate(bundle.good())
        for entry in entries:
            if isinstance(entry, Outcome):
                yield entry
                continue
            number, record, name = entry
            place, good = next(places)
            if good and not name.captions:
                yield self._without_caption(number, record)
            elif good and (sealed := bundle.seal(place)) is not None:
                yield Outcome(
                    number=number,
                    where=record.where,
                    num_bytes=record.num_bytes,
                    image=sealed.record,
                    sealed=sealed,
                    counts=NO_COUNTS,
                )
            else:
                yield self._step_by_step(number)

    def _without_caption(self, number: int, raw: RawRecord | TextRecord) -> Outcome:
        return Outcome(number=number, where=raw.where, num_bytes=raw.num_bytes, counts=Counter({WITHOUT_CAPTION: 1}))

    def _step_by_step(self, number: int) -> Outcome:
        """Return what comes of an input that is not converted with others: the word that counts in all doubt."""
        return self._outcome(number, next(self.importer.read(number, number + 1)), self._holds_its_id)

    def _outcome(self, number: int, raw: RawRecord | SourceReject, holds_its_id: Callable[[int], bool]) -> Outcome:
        if isinstance(raw, SourceReject):
            return Outcome(number=number, where=raw.where, reject=raw)
        try:
            image_id = self.pattern.image_id(raw.key)
            captions = self._captions(raw, image_id)
            if not captions:
                return self._without_caption(number, raw)
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

    def _captions(self, raw: RawRecord | TextRecord, image_id: str) -> tuple[str, ...]:
        """Return the captions of the caption file where there is one, else those that the format has itself."""
        if self.captions is not None:
            return self.captions.of(image_id)
        captions = tuple(text for caption in raw.captions if (text := caption.strip()))
        if not all(map(is_unicode, captions)):
            raise RecordRejectedError("bad caption", "half of a surrogate pair, which UTF-8 cannot write")
        return captions

    def _size(self, raw: RawRecord | TextRecord, image_id: str) -> tuple[int, int]:
        """Return (width, height) in pixels: the size file's word goes before the format's."""
        stated = None if self.sizes is None else self.sizes.of(image_id) or self.sizes.of(raw.key)
        if stated is not None:
            return stated
        if raw.width_px is None or raw.height_px is None:
            raise RecordRejectedError("image size unknown", f"{image_id!r}: give it with --image-sizes FILE")
        return raw.width_px, raw.height_px
