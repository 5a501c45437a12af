"""`vlb convert-checkpoint`: a published VL-BERT state dict into our layout, every name accounted for."""

from pathlib import Path

import click

from cli import console


@click.command(name="convert-checkpoint", no_args_is_help=True)
@click.argument("published", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write; made if missing.")
@click.option(
    "--heads", type=click.IntRange(min=1), help="Attention heads of a layer; default: one for 64 of the width."
)
def command(published: Path, out: Path, heads: int | None) -> None:
    """Turn a PUBLISHED VL-BERT checkpoint into our layout, for --init-from and `from_pretrained`.

    PUBLISHED: a .model file of the released code, or its state dict as safetensors. Nothing in it is executed.

    \b
    vlb convert-checkpoint vl-bert-base-prec.model --out vl-bert-base
    vlb pretrain --shards cc --preset vlbert-base --init-from vl-bert-base --out runs/more
    """
    from vlbert_train.pretrained import convert_published, describe, save_model

    model, account = convert_published(published, num_heads=heads)
    save_model(model, out)
    for line in describe(account):
        console.say(line)
    config = model.config
    click.echo(
        f"{out}: {config.num_hidden_layers} layers of {config.hidden_size}, {config.num_attention_heads} heads, "
        f"{config.vocab_size:,} words, {config.num_roi_classes:,} RoI classes, features of {config.feature_dim}"
    )
