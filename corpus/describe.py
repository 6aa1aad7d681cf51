"""
What a corpus holds: `python -m corpus.describe DIR`.

Prints, for training and validation, counts, lengths, GC, N and the share of every species, and draws the same into
DIR/description.png. DIR is a folder that corpus.build has finished. Reads every sequence once.
"""

import argparse
import json
import os
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

GC_BINS = 100
TOP = 20  # species shown by name in the picture


@dataclass
class Description:
    """Numbers of one split: every sequence's length (bp) and, by species, bases, G or C, N and soft-masked bases."""

    lengths: list[np.ndarray] = field(default_factory=list)
    bases: dict = field(default_factory=lambda: defaultdict(int))
    gc: dict = field(default_factory=lambda: defaultdict(int))
    n: dict = field(default_factory=lambda: defaultdict(int))
    soft_masked: dict = field(default_factory=lambda: defaultdict(float))
    gc_histogram: dict = field(default_factory=lambda: defaultdict(lambda: np.zeros(GC_BINS, np.int64)))  # by category
    tokens: list[np.ndarray] = field(default_factory=list)

    def add(self, batch: pa.RecordBatch):
        """Count the rows of one genome."""
        species, category = batch["species"][0].as_py(), batch["category"][0].as_py()
        letters, offsets = _letters(batch["sequence"])
        lengths = np.diff(offsets)
        is_gc = np.add.reduceat((letters | 4) == ord("G"), offsets[:-1], dtype=np.int64)  # C | 4 is G
        self.lengths.append(lengths)
        self.bases[species] += int(lengths.sum())
        self.gc[species] += int(is_gc.sum())
        self.n[species] += int(np.count_nonzero(letters == ord("N")))
        self.soft_masked[species] += float((batch["soft_masked"].to_numpy() * lengths).sum())
        self.gc_histogram[category] += np.histogram(is_gc / lengths, GC_BINS, (0, 1))[0]
        if "input_ids" in batch.schema.names:
            self.tokens.append(batch["input_ids"].value_lengths().to_numpy())


