"""`vlb build-corpus`: text files to token files that training maps into memory."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli import console
from cli.options import Choice

if TYPE_CHECKING:
    from vlbert_data.corpus_build import CorpusResult, Progress

DOCUMENTS = ("blank-line", "file", "line")
SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
BYTES_OF_A_MB = 1_000_000


class SizeType(click.ParamType[int]):
    """Bytes, as `8M`, `64MiB` or `1000000`; units are powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        text = str(value).strip().upper().removesuffix("IB").removesuffix("B")
        number, unit = text.rstrip("KMG"), text.lstrip("0123456789")
        if not number.isdigit() or unit not in SIZE_UNITS:
            self.fail(f"{value!r} is no size; write it as 8M or 64MiB.", param, ctx)
        return int(number) * SIZE_UNITS[unit]


@click.command(name="build-corpus", no_args_is_help=True)
@click.argument("inputs", nargs=-1, required=True)
@click.option("--tokenizer", required=True, help="tokenizer.json, vocab.txt, a folder, or a name on the hub.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make, or to go on with.")
@click.option(
    "--document",
    type=Choice(DOCUMENTS),
    default="blank-line",
    show_default=True,
    help="What ends a document in .txt.",
)
@click.option("--text-field", default="text", show_default=True, help="Key or column of the text in JSONL and Parquet.")
@click.option("--workers", type=click.IntRange(1, 1024), help="Processes that tokenise [one for each core].")
@click.option("--shard-size", type=SizeType(), default="8M", show_default=True, help="Text in one corpus file, about.")
@click.option(
    "--max-rejects",
    type=click.FloatRange(0),
    default=0.05,
    show_default=True,
    help="Share below 1, or number of documents.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the facts as JSON.")
def command(
    inputs: tuple[str, ...],
    tokenizer: str,
    out: Path,
    document: str,
    text_field: str,
    workers: int | None,
    shard_size: int,
    max_rejects: float,
    as_json: bool,
) -> None:
    """Tokenise text files into a corpus that training maps into memory.

    INPUTS: .txt, .jsonl (.ndjson) and .parquet files, text also as .gz or .zst; folders, searched in depth; quoted
    globs. A named file of another suffix is taken as text. Run the same command again to go on after a stop.

    \b
    vlb build-corpus books/ wiki.jsonl.zst --tokenizer bert-base-uncased --out corpus
    """
    from vlbert_data.corpus_build import CorpusBuild, CorpusSettings, TooManyRejectsError, default_workers
    from vlbert_data.tokenizer import load_tokenizer

    settings = CorpusSettings(
        document=document,
        text_field=text_field,
        unit_bytes=shard_size,
        max_rejects=max_rejects,
        workers=workers or default_workers(),
    )
    build = CorpusBuild(folder=out, inputs=inputs, tokenizer=load_tokenizer(tokenizer), settings=settings)
    try:
        result = _run(build)
    except TooManyRejectsError as error:
        console.print_counts(error.counts, "rejected because of")
        raise
    if as_json:
        click.echo(json.dumps(_facts(out, result), indent=1, ensure_ascii=False))
    else:
        _print_summary(out, result)


def _run(build: Any) -> "CorpusResult":
    rate = console.Rate()
    total = sum(file.num_bytes for file in build.found.files)
    with console.bar("MB of text", -(-total // BYTES_OF_A_MB)) as bar:

        def show(progress: "Progress") -> None:
            speed = rate.of(progress.new_bytes) / BYTES_OF_A_MB
            # The bar counts stored bytes; what compressed files hold shows only while they are read.
            done = total * progress.done_bytes / max(progress.total_bytes, 1)
            bar.update(int(done // BYTES_OF_A_MB), f"{speed:.1f} MB/s")

        build.on_progress = show
        result: CorpusResult = build.run()
    return result


def _facts(out: Path, result: "CorpusResult") -> dict[str, Any]:
    manifest = result.manifest
    return {
        "folder": str(out),
        "documents": manifest.num_documents,
        "lines": manifest.num_lines,
        "tokens": manifest.num_tokens,
        "text_bytes": manifest.text_bytes,
        "files": len(manifest.files),
        "bytes_on_disk": sum(entry.bytes for entry in manifest.files),
        "built_now": result.built,
        "rejected": sum(manifest.rejects.values()),
        "rejects": dict(manifest.rejects),
        "source": dict(manifest.source),
        "tokenizer": dict(manifest.tokenizer),
        "content_hash": manifest.content_hash,
    }


def _print_summary(out: Path, result: "CorpusResult") -> None:
    manifest, facts = result.manifest, _facts(out, result)
    rows = {
        "documents": f"{manifest.num_documents:,}",
        "lines": f"{manifest.num_lines:,}",
        "tokens": f"{manifest.num_tokens:,} ({manifest.num_tokens / manifest.num_documents:.1f} a document)",
        "text": f"{console.size(manifest.text_bytes)} from {manifest.source['files']:,} files",
        "on disk": f"{console.size(facts['bytes_on_disk'])} in {len(manifest.files)} files ({result.built} built now)",
        "rejected": f"{facts['rejected']:,}",
    }
    if skipped := manifest.source["skipped"]:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in skipped.items())
        rows["skipped"] = f"{sum(skipped.values()):,} files of other kinds ({kinds})"
    console.print_facts(str(out), rows)
    console.print_counts(manifest.rejects, "rejected because of")
