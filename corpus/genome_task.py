"""The work of one task: one genome in, its shards and its report out."""

import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from corpus import dnabert2, dnagrinder
from corpus.findings import Findings
from corpus.kmers import sampled_kmers
from corpus.recipe import Genome, Recipe, RecipeError
from corpus.sequences import apply_strand, to_arrow
from corpus.shards import ShardWriter, file_sha256
from corpus.windows import random_stream

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
        errors = self._errors(rank)
        errors.unlink(missing_ok=True)
        try:
            report = make_genome(self.recipe, self.genomes[rank], rank, self.output, self.work)
        except Exception as error:
            with suppress(OSError):  # of a full disk, say
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
        reason = self.refusal(rank) or f"the task ended early; see {self.work / 'logs'}"
        return f"{self.genomes[rank].path}: not finished: {reason}"

    def refusal(self, rank: int) -> str | None:
        """The error that the last try of a task ended with."""
        path = self._errors(rank)
        return path.read_text().strip() if path.exists() else None

    def _errors(self, rank: int) -> Path:
        return self.work / "errors" / f"{rank:05d}.txt"


def make_genome(recipe: Recipe, genome: Genome, rank: int, output: Path, work: Path) -> dict:
    """
    Write the shards of one genome and return its report: counts, hashes and notes, no times and no machine's paths.

    Memory: one contig and a few row groups. Raises FastaError; OSError when the disk is full, no shard left half-made.
    """
    stem = f"{rank:05d}-{''.join(c if c.isalnum() else '_' for c in genome.species[:40])}"
    partial = work / "partial" / f"{socket.gethostname()}-{os.getpid()}"  # a scheduler may run a task twice at once
    encoder = load_encoder(recipe)
    by_tokens = encoder is not None and recipe.recipe == "dnagrinder"
    writers = {split: ShardWriter(output / split, partial, stem, recipe.shard_bases, by_tokens) for split in SPLITS}
    holds_out = bool(recipe.validation_species or recipe.validation_contigs)
    kmers: dict[str, list] = {split: [] for split in SPLITS}
    findings, held_out_contigs, random = Findings(), {}, {}
    make_sequences = {"dnabert2": dnabert2, "dnagrinder": dnagrinder}[recipe.recipe].make_sequences
    try:
        for contig, sequences in make_sequences(recipe, genome, findings):
            if contig.name in recipe.validation_contigs:
                held_out_contigs[contig.name] = True
            held_out = contig.name in held_out_contigs or genome.species in recipe.validation_species
            split = SPLITS[held_out]
            if contig.name not in random:
                random = {contig.name: random_stream(recipe.seed, genome.species, genome.source, contig.name, "strand")}
            sequences = apply_strand(sequences, recipe.strand, random[contig.name])
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
        writer.remove_stale()
        if holds_out and writer.rows:
            _save_kmers(work / "kmers" / f"{rank:05d}-{split}.npy", kmers[split])
    if not any(writer.rows for writer in writers.values()):
        findings.notes.append("no sequence was made of it; its contigs, runs of ACGT or kept stretches are too short")
    return _report(genome, findings, list(held_out_contigs), writers)


def _report(genome: Genome, findings: Findings, held_out_contigs: list[str], writers: dict[str, ShardWriter]) -> dict:
    counts = {
        split: {"sequences": writer.rows, "bases": writer.bases, "tokens": writer.tokens}
        for split, writer in writers.items()
        if writer.rows
    }
    return {
        "species": genome.species,
        "category": genome.category,
        "source": genome.source,
        "bytes": genome.size,
        "sha256": file_sha256(genome.path),
        "vcf_sha256": {name: file_sha256(path) for name, path in named_vcf_files(genome).items()},
        **findings.counts,
        "splits": counts,
        "held_out_contigs": held_out_contigs,
        "notes": findings.notes,
        "variants": dict(sorted(findings.variants.items())),
        "repeats": findings.repeats,
        "files": [file for writer in writers.values() for file in writer.files],
    }


def named_vcf_files(genome: Genome) -> dict[str, Path]:
    """The files of variants by the names that reports have for them."""
    return {path.relative_to(genome.vcf_folder).as_posix(): path for path in genome.vcf_files}


def changed_file(genome: Genome, report: Path) -> Path | None:
    """The genome's or variants' file that is no longer what its report tells of; hashed only where it may differ."""
    known, files = json.loads(report.read_text()), [genome.path, *genome.vcf_files]
    if genome.size == known["bytes"] and all(f.stat().st_mtime_ns <= report.stat().st_mtime_ns for f in files):
        return None
    if file_sha256(genome.path) != known["sha256"]:
        return genome.path
    hashes, named = known["vcf_sha256"], named_vcf_files(genome)
    for name in sorted({*hashes, *named}):
        if name not in hashes or name not in named or file_sha256(named[name]) != hashes[name]:
            return genome.vcf_folder / name
    return None


def load_encoder(recipe: Recipe):
    """The encoder of a recipe's tokenizer, or None without one. Raises RecipeError."""
    return _load_encoder(recipe.tokenizer) if recipe.tokenizer else None


@cache  # it takes a second, and a process makes many genomes
def _load_encoder(path: str):
    from tokenization.encoder import Encoder

    try:
        encoder = Encoder.load(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"tokenizer: {error}") from None
    if (size := encoder.tokenizer.get_vocab_size()) > 1 << 16:
        raise RecipeError(f"tokenizer: {path} has {size:,} tokens; input_ids holds at most {1 << 16:,}")
    return encoder


def _save_kmers(path: Path, kmers: list[np.ndarray]):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.npy")
    np.save(temporary, np.unique(np.concatenate(kmers)), allow_pickle=False)
    os.replace(temporary, path)
