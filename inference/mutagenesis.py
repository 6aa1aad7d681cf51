"""
In-silico mutagenesis: every base of a region replaced by each other one, and scored as `inference.score_variants` does.

    python -m inference.mutagenesis chr20:1000-1120 --genome genome.fa.gz --model my_model --output region.png

writes region.tsv (a row for each base: position, base, score of A, C, G, T; 0 for the base itself) and region.png: the
matrix, and above it each base as high as the mean of its three replacements is low. Positions count from 1, both ends
included, as in samtools. The scores are SB_LLR (nats), or SB_PLL, SB_DIST with --score.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from corpus.vcf_files import VariantError
from inference.jobs import USER_ERRORS, JobError, check_files, refuse_not_finite
from inference.loading import SequenceEncoder, load_masked_lm
from inference.logo import draw_logo, of_sequence, save
from inference.masked_scores import BASES
from inference.reading import Genome
from inference.score_variants import FLANK, SCORES, VariantScorer
from inference.variant_windows import aliases, genome_contig, variant_windows
from tokenization.tokenizer_files import write_text_atomically
from training.storage import check_writable

PAIRS_AT_ONCE = 64


def mutagenesis(
    scorer: VariantScorer,
    contig: bytes,
    start: int = 0,
    end: int | None = None,
    flank: int = FLANK,
    score: str = "llr",
) -> np.ndarray:
    """
    Scores of all single-base changes in [start, end): float64 (end - start, 4), columns A, C, G, T.

    A base's own column is 0; rows of N are NaN. `softmax` over a row of "llr" makes of it a score that sums to 1 over
    the four bases, each spelled with its own tokens.

    Args:
        contig: letters ACGTN; what lies outside of the interval is flank.
        score: "llr", "pll" or "distance".

    Raises:
        ValueError: an interval that does not lie in the contig.
    """
    end = len(contig) if end is None else end
    if not 0 <= start < end <= len(contig):
        raise ValueError(f"interval {start}-{end} does not lie in a sequence of {len(contig):,} bp")
    matrix = np.full((end - start, 4), np.nan)
    changes = []
    for row, position in enumerate(range(start, end)):
        base = contig[position : position + 1].decode()
        if base in BASES:
            matrix[row, BASES.index(base)] = 0
            changes += [(row, column) for column in range(4) if BASES[column] != base]
    for low in tqdm(range(0, len(changes), PAIRS_AT_ONCE), desc="mutating", unit_scale=PAIRS_AT_ONCE, delay=2):
        some = changes[low : low + PAIRS_AT_ONCE]
        pairs = [
            variant_windows(contig, start + row, contig[start + row : start + row + 1], BASES[column].encode(), flank)
            for row, column in some
        ]
        rows, columns = np.array(some).T
        matrix[rows, columns] = getattr(scorer(pairs), score)
    return matrix


def figure_of(matrix: np.ndarray, sequence: bytes, first: int, title: str) -> Figure:
    """Logo of the bases, heights minus the mean score of their replacements, above the matrix itself."""
    figure = Figure(figsize=(max(6, min(40, 0.12 * len(matrix) + 2)), 3.6), layout="constrained")
    logo, heat = figure.subplots(2, sharex=True, height_ratios=[3, 2])
    draw_logo(logo, of_sequence(sequence, -np.nan_to_num(matrix).sum(1) / 3), first)
    logo.set_ylabel("-mean")
    logo.set_title(title, fontsize=9)
    limit = np.nanmax(np.abs(matrix), initial=1e-12)
    image = heat.imshow(
        matrix.T, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest",
        extent=(first - 0.5, first + len(matrix) - 0.5, 3.5, -0.5),
    )  # fmt: skip
    heat.set_yticks(range(4), list(BASES))
    heat.ticklabel_format(axis="x", style="plain", useOffset=False)
    heat.set_xlabel("position")
    figure.colorbar(image, ax=heat, fraction=0.03, pad=0.01)
    return figure


def parse_region(text: str) -> tuple[str, int, int]:
    """(contig, start, end) from "chr20:1,000-1,120", 1-based inclusive, as half-open from 0; raises JobError."""
    match = re.fullmatch(r"(.+):([\d,]+)-([\d,]+)", text)
    if not match:
        raise JobError(f"region {text!r} is not understood; write contig:first-last, such as chr20:1000-1120")
    start, end = (int(number.replace(",", "") or 0) for number in match.groups()[1:])
    if not 1 <= start <= end:
        raise JobError(f"region {text!r} is empty; positions count from 1 and both ends are included")
    return match[1], start - 1, end


def score_region(options: argparse.Namespace) -> np.ndarray:
    """The command with its options; writes both files."""
    output = Path(options.output)
    table = output.with_suffix(".tsv")
    if output.suffix != ".png":
        raise JobError(f"--output {output} must end in .png; the table is written beside it")
    check_files(output, [table], [options.genome], options.overwrite)
    check_writable(output.parent, "--output")
    name, start, end = parse_region(options.region)
    genome = Genome(options.genome, aliases(name))
    contig = genome.fetch(genome_contig(genome, name) or name)
    if end > len(contig):
        raise JobError(f"region {options.region} ends beyond the contig, which has {len(contig):,} bp")
    device = "cpu" if options.cpu or not torch.cuda.is_available() else "cuda"
    model = load_masked_lm(options.model).to(device)
    encoder = SequenceEncoder(options.model, model.config)
    scorer = VariantScorer(model, encoder, batch_tokens=options.batch_tokens, scores=(options.score,))
    matrix = mutagenesis(scorer, contig, start, end, options.flank, options.score)
    sequence = contig[start:end]
    refuse_not_finite([
        f"{name}:{position}"
        for position, base, row in zip(range(start + 1, end + 1), sequence.decode(), matrix, strict=True)
        if base in BASES and not np.isfinite(row).all()
    ])  # fmt: skip
    lines = ["\t".join(("position", "base", *BASES))]
    for position, base, row in zip(range(start + 1, end + 1), sequence.decode(), matrix, strict=True):
        lines.append("\t".join((str(position), base, *("." if np.isnan(value) else f"{value:.6g}" for value in row))))
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(table, "\n".join(lines) + "\n")
    save(figure_of(matrix, sequence, start + 1, f"{options.region}, {options.score}"), output)
    return matrix


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m inference.mutagenesis",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("region", help="contig:first-last, such as chr20:1000-1120")
    parser.add_argument("--genome", required=True, help="FASTA file, plain, gzip or bgzip")
    parser.add_argument("--model", required=True, help="StrandBERT folder or Hub name, with its language-model head")
    parser.add_argument("--output", required=True, help="region.png; region.tsv is written beside it")
    parser.add_argument("--score", default="llr", choices=SCORES, help="default: %(default)s")
    parser.add_argument("--flank", type=int, default=FLANK, help="bp on either side of a base (default: %(default)s)")
    parser.add_argument("--batch-tokens", type=int, help="tokens per pass (default: 4096 on a CPU, 65536 on a GPU)")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    options = parser.parse_args(arguments)
    if options.flank < 1:
        parser.error(f"--flank is {options.flank}; at least 1 bp is needed")
    try:
        matrix = score_region(options)
    except (*USER_ERRORS, VariantError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(matrix):,} positions -> {options.output} and {Path(options.output).with_suffix('.tsv')}")


if __name__ == "__main__":
    main()
