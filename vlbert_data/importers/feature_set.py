"""Features of either kind for a comparison: a shard folder, or a foreign file read as it stands."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from vlbert_data import manifest as manifest_module
from vlbert_data.compare import FeatureSet
from vlbert_data.errors import ConfigError, RecordRejectedError
from vlbert_data.importers.base import FormatOptions, Importer, RawRecord
from vlbert_data.importers.image_sizes import ImageSizes
from vlbert_data.importers.keys import KeyPattern
from vlbert_data.importers.labels import LabelChoice, settle_labels
from vlbert_data.importers.meaning import Meaning
from vlbert_data.importers.open import open_importer
from vlbert_data.shards.folder import ShardFolder
from vlbert_data.types import ImageRois, LabelSpace

LABEL_TOPK = 1
# No comparison looks at captions, which foreign files keep elsewhere.
NO_CAPTION = ("-",)


class FolderSet:
    """A finished shard folder."""

    def __init__(self, path: Path, pattern: KeyPattern) -> None:
        self.name, self.pattern = str(path), pattern
        self._folder = ShardFolder.open(path)
        self.label_space: LabelSpace | None = self._folder.manifest.label_space
        self.feature_dim = self._folder.manifest.feature_dim
        self._places = _by_id(self.keys(), pattern)

    def keys(self) -> Iterator[str]:
        """Yield the folder's ids, before the pattern."""
        return iter(self._folder.index.image_ids.to_pylist())

    def image_ids(self) -> Sequence[str]:
        """Return all ids."""
        return list(self._places)

    def find(self, image_id: str) -> ImageRois | None:
        """Return an image."""
        return self._folder.read(self._places[image_id])


class ForeignSet:
    """A foreign input. Where it leaves open what its classes mean, they are left out."""

    def __init__(self, importer: Importer, name: str, pattern: KeyPattern, sizes: ImageSizes | None) -> None:
        """Read the keys.

        Raises:
            ConfigError: image sizes are needed and not given.
        """
        self.name, self.pattern = name, pattern
        self._importer, self._sizes = importer, sizes
        traits = importer.traits
        if sizes is None and not traits.has_image_sizes:
            raise ConfigError(f"{name}: {traits.format} stores no image sizes. Give them with --image-sizes FILE.")
        try:
            self.label_space = settle_labels(traits.labels, LabelChoice(), traits.format)
        except ConfigError:
            self.label_space = None
        self.feature_dim = traits.feature_dim
        self._meaning = Meaning(traits=traits, label_space=self.label_space, label_topk=LABEL_TOPK)
        self._places = _by_id(self.keys(), pattern)

    def keys(self) -> Iterator[str]:
        """Yield the file's keys."""
        return self._importer.keys()

    def image_ids(self) -> Sequence[str]:
        """Return all ids."""
        return list(self._places)

    def find(self, image_id: str) -> ImageRois | None:
        """Return an image; None where its record is rejected or its size unknown."""
        place = self._places[image_id]
        raw = next(self._importer.read(place, place + 1))
        if not isinstance(raw, RawRecord):
            return None
        size = None if self._sizes is None else self._sizes.of(image_id) or self._sizes.of(raw.key)
        if size is None and raw.width_px is not None and raw.height_px is not None:
            size = (raw.width_px, raw.height_px)
        try:
            return None if size is None else self._meaning.convert(raw, image_id, NO_CAPTION, size)[0]
        except RecordRejectedError:
            return None


def open_feature_set(path: Path, pattern: KeyPattern, sizes: ImageSizes | None) -> FeatureSet:
    """Return the features at `path`, a shard folder or an input of `vlb import-features`.

    Raises:
        ConfigError, ShardError: neither of them, or damaged.
    """
    if (path / manifest_module.FILE_NAME).exists():
        return FolderSet(path, pattern)
    try:
        importer = open_importer([str(path)])
    except ConfigError:
        # Classes written as names have no numbers without a list of them; all else can be compared.
        importer = open_importer([str(path)], options=FormatOptions(labels=False))
    return ForeignSet(importer, str(path), pattern, sizes)


def _by_id(keys: Iterable[str], pattern: KeyPattern) -> dict[str, int]:
    """Return the first place of each image id; keys without one are left out."""
    places: dict[str, int] = {}
    for place, key in enumerate(keys):
        try:
            places.setdefault(pattern.image_id(key), place)
        except RecordRejectedError:
            continue
    return places
