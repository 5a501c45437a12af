"""What all benchmarks share. Promise: a figure is kept with the machine, commit, command and versions that gave it.

Two things are compared in one run, alternately, so that a machine that is busy for a while is busy for both. The
figure is the median of the pairs' ratios, and all of them are kept beside it.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
# Scratch of benchmarks and the environments of what they compare with; git ignores it.
SCRATCH = Path(".bench")
PACKAGES = ("torch", "transformers", "numpy", "lmdb", "h5py", "pyarrow", "blake3", "pillow")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Seconds that ours and theirs took, run by run; run i of both makes pair i."""

    name: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def time_ratios(self) -> list[float]:
        """Return ours / theirs of each pair: below 1, ours is the faster one."""
        return [mine / other for mine, other in zip(self.ours, self.theirs, strict=True)]

    @property
    def time_ratio(self) -> float:
        """Return the median of ours / theirs in time."""
        return statistics.median(self.time_ratios)

    @property
    def speed_ratio(self) -> float:
        """Return the median of ours / theirs in speed: above 1, ours is the faster one."""
        return statistics.median(1 / ratio for ratio in self.time_ratios)

    def row(self, *, work: float, unit: str) -> dict[str, Any]:
        """Return a row for `report`: both speeds in `unit` a second for `work` units of work, and the speed ratio."""
        return {
            "measure": self.name,
            f"ours {unit}/s": significant(work / statistics.median(self.ours)),
            f"theirs {unit}/s": significant(work / statistics.median(self.theirs)),
            "speed ratio (median)": round(self.speed_ratio, 3),
            "speed ratios": " ".join(f"{1 / ratio:.2f}" for ratio in self.time_ratios),
        }


def compare(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], *, pairs: int = 5, warm_up: bool = False
) -> Comparison:
    """Return the times of `pairs` runs of each, in turn; which of the two goes first alternates as well.

    warm_up: run each once before, unmeasured.
    """
    if warm_up:
        ours()
        theirs()
    taken: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for side in (0, 1) if pair % 2 == 0 else (1, 0):
            taken[side].append(seconds(theirs if side else ours))
    return Comparison(name=name, ours=tuple(taken[0]), theirs=tuple(taken[1]))


def seconds(work: Callable[[], object]) -> float:
    """Return the wall seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def significant(value: float, digits: int = 4) -> float:
    """Return a number rounded to `digits` significant ones."""
    return float(f"{value:.{digits}g}")


def pin_threads(threads: int) -> int:
    """Give every library `threads` threads for its arithmetic, here and in child processes; return the number.

    To be called before numpy or torch are imported, where they are not imported yet; torch obeys later, too.
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    return threads


def peak_mb() -> float:
    """Return the most memory that this process ever held at once, in MB.

    What Linux tells of resources used includes the process that this one was started from; its status does not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = (line.split() for line in status.read_text().splitlines())
        return next(int(words[1]) / 1e3 for words in lines if words[:1] == ["VmHWM:"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def real_data(*parts: str) -> Path:
    """Return a path under the folder of real data: VLB_REAL_DATA, or beside the project."""
    return Path(os.environ.get("VLB_REAL_DATA", ROOT.parent / "shared" / "realdata")).joinpath(*parts)


def absent(name: str, packages: Sequence[str]) -> bool:
    """Return whether one of the packages is not here, and say on stderr that comparison `name` is left out for it."""
    lacking = [package for package in packages if importlib.util.find_spec(package) is None]
    if lacking:
        print(f"left out: {name}, for want of {', '.join(lacking)}; see benchmarks/README.md", file=sys.stderr)
    return bool(lacking)


def report(name: str, rows: Sequence[dict[str, Any]], *, notes: Sequence[str] = (), keep: bool = True) -> None:
    """Print rows as tables, and keep them in results/NAME.json with all that `circumstances` tells.

    Rows of equal keys in turn make one table. keep: False for a try with other options than the usual ones.
    """
    found = {"benchmark": name, **circumstances(), "rows": list(rows), "notes": list(notes)}
    print_rows(rows)
    for note in notes:
        print(note)
    print(f"({found['machine']}, {found['cores']} cores, load {found['load']}, commit {found['commit']})")
    if keep:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def circumstances() -> dict[str, Any]:
    """Return date, machine, cores, load, commit, command and versions: all that a reader needs to judge a figure."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": " ".join(f"{value:.1f}" for value in os.getloadavg()),
        "commit": commit(),
        "command": command(),
        "versions": versions(),
    }


def machine() -> str:
    """Return the processor's name, and the first CUDA device's where torch is loaded and sees one."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        cpu = next((value.strip() for key, _, value in lines if key.strip() == "model name"), cpu)
    torch = sys.modules.get("torch")
    return f"{cpu}, {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else cpu


def commit() -> str:
    """Return the commit that is checked out, with `-dirty` where files differ from it."""
    ask = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def command() -> str:
    """Return what was typed, from `python` on."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    started = f"-m {spec.name}" if spec is not None else Path(sys.argv[0]).name
    return " ".join(["python", started, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows as plain tables with aligned columns, a new one where the keys change."""
    groups: list[list[dict[str, Any]]] = []
    for row in rows:
        if not groups or list(groups[-1][0]) != list(row):
            groups.append([])
        groups[-1].append(row)
    for group in groups:
        table = [list(group[0]), *([str(value) for value in row.values()] for row in group)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for line in table:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        print()


def parser(description: str | None, *, pairs: int = 5) -> argparse.ArgumentParser:
    """Return a parser that has what all benchmarks take: --pairs, --scratch and --dry."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--pairs", type=int, default=pairs, help="runs of each side")
    made.add_argument("--scratch", type=Path, default=SCRATCH, help="folder for what is made on the way")
    made.add_argument("--dry", action="store_true", help="print the figures and keep no file of them")
    return made
