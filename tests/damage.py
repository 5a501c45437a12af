"""Ways in which files get damaged, and how often tests do it."""

import os
import random


def num_mutations(usual: int) -> int:
    """Return how often a test damages each file: `usual`, or what VLB_MUTATIONS says."""
    return int(os.environ.get("VLB_MUTATIONS", usual))


def mutate(raw: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to four changes: a byte, a cut, a repeat, a gap, or a number made huge."""
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data)) if data else 0
        match rng.choice(["byte", "bit", "cut", "repeat", "drop", "huge"]):
            case "byte":
                data[place : place + 1] = bytes([rng.randrange(256)])
            case "bit" if data:
                data[place] ^= 1 << rng.randrange(8)
            case "cut":
                del data[place + 1 :]
            case "repeat":
                data[place:place] = data[place : place + rng.randint(1, 64)]
            case "drop":
                del data[place : place + rng.randint(1, 64)]
            case "huge":
                data[place : place + 4] = b"\xff\xff\xff\x7f"
    return bytes(data)
