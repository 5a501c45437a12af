"""The images of a group of batches, found in their folders. Promise: what is read comes in the order of the sequences.

Letters: D batches, C caption sequences, R their RoIs without whole images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlbert_data import runs
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.shards.gather import Picked
from vlbert_data.types import Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """The images of C caption sequences: folder and image in it, RoIs stored and RoIs kept, int64 [C] each.

    cuts: int64 [D + 1], the sequences before each batch.
    """

    folders: Sequence[ShardFolder]
    folder: Array
    image: Array
    stored: Array
    lengths: Array
    cuts: Array

    def parts(self) -> list["Part"]:
        """Return what is to be read of each folder that occurs.

        Raises:
            ShardError: a shard that is missing or damaged.
        """
        starts = runs.borders(self.lengths)[:-1]
        return [
            Part(
                folder=folder,
                picked=Picked(folder, self.image[own], self.lengths[own]),
                own=own,
                rois=own if isinstance(own, slice) else runs.places(starts[own], self.lengths[own]),
            )
            for folder, own in self._of_folders()
        ]

    def _of_folders(self) -> list[tuple[ShardFolder, Array | slice]]:
        """Return each folder that occurs with the sequences that are its, int64 rising, or all."""
        if len(self.folders) == 1:
            return [(self.folders[0], slice(None))]
        numbers = np.unique(self.folder).tolist()
        return [(self.folders[number], np.flatnonzero(self.folder == number)) for number in numbers]


class Part(NamedTuple):
    """What is read of one folder: the sequences `own` of the group, whose RoIs are `rois`: int64 rising, or all."""

    folder: ShardFolder
    picked: Picked
    own: Array | slice
    rois: Array | slice

    def among(self, asked: Array) -> tuple[Array, Array]:
        """Return which of the group's RoIs `asked`, int64 rising, are this folder's, and where among its own."""
        if isinstance(self.rois, slice):
            return np.arange(len(asked)), asked
        places = np.searchsorted(self.rois, asked)
        inside = np.flatnonzero(self.rois.take(places, mode="clip") == asked) if len(self.rois) else places[:0]
        return inside, places[inside]

    def sizes(self) -> Array:
        """Return float32 [own, 4]: width, height, width, height of each image in pixels."""
        index, images = self.folder.index, self.picked.images
        return np.stack([index.width_px[images], index.height_px[images]] * 2, axis=1).astype(np.float32)
