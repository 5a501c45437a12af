"""`vlb convert-weights`: the Visual Genome detector's weights and names, from any published file, put together once."""

import hashlib
import shutil
from pathlib import Path

import click

from cli import console
from vlbert_data.errors import ConfigError, VlbError


@click.command(name="convert-weights", no_args_is_help=True)
@click.argument("weights")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write; made if missing.")
@click.option("--objects", type=click.Path(path_type=Path), help="File of the 1600 object names, a line each.")
@click.option("--attributes", type=click.Path(path_type=Path), help="File of the 400 attribute names, a line each.")
@click.option("--sha256", help="Stop unless the weights file has this SHA-256, in hex.")
def command(weights: str, out: Path, objects: Path | None, attributes: Path | None, sha256: str | None) -> None:
    """Put a detector's WEIGHTS and names into one folder, for --detector vg-frcnn:FOLDER.

    WEIGHTS: safetensors, pytorch_model.bin, a Detectron2-style .pkl (nothing in it is executed), a folder with one of
    them, or a Hugging Face hub name. Names stand beside the weights unless --objects and --attributes say where.

    \b
    vlb convert-weights faster_rcnn_from_caffe_attr.pkl --objects objects_vocab.txt \\
        --attributes attributes_vocab.txt --out vg-frcnn
    """
    from vlbert_data.detect.vg_frcnn.names import ATTRIBUTES_FILE, OBJECTS_FILE, read_names
    from vlbert_data.detect.vg_frcnn.weights import SAFETENSORS_FILE, find_weights, read_weights, save_weights

    path = find_weights(weights)
    if sha256 is not None:
        _check_sha256(path, sha256.lower())
    found = read_weights(path)
    size = found.size
    names = {OBJECTS_FILE: (objects, size.num_classes)}
    if size.num_attributes:
        names[ATTRIBUTES_FILE] = (attributes, size.num_attributes)
    sources = {name: given or path.parent / name for name, (given, _) in names.items()}
    for (name, (_, count)), option in zip(names.items(), ("--objects", "--attributes"), strict=False):
        if not sources[name].is_file():
            raise ConfigError(f"{sources[name]}: not found. Say where the list of names is: {option} FILE.")
        read_names(sources[name], count)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, source in sources.items():
            if not (out / name).exists() or not source.samefile(out / name):
                shutil.copyfile(source, out / name)
        save_weights(found, out / SAFETENSORS_FILE)
    except OSError as error:
        raise VlbError(
            f"{out}: cannot be written: {error.strerror or error}. Make room, or give another --out."
        ) from error
    num_values = sum(tensor.numel() for tensor in found.tensors.values())
    heads = f"{size.num_classes} classes, {size.num_attributes or 'no'} attributes"
    console.say(f"{out}: {len(found.tensors)} tensors, {num_values:,} values, {heads}, digest {found.digest}.")


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise ConfigError(f"{path}: SHA-256 {found}; expected {expected}. Get the file again from where it came.")
