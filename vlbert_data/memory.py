"""How memory is kept. Promise: nothing but speed and memory changes; where a library has no such switch, nothing does.

glibc gives every large array back to the kernel when it is freed, and the kernel zeroes each page when the next one is
made. A network's forward pass does that some hundred times. Keeping the pages made MobileNetV2 at 600 x 800 pixels on
two CPU cores 1.7 times as fast.

oneDNN, torch's kernels on CPUs, makes code for each size of input that it meets, and keeps the last 1,024 of them. The
size of a packed batch or of a photo hardly ever comes again, so these fill memory and split what is free of it: 350
steps of `tiny` on photos of COCO reached 3.1 GB, with 64 kept they reach 0.9 GB in the same time (docs/log.md).
"""

import ctypes
import os
import sys

# Names and numbers from glibc's malloc.h; see mallopt(3).
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT_BYTES = 1 << 30
GROWN_BYTES = 64 << 20
# A pass through a network needs some fifty at most, and layers of equal size share theirs.
KEPT_KERNELS = 64
KEPT_KERNELS_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


def keep_freed_memory() -> bool:
    """Let this process keep up to 1 GiB of freed memory for its next arrays; return whether it could be arranged."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    wanted = ((M_MMAP_THRESHOLD, KEPT_BYTES), (M_TRIM_THRESHOLD, KEPT_BYTES), (M_TOP_PAD, GROWN_BYTES))
    return all(library.mallopt(name, value) == 1 for name, value in wanted)


def keep_few_kernels() -> None:
    """Let this process, and those that it starts, keep `KEPT_KERNELS` kernels of oneDNN, or the user's number of them.

    Has to come before torch computes anything: oneDNN reads its environment variable once.
    Source: oneDNN developer guide, "Primitive Cache".
    """
    os.environ.setdefault(KEPT_KERNELS_VARIABLE, str(KEPT_KERNELS))
