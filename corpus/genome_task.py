"""The work of one task: one genome in, its shards and its report out."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpus.contigs import Contig, read_contigs
from corpus.kmers import sampled_kmers
from corpus.recipe import Dnabert2Recipe, Genome, Recipe
from corpus.sequences import Sequences, apply_strand, join, to_arrow
from corpus.shards import GROUP_BASES, ShardWriter, file_sha256
from corpus.windows import fixed_windows, random_stream

SPLITS = ("train", "validation")


def report_path(work: Path, rank: int) -> Path:
    """Where the report of a finished task lies."""
    return work / "reports" / f"{rank:05d}.json"


@dataclass(repr=False)
class GenomeTask:
    """A pipeline step of datatrove: called with the number of a genome, it makes that genome's part of the corpus."""

    recipe: Recipe
    genomes: list[Genome]
    output: Path
    work: Path

    def __call__(self, data, rank: int = 0, world_size: int = 1):
        errors = self.work / "errors" / f"{rank:05d}.txt"
        errors.unlink(missing_ok=True)
        try:
            report = make_genome(self.recipe, self.genomes[rank], rank, self.output, self.work)
        except Exception as error:
            errors.parent.mkdir(parents=True, exist_ok=True)
            errors.write_text(f"{error}\n")
            raise
        path = report_path(self.work, rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(report))
        os.replace(temporary, path)

    def error(self, rank: int) -> str:
        """Why a task has no report."""
        path = self.work / "errors" / f"{rank:05d}.txt"
        reason = path.read_text().strip() if path.exists() else f"the task ended early; see {self.work / 'logs'}"
        return f"{self.genomes[rank].path}: not finished: {reason}"


def make_genome(recipe: Recipe, genome: Genome, rank: int, output: Path, work: Path) -> dict:
    """
    Write the shards of one genome and return its report: counts, hashes and notes, no times and no machine's paths.

    Memory: one contig and a few row groups. Raises FastaError; OSError when the disk is full, no shard left half-made.
    """
    stem = f"{rank:05d}-{''.join(c if c.isalnum() else '_' for c in genome.species)}"
    encoder = _load_encoder(recipe)
    holds_out = bool(recipe.validation_species or recipe.validation_contigs)
    by_tokens = encoder is not None and not isinstance(recipe, Dnabert2Recipe)
    writers = {
        split: ShardWriter(output / split, work / "partial", stem, recipe.shard_bases, by_tokens) for split in SPLITS
    }
    kmers: dict[str, list] = {split: [] for split in SPLITS}
    counts, held_out_contigs, notes = Counter(), [], []
    try:
        for contig, windows in _windows_of_genome(recipe, genome, counts, notes):
            held_out = genome.species in recipe.validation_species or contig.name in recipe.validation_contigs
            if contig.name in recipe.validation_contigs:
                held_out_contigs.append(contig.name)
            split = SPLITS[held_out]
            random = random_stream(recipe.seed, genome.species, genome.source, contig.name, "strand")
            for sequences in _sequences(contig, windows):
                sequences = apply_strand(sequences, recipe.strand, random)
                tokens = encoder.encode_batch(sequences.split()) if encoder else None
                table = to_arrow(sequences, genome.species, genome.category, contig.name, tokens)
                writers[split].write(table, len(sequences.letters))
                if holds_out:
                    kmers[split].append(sampled_kmers(sequences.letters, sequences.offsets))
        for writer in writers.values():
            writer.close()
    except BaseException:
        for writer in writers.values():
            writer.abort()
        raise
    for split, writer in writers.items():
        if holds_out and writer.rows:
            _save_kmers(work / "kmers" / f"{rank:05d}-{split}.npy", kmers[split])
    if not any(writer.rows for writer in writers.values()):
        notes.append("no sequence was made of it; its contigs or its runs of ACGT are too short")
    return {
        "species": genome.species,
        "category": genome.category,
        "source": genome.source,
        "sha256": file_sha256(genome.path),
        **counts,
        "splits": {
            split: {"sequences": writer.rows, "bases": writer.bases, "tokens": writer.tokens}
            for split, writer in writers.items()
            if writer.rows
        },
        "held_out_contigs": held_out_contigs,
        "notes": notes,
        "files": [file for writer in writers.values() for file in writer.files],
    }


def _load_encoder(recipe: Recipe):
    if recipe.tokenizer is None:
        return None
    from tokenization.encoder import Encoder

    return Encoder.load(recipe.tokenizer)


def _windows_of_genome(recipe, genome: Genome, counts: Counter, notes: list) -> Iterator[tuple[Contig, np.ndarray]]:
    """Each contig with its windows, (count, 2); counts what there was."""
    chosen = _sample(recipe, genome, notes) if genome.bases else None
    first = 0
    for contig in read_contigs(genome.path):
        counts["contigs"] += 1
        counts["contig_bases"] += len(contig)
        counts["acgt_bases"] += int(np.diff(contig.acgt).sum())
        counts["soft_masked_bases"] += int(np.diff(contig.soft_masked).sum())
        windows = fixed_windows(contig.acgt, recipe.window, recipe.shortest or recipe.window)
        if chosen is not None:
            first, last = first + len(windows), first
            windows = windows[chosen[last:first]]
        yield contig, windows


def _sample(recipe: Dnabert2Recipe, genome: Genome, notes: list) -> np.ndarray:
    """Which windows of a genome to take so that they hold `genome.bases` bp: boolean, in the order of the file."""
    lengths = [
        np.diff(fixed_windows(contig.acgt, recipe.window, recipe.shortest or recipe.window))[:, 0]
        for contig in read_contigs(genome.path)
    ]
    lengths = np.concatenate(lengths)
    order = random_stream(recipe.seed, genome.species, genome.source, "sample").permutation(len(lengths))
    enough = int(np.searchsorted(np.cumsum(lengths[order]), genome.bases)) + 1
    if enough > len(lengths):
        notes.append(f"{genome.bases:,} bp were asked for, its windows hold {lengths.sum():,}")
    chosen = np.zeros(len(lengths), bool)
    chosen[order[:enough]] = True
    return chosen


def _sequences(contig: Contig, windows: np.ndarray) -> Iterator[Sequences]:
    """The windows of a contig in pieces of a row group."""
    piece = np.cumsum(windows[:, 1] - windows[:, 0]) // GROUP_BASES
    for part in np.split(windows, np.flatnonzero(np.diff(piece)) + 1) if len(windows) else []:
        start, end = part.T
        letters, offsets = join([contig.cut(s, e) for s, e in zip(start.tolist(), end.tolist(), strict=True)])
        share = contig.soft_masked_bases(start, end) / (end - start)
        yield Sequences(letters, offsets, start, end, np.zeros(len(start), bool), share)


def _save_kmers(path: Path, kmers: list[np.ndarray]):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.npy")
    np.save(temporary, np.unique(np.concatenate(kmers)), allow_pickle=False)
    os.replace(temporary, path)
