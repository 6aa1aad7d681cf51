"""
Synthetic genomes with structure worth learning, for quick starts and tests: `python -m corpus.synthetic FOLDER`.

Two species that differ in base composition and codon usage. Each has genes on both strands (promoter boxes, ribosome
binding site, start codon, codons, stop codon), intergenic DNA, microsatellites, and families of interspersed repeats
whose copies have diverged; repeats are lower case (soft-masked) as in vertebrate assemblies, and each contig has one
gap of N. Everything follows from the seed.
"""

import argparse
import gzip
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

BASES = np.frombuffer(b"ACGT", dtype=np.uint8)
COMPLEMENT = bytes.maketrans(b"ACGTacgt", b"TGCAtgca")
AMINO_ACIDS = "KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"  # codons AAA, AAC, AAG, ... TTT
SPECIES = {"borealis": 0.36, "australis": 0.60}  # name: GC content between genes
LINE_LENGTH = 80  # bases
CONTIG_LENGTH = 250_000  # bp
SMALLEST = 10_000  # bp per species
GAP_LENGTH = 200  # N in each contig
PROMOTERS = (b"TTGACA", b"TATAAT")  # the -35 and -10 boxes
RIBOSOME_SITE = b"AGGAGG"


@dataclass(frozen=True)
class Species:
    """What the sequences of one species are drawn from; built by `make_species`."""

    name: str
    gc: float  # share of G and C between genes
    codons: list[bytes]  # sense codons
    codon_frequencies: np.ndarray  # (61,)
    repeats: list[bytes]  # consensus of each repeat family


