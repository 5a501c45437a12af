"""HDF5 files of VL-T5 and VOLTA: a group an image, under the image's name, with LXMERT's fields as data sets.

Promise: an image whose group lacks a field, or links to another file, costs that image.

Fields: `features` [R, 2048], `boxes` [R, 4] pixels, `obj_id` and `attr_id` counted from the first class, `obj_conf`,
`attr_conf`, `img_w`, `img_h`.

Source: j-min/VL-T5 feature_extraction; e-bug/volta features_extraction/tsv_to_h5.py.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vlbert_data.errors import RecordRejectedError
from vlbert_data.importers.base import FormatOptions, RawRecord
from vlbert_data.importers.hdf5_inputs import NamedInputs, describe, first_names, read_datasets
from vlbert_data.importers.numbered import hash_files
from vlbert_data.importers.plain_arrays import RefusedDataError
from vlbert_data.importers.record_dict import NAMES, RecordPlace, record_of

NAME = "group-hdf5"
KNOWN = frozenset(name for names in NAMES.values() for name in names)
SNIFFED_GROUPS = 8


def sniff(path: Path) -> str | None:
    """Return what shows that the file has this format; None where it has not."""
    for name in first_names(path)[:SNIFFED_GROUPS]:
        with suppress(RefusedDataError):  # one of them may be damaged
            found = describe(path, name)
            members = set(found.get("first", []))
            if found["kind"] == "group" and {"features", "boxes"} <= members:
                return f"an HDF5 file of groups with the data sets {', '.join(sorted(members & KNOWN))}"
    return None


def open_importer(paths: Sequence[Path], options: FormatOptions) -> "GroupHdf5":
    """Return the importer of these files; see `base.Format`."""
    return GroupHdf5(paths)


class GroupHdf5(NamedInputs):
    """The groups of HDF5 files."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__(paths)
        self._file_facts = hash_files(paths)
        self.settle(NAME)

    def load(self, number: int) -> RawRecord:
        """Return the record in a group."""
        path, key = self.named(number)
        found = describe(path, key)
        if found["kind"] != "group":
            raise RecordRejectedError("bad record", f"a {found['kind']}; expected a group of data sets")
        members = [str(name) for name in found["first"] if name in KNOWN]
        arrays = read_datasets(path, [f"{key}/{name}" for name in members])
        fields = dict(zip(members, arrays, strict=True))
        num_bytes = sum(array.nbytes for array in arrays)
        return record_of(fields, RecordPlace(key=key, where=self.where(number), num_bytes=num_bytes))
