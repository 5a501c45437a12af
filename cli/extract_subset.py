"""`vlb extract-subset`: a smaller folder out of a larger one."""

from pathlib import Path

import click

from cli import console


@click.command(name="extract-subset", no_args_is_help=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--ids", type=click.Path(path_type=Path), help="Text file of the image ids to take, one a line.")
@click.option("--sample", type=int, help="Take so many images by chance.")
@click.option("--seed", type=int, default=0, help="Chooses the sample [0].")
@click.option("--shard-size", type=click.IntRange(min=1), default=1000, help="Images of one shard [1000].")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
def command(folder: Path, ids: Path | None, sample: int | None, seed: int, shard_size: int, out: Path) -> None:
    """Copy some images of the shard folder FOLDER into a new one, to the bit and in the same order."""
    if (ids is None) == (sample is None):
        raise click.UsageError("give either --ids FILE or --sample N.")
    from vlbert_data.errors import VlbError
    from vlbert_data.shards.folder import ShardFolder
    from vlbert_data.subset import choose_ids, choose_sample, extract, read_ids

    opened = ShardFolder.open(folder)
    chosen = choose_sample(opened, sample, seed) if sample is not None else choose_ids(opened, read_ids(ids or out))
    try:
        manifest = extract(opened, chosen, out, shard_size=shard_size)
    except OSError as error:
        where, why = error.filename or out, error.strerror or error
        raise VlbError(f"{where}: {why}. Nothing of the subset is kept; mend this and run the same command.") from error
    console.print_facts(
        str(out),
        {
            "images": f"{manifest.num_images:,} of {len(opened):,}",
            "captions": f"{manifest.num_captions:,}",
            "RoIs": f"{manifest.num_rois:,}",
            "on disk": console.size(sum(shard.bytes for shard in manifest.shards)),
        },
    )
    if chosen.missing:
        console.say(f"{len(chosen.missing)} ids are not in {folder}, such as {', '.join(chosen.missing[:3])}.")
