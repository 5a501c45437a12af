"""Records in base64 text, decoded, checked, ordered and rounded by compiled loops. Promise: all of it, or a plain no.

A record is converted if nothing about it asks for a second look: text without a fault, ids and confidences in range,
boxes inside the image, features that float16 holds. What comes then is, to the bit, what `encoded` and `meaning` make
of it step by step. Of any other record nothing is said here but that it is one. Python's lock is free meanwhile.
"""

from typing import Any, NamedTuple

import numpy as np

from vlbert_data.compiled import compiled, float_to_half, inlined
from vlbert_data.halves import FIRST_TOO_LARGE_BITS
from vlbert_data.types import Array

# Characters whose values are found before they are packed: a multiple of 16 that stays in a processor's nearest cache.
BLOCK = 1 << 14
# A group of base64: as many characters, and as many 32-bit words of what they encode, as come out even.
GROUP_CHARACTERS, GROUP_WORDS = 16, 3
# Bits of a byte that no value of a character has.
NO_VALUE = np.uint32(0xC0C0C0C0)
WITHOUT_SIGN = np.uint32(0x7FFFFFFF)
ONE_BITS = np.uint32(0x3F800000)
# Sides of an image are smaller, as `types.check_image_rois` has it.
MOST_PIXELS = 2**31


class Texts(NamedTuple):
    """The text of n records, uint8 all of it, and what it must hold.

    features: a tuple of arrays, of which the first n count. small: all other text, record after record: boxes, class
    ids, class scores and, if `num_attributes` is not 0, attribute ids and scores. facts: int64 [n, 3]: number of RoIs,
    width and height in pixels. limits: int64 [2], the numbers of classes and of attributes.
    """

    features: Any
    small: Array
    facts: Array
    limits: Array


class Stored(NamedTuple):
    """What becomes of them, as a shard stores it: RoIs of all records one after another, float16 as its bits.

    features: [ΣR, F]. image_features: [n, F]. boxes: float32 [ΣR, 4]. scores, label_ids, attribute_ids,
    attribute_probs, source_rows: uint16 [ΣR]. Attributes have no rows where there are none.
    """

    features: Array
    image_features: Array
    boxes: Array
    scores: Array
    label_ids: Array
    attribute_ids: Array
    attribute_probs: Array
    source_rows: Array


class Work(NamedTuple):
    """Memory for one record, overwritten: numbers as 32-bit words, R being the most RoIs of a record.

    sextets: uint8 [BLOCK + 16]. features: [R F]. boxes: [4 R]. ids: [2 R]. scores: [R]. Attributes likewise.
    sums: float32 [F]. places: int64 [R], the place of each RoI among the ordered ones.
    """

    sextets: Array
    features: Array
    boxes: Array
    ids: Array
    scores: Array
    attribute_ids: Array
    attribute_scores: Array
    sums: Array
    places: Array


def work_for(facts: Array, feature_dim: int) -> Work:
    """Return memory for any one of the records that `facts` are of; see `Texts`."""
    most, words = int(facts[:, 0].max()), np.uint32
    return Work(
        sextets=np.empty(BLOCK + GROUP_CHARACTERS, np.uint8),
        features=np.empty(most * feature_dim, words),
        boxes=np.empty(most * 4, words),
        ids=np.empty(most * 2, words),
        scores=np.empty(most, words),
        attribute_ids=np.empty(most * 2, words),
        attribute_scores=np.empty(most, words),
        sums=np.empty(feature_dim, np.float32),
        places=np.empty(most, np.int64),
    )


@compiled
def convert(texts: Any, stored: Any, work: Any, good: Array) -> None:
    """Fill `stored`, and `good`, bool [n]: which records could be converted; of others, what is stored means nothing.

    texts, stored, work: see `Texts`, `Stored` and `Work`.
    """
    first = at = 0
    for record in range(len(good)):
        num = texts.facts[record, 0]
        good[record], at = _decode_record(texts, record, at, work)
        good[record] = good[record] and _is_sound(texts, record, work)
        if good[record]:
            _order(work.scores, num, work.places)
            _store(num, first, stored, work)
            good[record] = _halve(num, first, record, stored, work)
        first += num


