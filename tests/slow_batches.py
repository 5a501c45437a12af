"""Batches the slow way: one example at a time, read as a person would read it, with plain loops."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from vlbert_data.boxes import area, intersection
from vlbert_data.corpus import CorpusFolder
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.tokenizer import load_tokenizer
from vlbert_data.types import Array, ImageRois
from vlbert_data.windows import open_windows
from vlbert_train.batch import Batch
from vlbert_train.config import MaskingConfig, PretrainConfig
from vlbert_train.hashing import below, uniforms, words
from vlbert_train.masking import MaskKeys, choose_views
from vlbert_train.supply import Supply

TEXT, ROI = 0, 2


@dataclass
class Example:
    """One sequence of a batch: `[CLS] words [SEP] RoIs [END]` or `words [END]`; places count from its first position.

    rois: (place, box, hidden, feature); the first one is the whole image. word_targets: (place, id). roi_targets:
    (place, {class: probability}).
    """

    example: int
    has_image: bool
    tokens: list[tuple[int, int]]
    positions: list[int]
    segments: list[int]
    rois: list[tuple[int, tuple[float, ...], bool, Array]] = field(default_factory=list)
    word_targets: list[tuple[int, int]] = field(default_factory=list)
    roi_targets: list[tuple[int, dict[int, float]]] = field(default_factory=list)


def one(key: Array, counter: int) -> Array:
    """Return the word of one key and one counter."""
    return words(key.reshape(1), np.array([counter]))


def draw(key: Array, counter: int) -> float:
    """Return the chance that belongs to one key and one counter."""
    return float(uniforms(one(key, counter))[0])


def slow_words(
    tokens: Sequence[tuple[int, bool]], keys: MaskKeys, masking: MaskingConfig, mask_id: int, vocab_size: int
) -> tuple[list[int], list[int]]:
    """Return (shown ids, asked places) of one sequence of (id, begins a word); keys: of this sequence alone."""
    shown, asked, chance = [token for token, _ in tokens], [], 0.0
    for place, (_, begins) in enumerate(tokens):
        if place == 0 or begins:
            chance = draw(keys.words, place)
        if chance >= masking.word_share:
            continue
        asked.append(place)
        split = chance / masking.word_share
        if split < masking.word_mask_share:
            shown[place] = mask_id
        elif split < masking.word_mask_share + masking.word_random_share:
            shown[place] = int(below(one(keys.replacements, place), vocab_size)[0])
    return shown, asked


def slow_overlap(boxes: Array, hidden: Sequence[bool], threshold: float) -> list[bool]:
    """Return which RoIs of one image are hidden or show a hidden one, pair by pair."""
    shared, sizes, found = intersection(boxes, boxes), area(boxes), list(hidden)
    for a in range(len(boxes)):
        for b in range(len(boxes)):
            if hidden[a] and shared[a, b] > threshold * min(sizes[a], sizes[b]):
                found[b] = True
    return found


def slow_joint(text: int, rois: int, limit: int) -> tuple[int, int]:
    """Return lengths after taking away one at a time from the longer side."""
    while text + rois > limit and text > 0 and rois > 0:
        if rois > text:
            rois -= 1
        else:
            text -= 1
    return max(text, 2), max(rois, 1)


def slow_lengths(text: int, rois: int, config: PretrainConfig) -> tuple[int, int]:
    """Return how many tokens, [CLS] and [SEP] counted, and how many RoIs without the whole image are kept."""
    rois = 1 + min(rois, config.data.max_rois)
    if config.data.truncation == "separate":
        return min(text, config.data.max_text), rois - 1
    text, rois = slow_joint(text, rois, config.data.max_length)
    return text, rois - 1


class SlowSupply:
    """Examples of folders and a corpus, each read alone."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config
        self.folders = [ShardFolder.open(path) for path in config.data.shards]
        self.tokenizer = load_tokenizer(config.data.tokenizer)
        self.corpus = CorpusFolder.open(config.data.corpus) if config.data.corpus else None
        self.captions = [
            (number, image, caption)
            for number, folder in enumerate(self.folders)
            for image in range(len(folder))
            for caption in range(len(folder.captions(image)))
        ]
        self.labels_kept = max((folder.manifest.label_topk for folder in self.folders), default=0)

    def batch(self, plan: Sequence[tuple[str, int, int]], keys: MaskKeys) -> list[Example]:
        """Return the sequences of (kind, number, epoch): captions first, then texts."""
        found = []
        for kind, number, epoch in sorted(plan, key=lambda entry: entry[0] == "text"):
            example = number if kind == "caption" else len(self.captions) + number
            own = keys.of(np.array([example]), np.array([epoch]))
            found.append(self.caption(number, own) if kind == "caption" else self.text(number, example, own))
        return found

    def text(self, number: int, example: int, keys: MaskKeys) -> Example:
        """Return a text-only example."""
        assert self.corpus is not None
        data = self.config.data
        length = data.max_text if data.truncation == "separate" else data.max_length
        index = open_windows(self.corpus, length=length, policy=data.text_windows, min_tokens=data.min_text_tokens)
        start, stop = (int(span[0]) for span in index.spans(np.array([number])))
        files = [self.corpus.file(file) for file in range(self.corpus.num_files)]
        row = [
            (int(token), bool(begins))
            for file in files
            for token, begins in zip(file.ids, file.starts_word(0, file.num_tokens), strict=True)
        ]
        tokens = [row[place % len(row)] for place in range(start, stop)]
        shown, asked = self._words(tokens, keys)
        size = len(tokens)
        return Example(
            example=example,
            has_image=False,
            tokens=list(enumerate(shown)),
            positions=[*range(size), size + 1],
            segments=[TEXT] * size + [ROI],
            word_targets=[(place, tokens[place][0]) for place in asked],
        )

    def caption(self, number: int, keys: MaskKeys) -> Example:
        """Return a caption with its image."""
        which, image, caption = self.captions[number]
        record = self.folders[which].read(image)
        special = self.tokenizer.special_ids
        runs = self.tokenizer.encode([record.captions[caption]])
        text, num_rois = slow_lengths(len(runs.ids) + 2, record.num_rois, self.config)
        kept = text - 2
        tokens = list(zip(runs.ids[:kept].tolist(), runs.starts_word[:kept].tolist(), strict=True))
        shown, asked = self._words(tokens, keys)
        found = Example(
            example=number,
            has_image=True,
            tokens=list(enumerate([special.cls, *shown, special.sep])),
            positions=[*range(text), *[text] * (num_rois + 1), text + 1],
            segments=[TEXT] * text + [ROI] * (num_rois + 2),
            word_targets=[(place + 1, tokens[place][0]) for place in asked],
        )
        self._add_rois(found, record, num_rois, text, keys)
        return found

    def _words(self, tokens: Sequence[tuple[int, bool]], keys: MaskKeys) -> tuple[list[int], list[int]]:
        return slow_words(tokens, keys, self.config.masking, self.tokenizer.special_ids.mask, self.tokenizer.vocab_size)

    def _add_rois(self, found: Example, record: ImageRois, num_rois: int, first: int, keys: MaskKeys) -> None:
        masking = self.config.masking
        features, image_feature = record.features[:num_rois].astype(np.float64), record.image_feature
        boxes = record.rois.boxes[:num_rois]
        geometry = boxes / np.array([record.width_px, record.height_px] * 2, np.float32)
        asked = hidden = [False] * num_rois
        if self.labels_kept and masking.roi_share > 0:
            if masking.leakage == "pixels":
                assert record.masked_views is not None
                view = int(choose_views(keys.views, len(record.masked_views.chosen))[0])
                asked = hidden = record.masked_views.chosen[view, :num_rois].tolist()
                features = record.masked_views.features[view, :num_rois].astype(np.float64)
                image_feature = record.masked_views.image_features[view]
            else:
                chances = [draw(keys.rois, place) for place in range(num_rois)]
                asked = [chance < masking.roi_share for chance in chances]
                hidden = [chance < masking.roi_share * masking.roi_hide_share for chance in chances]
        if masking.leakage == "overlap":
            hidden = slow_overlap(geometry, hidden, masking.overlap_threshold)
            visible = [features[place] for place in range(num_rois) if not hidden[place]]
            if num_rois:
                image_feature = np.mean(visible, axis=0) if visible else np.zeros_like(features[0])
        elif masking.leakage == "published" and any(hidden):
            rest = record.image_feature.astype(np.float64) * record.num_rois
            for place in range(num_rois):
                rest -= features[place] * hidden[place]
            others = record.num_rois - sum(hidden)
            image_feature = rest / (others + 1e-5) if others else np.zeros_like(rest)
        found.rois.append((first, (0.0, 0.0, 1.0, 1.0), False, np.asarray(image_feature, np.float64)))
        for place in range(num_rois):
            box = tuple(float(edge) for edge in geometry[place])
            found.rois.append((first + 1 + place, box, bool(hidden[place]), features[place]))
            if not asked[place]:
                continue
            ids, probs = record.rois.label_ids[place].tolist(), record.rois.label_probs[place].tolist()
            if any(probs):
                found.roi_targets.append((first + 1 + place, dict(zip(ids, probs, strict=True))))


