"""What examples are taken from. Promise: examples of a kind are numbered 0 .. len - 1, the same in every run."""

from dataclasses import dataclass

import numpy as np

from vlbert_data.corpus import CorpusFolder
from vlbert_data.token_file import TokenRuns
from vlbert_data.tokenizer import TextTokenizer
from vlbert_data.types import Array, LabelSpace
from vlbert_data.windows import WindowIndex
from vlbert_train.captions import CaptionSet

# Text windows that are shuffled like the examples of one shard where shuffling is by windows of shards.
TEXTS_A_SHARD = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSet:
    """Text-only examples: windows 0 .. len - 1 of a corpus."""

    corpus: CorpusFolder
    windows: WindowIndex

    def __len__(self) -> int:
        return len(self.windows)

    def shard_sizes(self) -> Array:
        """Return int64 [shards]: the windows in runs of TEXTS_A_SHARD."""
        borders = np.append(np.arange(0, len(self), TEXTS_A_SHARD), len(self))
        return np.diff(borders)

    def tokens(self, windows: Array) -> TokenRuns:
        """Return the tokens of windows, int64 [n]."""
        return self.corpus.gather(*self.windows.spans(windows))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sets:
    """Examples of both kinds, None where there are none of a kind."""

    captions: CaptionSet | None
    texts: TextSet | None = None

    @property
    def num_captions(self) -> int:
        """Return the number of caption examples."""
        return len(self.captions) if self.captions else 0

    @property
    def num_texts(self) -> int:
        """Return the number of text-only examples."""
        return len(self.texts) if self.texts else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Meaning:
    """What the stored numbers mean, the same for all folders. labels_kept: K, 0 where RoIs have no classes."""

    tokenizer: TextTokenizer
    label_space: LabelSpace | None
    feature_dim: int
    labels_kept: int

    @property
    def num_labels(self) -> int:
        """Return the number of classes, background included where it is one; 0 where RoIs have no classes."""
        return self.label_space.num_classes if self.label_space else 0