def make_species(random: np.random.Generator, name: str, gc: float, families: int = 2) -> Species:
    """A species of the given GC content, with its own repeat families and preferences among synonymous codons."""
    triplets = [bytes(BASES[[i // 16, i // 4 % 4, i % 4]]) for i in range(64)]
    sense = [i for i, amino_acid in enumerate(AMINO_ACIDS) if amino_acid != "*"]
    amino_acid_frequencies = dict(zip(sorted(set(AMINO_ACIDS)), random.dirichlet(np.full(21, 5.0)), strict=True))
    weights = np.zeros(64)
    for i in sense:
        third_base = gc if triplets[i][2:] in (b"G", b"C") else 1 - gc
        weights[i] = third_base * random.gamma(0.7)
    for amino_acid in set(AMINO_ACIDS) - {"*"}:
        synonymous = [i for i in sense if AMINO_ACIDS[i] == amino_acid]
        weights[synonymous] *= amino_acid_frequencies[amino_acid] / weights[synonymous].sum()
    frequencies = weights[sense] / weights[sense].sum()
    repeats = [background(random, gc, int(random.integers(150, 250))) for _ in range(families)]
    return Species(name, gc, [triplets[i] for i in sense], frequencies, repeats)


def background(random: np.random.Generator, gc: float, length: int) -> bytes:
    """Independent bases with the given GC content."""
    return bytes(random.choice(BASES, length, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]))


def gene(random: np.random.Generator, species: Species) -> bytes:
    """-35 box, 17 bp, -10 box, about 30 bp, ribosome site, 7 bp, ATG, 80 to 300 codons, TAA."""
    codons = random.choice(len(species.codons), int(random.integers(80, 300)), p=species.codon_frequencies)
    parts = [
        PROMOTERS[0],
        background(random, species.gc, 17),
        PROMOTERS[1],
        background(random, species.gc, int(random.integers(25, 35))),
        RIBOSOME_SITE,
        background(random, species.gc, 7),
        b"ATG",
        *(species.codons[i] for i in codons),
        b"TAA",
    ]
    return b"".join(parts)


def repeat_copy(random: np.random.Generator, species: Species, divergence: float = 0.03) -> bytes:
    """A soft-masked copy of one repeat family in which each base has been replaced with the given probability."""
    copy = np.frombuffer(species.repeats[random.integers(len(species.repeats))], dtype=np.uint8).copy()
    mutated = random.random(len(copy)) < divergence
    copy[mutated] = random.choice(BASES, int(mutated.sum()))
    return bytes(copy).lower()


def microsatellite(random: np.random.Generator) -> bytes:
    """A unit of 2 to 6 bp, 5 to 20 times."""
    unit = bytes(random.choice(BASES, int(random.integers(2, 7))))
    return unit * int(random.integers(5, 21))


def contig(random: np.random.Generator, species: Species, length: int) -> bytes:
    """Genes, repeats, microsatellites and intergenic DNA in random order and orientation, `length` bp, with one gap."""
    pieces, total = [], 0
    while total < length:
        kind = random.choice(4, p=[0.25, 0.55, 0.05, 0.15])
        if kind == 0:
            piece = gene(random, species)
        elif kind == 1:
            piece = repeat_copy(random, species)
        elif kind == 2:
            piece = microsatellite(random)
        else:
            piece = background(random, species.gc, int(random.integers(50, 400)))
        if random.random() < 0.5:
            piece = piece.translate(COMPLEMENT)[::-1]
        pieces.append(piece)
        total += len(piece)
    sequence = bytearray(b"".join(pieces)[:length])
    gap = int(random.integers(0, max(1, length - GAP_LENGTH)))
    sequence[gap : gap + GAP_LENGTH] = b"N" * len(sequence[gap : gap + GAP_LENGTH])
    return bytes(sequence)


def synthetic_genome(name: str, gc: float, base_pairs: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """
    Contigs of one species as (name, sequence), `base_pairs` bp in all.

    Raises:
        ValueError: fewer than 10,000 bp.
    """
    if base_pairs < SMALLEST:
        raise ValueError(f"base_pairs is {base_pairs:,}; {SMALLEST:,} bp are needed for genes and repeats to recur")
    random = np.random.default_rng([seed, *name.encode()])
    species = make_species(random, name, gc)
    ends = np.linspace(0, base_pairs, max(1, round(base_pairs / CONTIG_LENGTH)) + 1).astype(int)
    for index, (start, end) in enumerate(zip(ends, ends[1:], strict=False)):
        yield f"{name}_{index + 1}", contig(random, species, int(end - start))


def write_synthetic_genomes(folder: str | Path, base_pairs: int = 1_000_000, seed: int = 0) -> list[Path]:
    """
    Write one gzipped FASTA file per species, `base_pairs` bp each, and return their paths.

    A file is written under a temporary name and renamed; the same arguments give the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with tqdm(total=base_pairs * len(SPECIES), unit="bp", unit_scale=True, desc="synthetic genomes") as bar:
        for name, gc in SPECIES.items():
            paths.append(folder / f"{name}.fa.gz")
            temporary = folder / f".{name}.fa.gz.{os.getpid()}"
            try:
                with open(temporary, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
                    for title, sequence in synthetic_genome(name, gc, base_pairs, seed):
                        lines = (sequence[i : i + LINE_LENGTH] for i in range(0, len(sequence), LINE_LENGTH))
                        file.write(f">{title} synthetic\n".encode() + b"\n".join(lines) + b"\n")
                        bar.update(len(sequence))
                os.replace(temporary, paths[-1])
            finally:
                temporary.unlink(missing_ok=True)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m corpus.synthetic", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write borealis.fa.gz and australis.fa.gz")
    parser.add_argument("--base-pairs", type=int, default=1_000_000, help="size of each in bp (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the genomes follow from it (default: %(default)s)")
    options = parser.parse_args()
    if options.base_pairs < SMALLEST:
        parser.error(f"--base-pairs is {options.base_pairs}; at least {SMALLEST} are needed")
    for path in write_synthetic_genomes(options.folder, options.base_pairs, options.seed):
        print(path)


if __name__ == "__main__":
    main()
