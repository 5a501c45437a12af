"""What the tour claims of its model. Promise: each claim is a number of `vlb evaluate --json` beside its limit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEAST_WITH_IMAGE = 0.90
# Without its picture a caption tells a little more than chance: no two things of a scene share a colour or a shape.
MOST_ABOVE_CHANCE = 0.10
LEAST_TIMES_BASELINE = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """text: what is claimed of the number `found`, 0..1; expected: the limit in words."""

    text: str
    found: float
    expected: str
    holds: bool


def claims(evaluation: Mapping[str, Any]) -> list[Claim]:
    """Return the tour's claims about an evaluation with named words, as `vlb evaluate --json` writes it."""
    every = next(group for group in evaluation["named_words"] if group["name"] == "all")
    right, other, chance = every["with_image"], every["with_other_image"], every["chance"]
    rois, baseline = evaluation["rois"]["accuracy"], evaluation["roi_baseline"]
    return [
        Claim(
            text="words that only the picture can tell, with the right picture",
            found=right,
            expected=f"at least {LEAST_WITH_IMAGE:.0%}",
            holds=right >= LEAST_WITH_IMAGE,
        ),
        Claim(
            text="the same words with another picture",
            found=other,
            expected=f"near chance, {chance:.1%}: at most {MOST_ABOVE_CHANCE:.0%} above",
            holds=other <= chance + MOST_ABOVE_CHANCE,
        ),
        Claim(
            text="masked RoIs",
            found=rois,
            expected=f"at least {LEAST_TIMES_BASELINE:.0f} times the most frequent class, {baseline:.1%}",
            holds=rois >= LEAST_TIMES_BASELINE * baseline,
        ),
    ]