def _letters(sequences: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all sequences end to end, and where each begins."""
    _, offsets, data = sequences.buffers()
    offsets = np.frombuffer(offsets, np.int32)[sequences.offset : sequences.offset + len(sequences) + 1]
    return np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]], (offsets - offsets[0]).astype(np.int64)


def describe(folder: str | Path) -> dict[str, Description]:
    """
    Read a corpus; one Description for each split.

    Raises:
        ValueError: no manifest.json, or a file it names is missing or has another size.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    splits = {split: Description() for split in manifest["splits"]}
    files = [file for genome in manifest["genomes"] for file in genome["files"]]
    with tqdm(total=sum(file["bases"] for file in files), unit="bp", unit_scale=True, desc="reading") as bar:
        for file in files:
            path = folder / file["file"]
            if not path.is_file() or path.stat().st_size != file["bytes"]:
                raise ValueError(f"{path}: missing, or not of {file['bytes']:,} bytes; copy the corpus again")
            description = splits[file["file"].split("/")[0]]
            with pq.ParquetFile(path) as parquet:
                for batch in parquet.iter_batches(batch_size=4096):
                    description.add(batch)
            bar.update(file["bases"])
    return splits


def read_manifest(folder: Path) -> dict:
    """The manifest.json of a finished corpus. Raises ValueError when there is none."""
    path = folder / "manifest.json"
    if not path.is_file():
        unfinished = (folder / ".build").is_dir()
        advice = (
            "give the command of corpus.build again to finish it" if unfinished else "corpus.build makes such folders"
        )
        raise ValueError(f"{folder}: has no manifest.json; {advice}")
    return json.loads(path.read_text())


def to_text(splits: dict[str, Description]) -> str:
    """The numbers as plain tables."""
    lines = []
    for split, counts in splits.items():
        lengths, bases = np.concatenate(counts.lengths), sum(counts.bases.values())
        lines += [
            f"{split}",
            f"  sequences    {len(lengths):>16,}",
            f"  bases        {bases:>16,} bp",
            f"  length       {_spread(lengths)} bp",
        ]
        if counts.tokens:
            tokens = np.concatenate(counts.tokens)
            lines.append(
                f"  tokens       {tokens.sum():>16,}; {_spread(tokens)} each; {bases / tokens.sum():.2f} bp a token"
            )
        lines += [
            f"  GC           {sum(counts.gc.values()) / bases:>16.2%}",
            f"  N            {sum(counts.n.values()) / bases:>16.2%}",
            f"  soft-masked  {sum(counts.soft_masked.values()) / bases:>16.2%}",
            f"  {'species':<40} {'share':>8} {'Mbp':>10} {'GC':>7} {'soft-masked':>12}",
        ]
        for name, count in sorted(counts.bases.items(), key=lambda item: -item[1]):
            lines.append(
                f"  {name[:40]:<40} {count / bases:>8.2%} {count / 1e6:>10.3f} {counts.gc[name] / count:>7.1%} "
                f"{counts.soft_masked[name] / count:>12.1%}"
            )
        lines.append("")
    return "\n".join(lines)


def _spread(values: np.ndarray) -> str:
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{low:,.0f} to {high:,.0f}, median {middle:,.0f}, mean {values.mean():,.1f}"


def draw(splits: dict[str, Description], manifest: dict, path: Path):
    """Lengths, GC by category, species shares, and what the genomes held: N and soft-masked bases."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 10), layout="constrained")
    (length_axes, gc_axes), (share_axes, genome_axes) = figure.subplots(2, 2)
    _draw_lengths(length_axes, splits)
    _draw_gc(gc_axes, splits)
    _draw_shares(share_axes, splits)
    _draw_genomes(genome_axes, manifest)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", dpi=110)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _draw_lengths(axes, splits: dict[str, Description]):
    longest = max(np.concatenate(counts.lengths).max() for counts in splits.values())
    for split, counts in splits.items():
        axes.hist(np.concatenate(counts.lengths), bins=np.linspace(0, longest * 1.02, 60), label=split, alpha=0.6)
    axes.set(title="Length of sequences", xlabel="bp", ylabel="sequences", yscale="log")
    axes.set_ylim(bottom=0.8)
    axes.legend()


def _draw_gc(axes, splits: dict[str, Description]):
    histograms = defaultdict(lambda: np.zeros(GC_BINS, np.int64))
    for counts in splits.values():
        for category, histogram in counts.gc_histogram.items():
            histograms[category] += histogram
    middle = (np.arange(GC_BINS) + 0.5) / GC_BINS
    for category, histogram in histograms.items():
        axes.plot(100 * middle, 100 * histogram / histogram.sum(), label=category)
    axes.set(title="GC of sequences", xlabel="GC of a sequence, %", ylabel="sequences of the category, %")
    axes.legend()


def _draw_shares(axes, splits: dict[str, Description]):
    total = sum(sum(counts.bases.values()) for counts in splits.values())
    shares = defaultdict(lambda: [0.0, 0.0])
    for split, counts in splits.items():
        for name, bases in counts.bases.items():
            shares[name][split == "validation"] += 100 * bases / total
    rows = sorted(shares.items(), key=lambda item: -sum(item[1]))
    rest = rows[TOP:]
    rows = rows[:TOP]
    if rest:
        rows.append((f"{len(rest)} others", [sum(v[i] for _, v in rest) for i in (0, 1)]))
    names, values = [name[:34] for name, _ in rows], np.array([value for _, value in rows])
    axes.barh(names, values[:, 0], label="train")
    if "validation" in splits:
        axes.barh(names, values[:, 1], left=values[:, 0], label="validation")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05 * values.sum(axis=1).max())
    axes.set(title="Species", xlabel="share of all bases, %")
    axes.legend()


def _draw_genomes(axes, manifest: dict):
    totals = defaultdict(lambda: np.zeros(3))
    for genome in manifest["genomes"]:
        bases = genome["contig_bases"]
        totals[genome["species"]] += [bases, bases - genome["acgt_bases"], genome["soft_masked_bases"]]
    rows = sorted(totals.items(), key=lambda item: -item[1][0])[:TOP]
    names, values = [name[:34] for name, _ in rows], np.array([value for _, value in rows])
    axes.barh(names, 100 * values[:, 1] / values[:, 0], height=0.4, align="edge", label="N, left out")
    axes.barh(names, 100 * values[:, 2] / values[:, 0], height=-0.4, align="edge", label="soft-masked")
    axes.invert_yaxis()
    axes.set(title="What the largest genomes held", xlabel="share of the genome, %")
    axes.legend()


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m corpus.describe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder that corpus.build has made")
    args = parser.parse_args(arguments)
    try:
        splits = describe(args.folder)
        print(to_text(splits))
        draw(splits, read_manifest(args.folder), args.folder / "description.png")
    except (ValueError, OSError) as error:
        sys.exit(f"corpus.describe: {error}")
    print(f"picture: {args.folder / 'description.png'}")


if __name__ == "__main__":
    main()