def taken_apart(batch: Batch) -> list[Example]:
    """Return the sequences of a batch, each with what belongs to it."""
    found = []
    borders = batch.cu_seqlens.tolist()
    for number in range(batch.num_sequences):
        begin, end = borders[number], borders[number + 1]
        found.append(
            Example(
                example=int(batch.example_ids[number]),
                has_image=bool(batch.has_image[number]),
                tokens=sorted(_of(batch.token_slots, batch.token_ids.tolist(), begin, end)),
                positions=batch.position_ids[begin:end].tolist(),
                segments=batch.segment_ids[begin:end].tolist(),
                rois=_rois(batch, begin, end),
                word_targets=sorted(_of(batch.word_target_slots, batch.word_targets.tolist(), begin, end)),
                roi_targets=_roi_targets(batch, begin, end),
            )
        )
        assert int(batch.end_slots[number]) == end - 1
    return found


def _of(slots: object, values: Sequence[object], begin: int, end: int) -> Iterator[tuple[int, object]]:
    """Yield (place in its sequence, value) of what stands in [begin, end)."""
    for slot, value in zip(slots.tolist(), values, strict=True):  # type: ignore[attr-defined]
        if begin <= slot < end:
            yield slot - begin, value


def _rois(batch: Batch, begin: int, end: int) -> list[tuple[int, tuple[float, ...], bool, Array]]:
    features = batch.roi_features.double().numpy()
    rows = dict(_of(batch.roi_slots, list(range(len(features))), begin, end))
    return [
        (place, tuple(batch.roi_geometry[row].tolist()), bool(batch.roi_hidden[row]), features[row])
        for place, row in sorted(rows.items())
    ]


