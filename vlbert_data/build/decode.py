"""Decoding beside the model. Promise: inputs come back in order, each decoded or rejected; a crash costs one image."""

import itertools
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from vlbert_data.build.processes import follow_parent, require_start, spawn_context
from vlbert_data.detect.base import DecodedImage
from vlbert_data.errors import RecordRejectedError
from vlbert_data.images import decode_rgb, encode_thumbnail
from vlbert_data.sources.base import SourceItem, SourceReject

# Images sent to a worker at once: enough to hide the round trip, few enough to spread over workers.
IMAGES_A_TASK = 4
# Tasks under way for each worker: one being decoded, one waiting.
TASKS_A_WORKER = 2
THUMBNAIL_QUALITY = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeSettings:
    """See `BuildConfig`."""

    max_pixels: int
    thumbnail_px: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """An opened input: the item, its photo, and its thumbnail if asked for."""

    item: SourceItem
    image: DecodedImage
    thumbnail: bytes | None


Outcome = Decoded | SourceReject


def decode(item: SourceItem | SourceReject, settings: DecodeSettings) -> Outcome:
    """Return the item with its pixels, or a reject that says why there are none; a reject passes through."""
    if isinstance(item, SourceReject):
        return item
    try:
        pixels = decode_rgb(item.location.read(), max_pixels=settings.max_pixels)
        height, width = pixels.shape[:2]
        if item.expected_size_px not in (None, (width, height)):
            stated = "{} x {}".format(*item.expected_size_px or ())
            raise RecordRejectedError(
                "another size than stated", f"{width} x {height} pixels; the source says {stated}"
            )
        thumbnail = None
        if settings.thumbnail_px:
            thumbnail = encode_thumbnail(pixels, longest_side_px=settings.thumbnail_px, quality=THUMBNAIL_QUALITY)
    except RecordRejectedError as error:
        return reject(item, error)
    image = DecodedImage(
        image_id=item.image_id,
        file_name=item.file_name,
        pixels=pixels,
        boxes=item.boxes,
        class_names=item.class_names,
    )
    return Decoded(item=item, image=image, thumbnail=thumbnail)


def reject(item: SourceItem, error: RecordRejectedError) -> SourceReject:
    """Return the item as a reject, for the reason of `error`."""
    return SourceReject(number=item.number, where=str(item.location), reason=error.reason, detail=error.detail)


def decode_all(
    items: Iterable[SourceItem | SourceReject], settings: DecodeSettings, *, workers: int
) -> Generator[Outcome, None, None]:
    """Yield every item decoded, in order; `workers` processes run ahead by a bounded number, 0 decodes right here."""
    if workers == 0:
        yield from (decode(item, settings) for item in items)
        return
    tasks = _tasks(items)
    with _Pool(settings, workers) as pool:
        waiting: deque[tuple[Task, Future[list[Outcome]]]] = deque()
        for task in itertools.islice(tasks, workers * TASKS_A_WORKER):
            waiting.append((task, pool.submit(task)))
        while waiting:
            task, future = waiting.popleft()
            try:
                outcomes = future.result()
            except BrokenProcessPool:
                outcomes = pool.decode_one_by_one(task)
                # Everything under way died with the pool: give it to the new one.
                waiting = deque((late, pool.submit(late)) for late, _ in waiting)
            if (task := next(tasks, ())) != ():
                waiting.append((task, pool.submit(task)))
            yield from outcomes


Task = tuple[SourceItem | SourceReject, ...]


def _tasks(items: Iterable[SourceItem | SourceReject]) -> Iterator[Task]:
    source = iter(items)
    while task := tuple(itertools.islice(source, IMAGES_A_TASK)):
        yield task


class _Pool:
    """A process pool that can lose its workers: a decoder that crashes takes them all down with it."""

    def __init__(self, settings: DecodeSettings, workers: int) -> None:
        self._settings = settings
        self._workers = workers
        self._pool = self._start(workers)

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, task: Task) -> Future[list[Outcome]]:
        """Decode a task soon."""
        try:
            return self._pool.submit(_decode_task, task, self._settings)
        except BrokenProcessPool as error:
            broken: Future[list[Outcome]] = Future()
            broken.set_exception(error)
            return broken

    def decode_one_by_one(self, task: Task) -> list[Outcome]:
        """Return a task's outcomes, each decoded in a process of its own, and start the workers anew."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        outcomes = [self._decode_alone(item) for item in task]
        self._pool = self._start(self._workers)
        return outcomes

    def _decode_alone(self, item: SourceItem | SourceReject) -> Outcome:
        with self._start(1) as lone:
            require_start(lone)
            try:
                return lone.submit(_decode_task, (item,), self._settings).result()[0]
            except BrokenProcessPool:
                assert isinstance(item, SourceItem), "a reject is passed through and cannot crash a decoder"
                detail = "the process that opened this image died; the file may attack the decoder, or memory ran out"
                return reject(item, RecordRejectedError("decoder crashed", detail))

    @staticmethod
    def _start(workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, mp_context=spawn_context(), initializer=follow_parent)


def _decode_task(task: Task, settings: DecodeSettings) -> list[Outcome]:
    return [decode(item, settings) for item in task]