@compiled
def decode(text: Array, words: Array, sextets: Array) -> bool:
    """Fill `words`, uint32, from the base64 of their bytes; return whether `text`, uint8, is that and nothing more.

    sextets: uint8 [BLOCK + 16], overwritten. Bits behind the last byte, which base64 has where its groups are not
    full, must be zero.
    """
    groups = len(words) // GROUP_WORDS
    rest = len(words) - groups * GROUP_WORDS
    whole = groups * GROUP_CHARACTERS
    padding = (0, 2, 1)[rest]  # a word left is 4 bytes, which end two characters early; two words end one early
    if len(text) != whole + (4 * ((4 * rest + 2) // 3)):
        return False
    wrong = np.uint32(0)
    for start in range(0, whole, BLOCK):
        stop = min(start + BLOCK, whole)
        _values(text[start:stop], sextets)
        word = start // GROUP_CHARACTERS * GROUP_WORDS
        packed = sextets[: stop - start].view(np.uint32)
        wrong |= _pack(packed, words[word : word + len(packed) // 4 * GROUP_WORDS])
    if rest:
        tail = sextets[BLOCK:]
        tail[:] = ord("A")
        kept = len(text) - whole - padding
        tail[:kept] = text[whole : whole + kept]
        for place in range(whole + kept, len(text)):
            if text[place] != ord("="):
                return False
        _values(tail, tail)
        last = np.zeros(GROUP_WORDS, np.uint32)
        wrong |= _pack(tail.view(np.uint32), last)
        words[groups * GROUP_WORDS :] = last[:rest]
        wrong |= last[rest]
    return bool(wrong == 0)


@compiled
def _values(text: Array, values: Array) -> None:
    """Fill `values`, uint8, with the six bits that each character stands for; with more than 63 where it is none.

    Each step says what is added to characters from there on, so that all are looked at side by side.
    """
    for place in range(len(text)):
        character = text[place]
        added = np.uint8(64)
        added = np.uint8(62 - ord("+")) if character >= np.uint8(ord("+")) else added
        added = np.uint8(64) if character >= np.uint8(ord("+") + 1) else added
        added = np.uint8(63 - ord("/")) if character >= np.uint8(ord("/")) else added
        added = np.uint8(52 - ord("0")) if character >= np.uint8(ord("0")) else added
        added = np.uint8(64) if character >= np.uint8(ord("9") + 1) else added
        added = np.uint8(256 - ord("A")) if character >= np.uint8(ord("A")) else added
        added = np.uint8(64) if character >= np.uint8(ord("Z") + 1) else added
        added = np.uint8(256 + 26 - ord("a")) if character >= np.uint8(ord("a")) else added
        added = np.uint8(0) if character >= np.uint8(ord("z") + 1) else added
        values[place] = np.uint8(character + added)


@compiled
def _pack(values: Array, words: Array) -> np.uint32:
    """Fill `words`, uint32 [3 m], with the bytes that 4 m groups of four values make; return what no value may have.

    values: uint32 [4 m], four values of six bits each, the first one in the lowest byte.
    """
    wrong = np.uint32(0)
    for group in range(len(values) // 4):
        one, two, three, four = values[4 * group], values[4 * group + 1], values[4 * group + 2], values[4 * group + 3]
        wrong = np.uint32(wrong | np.uint32((one | two | three | four) & NO_VALUE))
        one, two, three, four = _bytes(one), _bytes(two), _bytes(three), _bytes(four)
        words[3 * group] = one | np.uint32(two << 24)
        words[3 * group + 1] = np.uint32(two >> 8) | np.uint32(three << 16)
        words[3 * group + 2] = np.uint32(three >> 16) | np.uint32(four << 8)
    return wrong


@inlined
def _bytes(values: Any) -> np.uint32:
    """Return three bytes, the first one lowest, of four values in the bytes of a number."""
    first = np.uint32(values << 2 & 0xFC) | np.uint32(values >> 12 & 0x03)
    second = np.uint32(values << 4 & 0xF000) | np.uint32(values >> 10 & 0x0F00)
    third = np.uint32(values << 6 & 0xC00000) | np.uint32(values >> 8 & 0x3F0000)
    return np.uint32(first | second | third)


@compiled
def _decode_record(texts: Any, record: int, at: int, work: Any) -> tuple[bool, int]:
    """Fill `work` with a record's numbers; return whether its text has no fault, and where the next one's begins."""
    num = texts.facts[record, 0]
    sextets = work.sextets
    good = decode(texts.features[record], work.features[: num * len(work.sums)], sextets)
    for words in (work.boxes[: 4 * num], work.ids[: 2 * num], work.scores[:num]):
        size = 4 * ((4 * len(words) + 2) // 3)
        good &= decode(texts.small[at : at + size], words, sextets)
        at += size
    if texts.limits[1]:
        for words in (work.attribute_ids[: 2 * num], work.attribute_scores[:num]):
            size = 4 * ((4 * len(words) + 2) // 3)
            good &= decode(texts.small[at : at + size], words, sextets)
            at += size
    return good, at


@compiled
def _is_sound(texts: Any, record: int, work: Any) -> bool:
    """Return whether ids are in their spaces, confidences in 0..1, and boxes inside the image, its edges included."""
    num, width, height = texts.facts[record]
    boxes, ids = work.boxes.view(np.float32), work.ids.view(np.int64)
    good = width < MOST_PIXELS and height < MOST_PIXELS
    for roi in range(num):
        x0, y0, x1, y1 = boxes[4 * roi], boxes[4 * roi + 1], boxes[4 * roi + 2], boxes[4 * roi + 3]
        good &= work.boxes[4 * roi] <= WITHOUT_SIGN and work.boxes[4 * roi + 1] <= WITHOUT_SIGN  # neither is -0
        good &= 0 <= x0 < x1 <= width
        good &= 0 <= y0 < y1 <= height
        good &= 0 <= ids[roi] < texts.limits[0]
        good &= work.scores[roi] <= ONE_BITS  # so is any number from 0 to 1, but -0
    if texts.limits[1]:
        attribute_ids = work.attribute_ids.view(np.int64)
        for roi in range(num):
            good &= 0 <= attribute_ids[roi] < texts.limits[1]
            good &= work.attribute_scores[roi] <= ONE_BITS
    return bool(good)


@compiled
def _order(scores: Array, num: int, places: Array) -> None:
    """Fill `places` with where each RoI goes: by score, highest first, of equal ones the first one first.

    scores: the bits of floats from 0 to 1, which are ordered as these are.
    """
    for roi in range(num):
        place = 0
        for other in range(num):
            place += scores[other] > scores[roi] or (scores[other] == scores[roi] and other < roi)
        places[roi] = place


@compiled
def _store(num: int, first: int, stored: Any, work: Any) -> None:
    """Store all but the features of a record, whose RoIs come from row `first` on."""
    boxes, ids, scores = work.boxes.view(np.float32), work.ids.view(np.int64), work.scores.view(np.float32)
    for roi in range(num):
        row = first + work.places[roi]
        for side in range(4):
            stored.boxes[row, side] = boxes[4 * roi + side]
        stored.label_ids[row] = ids[roi]
        stored.scores[row] = float_to_half(scores[roi])
        stored.source_rows[row] = roi
    if len(stored.attribute_ids):
        attribute_ids, attribute_scores = work.attribute_ids.view(np.int64), work.attribute_scores.view(np.float32)
        for roi in range(num):
            row = first + work.places[roi]
            stored.attribute_ids[row] = attribute_ids[roi]
            stored.attribute_probs[row] = float_to_half(attribute_scores[roi])


@compiled
def _halve(num: int, first: int, record: int, stored: Any, work: Any) -> bool:
    """Store a record's features and their mean; return whether float16 holds all of them.

    The mean is that of float32 numbers, added up in the order that they came in, as numpy does.
    """
    sums, width = work.sums, len(work.sums)
    largest = np.uint32(0)
    sums[:] = 0
    for roi in range(num):
        bits = work.features[roi * width : (roi + 1) * width]
        features, half = bits.view(np.float32), stored.features[first + work.places[roi]]
        for column in range(width):
            largest = max(largest, bits[column] & WITHOUT_SIGN)
            half[column] = float_to_half(features[column])
            sums[column] += features[column]
    for column in range(width):
        stored.image_features[record, column] = float_to_half(sums[column] / np.float32(num))
    return bool(largest < FIRST_TOO_LARGE_BITS)