def _roi_targets(batch: Batch, begin: int, end: int) -> list[tuple[int, dict[int, float]]]:
    rows = dict(_of(batch.roi_target_slots, list(range(len(batch.roi_target_slots))), begin, end))
    found = []
    for place, row in sorted(rows.items()):
        ids, probs = batch.roi_target_ids[row].tolist(), batch.roi_target_probs[row].tolist()
        found.append((place, {id_: prob for id_, prob in zip(ids, probs, strict=True) if prob}))
    return found


def assert_same(batch: Batch, wanted: Sequence[Example]) -> None:
    """Compare a batch with sequences made one by one."""
    found = taken_apart(batch)
    assert [sequence.example for sequence in found] == [sequence.example for sequence in wanted]
    for ours, slow in zip(found, wanted, strict=True):
        for name in ("has_image", "tokens", "positions", "segments", "word_targets"):
            assert getattr(ours, name) == getattr(slow, name), (name, slow.example)
        assert [roi[0::2] for roi in ours.rois] == [roi[0::2] for roi in slow.rois]
        for (_, box, _, feature), (_, slow_box, _, slow_feature) in zip(ours.rois, slow.rois, strict=True):
            np.testing.assert_allclose(box, slow_box, rtol=1e-6)
            np.testing.assert_allclose(feature, slow_feature, rtol=3e-3, atol=3e-3)
        kept = [(place, {id_: prob for id_, prob in target.items() if prob}) for place, target in slow.roi_targets]
        assert ours.roi_targets == kept
    _assert_consistent(batch)


def _assert_consistent(batch: Batch) -> None:
    """Check what a batch says twice."""
    borders = batch.cu_seqlens.long()
    assert batch.max_seqlen == int(borders.diff().max())
    assert int(borders[-1]) == batch.num_slots
    for slots, owners in ((batch.token_slots, batch.token_sequence), (batch.roi_slots, batch.roi_sequence)):
        assert bool((borders[owners] <= slots).all())
        assert bool((slots < borders[owners + 1]).all())
    taken = np.concatenate([batch.token_slots.numpy(), batch.roi_slots.numpy(), batch.end_slots.numpy()])
    assert sorted(taken.tolist()) == list(range(batch.num_slots))
    whole = batch.roi_geometry.eq(batch.roi_geometry.new_tensor([0.0, 0.0, 1.0, 1.0])).all(1)
    starts = {int(slot): row for row, slot in enumerate(batch.roi_slots) if bool(whole[row])}
    for number in range(batch.num_sequences):
        row = batch.image_features[number]
        if bool(batch.has_image[number]):
            texts = int((batch.token_sequence == number).sum())
            assert bool((row == batch.roi_features[starts[int(borders[number]) + texts]]).all())
        else:
            assert not bool(row.any())
    owners = np.searchsorted(borders.numpy(), batch.word_target_slots.numpy(), side="right") - 1
    assert batch.word_target_with_image.tolist() == batch.has_image[owners].tolist()


def plan_of(supply: Supply, step: int) -> list[tuple[str, int, int]]:
    """Return (kind, number, epoch) of the examples of a step."""
    assert supply._schedule is not None
    plan = supply._schedule.plan(step)
    return [
        (kind, int(number), int(epoch))
        for kind, picks in (("caption", plan.captions), ("text", plan.texts))
        for number, epoch in zip(picks.examples, picks.epochs, strict=True)
    ]
