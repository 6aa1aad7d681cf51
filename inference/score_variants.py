"""
How a masked language model rates the variants of a VCF: likelihood and embedding of each ALT allele against REF.

    python -m inference.score_variants calls.vcf.gz --genome genome.fa.gz --model my_model --output scored.vcf.gz

writes the same VCF with three numbers for each ALT allele in INFO, and scored.parquet with a row for each allele.
Windows of REF and ALT have the same flanks, are tokenised anew, and are read on both strands, the scores averaged.

  SB_LLR   log-probability of the ALT tokens given the flanks, minus that of the REF tokens (nats). "Tokens" are those
           in which the two windows differ; they are masked and filled in from left to right. Negative: ALT is less
           likely.
  SB_PLL   difference of pseudo-log-likelihoods (nats): each token is masked alone; the tokens that differ, and
           --pll-tokens on either side, which also notice what the change does to their surroundings.
  SB_DIST  cosine distance, 0 to 2, between the mean vectors of the windows; the mean is over bases. Not signed.
  SB_SKIP  why an allele has no score: REF mismatch, contig not in genome, symbolic allele, ...

SNVs compare directly. Insertions and deletions change the number of bases that are predicted, so SB_LLR and SB_PLL
favour deletions: rank them among indels of the same length change only. docs/variants.md has formulas, cost and limits.

The reference allele is checked: alleles that do not fit the genome are not scored but counted, and if more than half do
not, nothing is written. An interrupted job goes on when the same command is given again.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow
import pysam
import torch
from torch import Tensor
from tqdm.auto import tqdm

from corpus.vcf_files import VariantError
from inference.jobs import JobError, check_files, processes, run, said_in_one_line
from inference.loading import SequenceEncoder, fingerprint, load_masked_lm
from inference.masked_scores import Query, mask, token_log_probabilities
from inference.reading import Genome, reverse_complement
from inference.variant_windows import SCORED, Allele, contig_names, read_alleles, read_variant_lines
from modeling.embedding import embed_token_ids
from modeling.nucleotides import token_lengths

BLOCK_BASES = 1 << 16  # bp of windows in a block: about 80 variants, some seconds of a small model on a CPU
FLANK = 200  # bp
PLL_TOKENS = 2
SCORES = ("llr", "pll", "distance")
INFO_KEYS = ("SB_LLR", "SB_PLL", "SB_DIST", "SB_SKIP")
SCHEMA = pyarrow.schema([
    ("name", pyarrow.string()), ("record", pyarrow.int64()), ("contig", pyarrow.string()),
    ("position", pyarrow.int64()), ("id", pyarrow.string()), ("ref", pyarrow.string()), ("alt", pyarrow.string()),
    ("status", pyarrow.string()), *((score, pyarrow.float32()) for score in SCORES),
    ("ref_tokens", pyarrow.int32()), ("alt_tokens", pyarrow.int32()),
])  # fmt: skip
INFO_LINES = (
    '##INFO=<ID=SB_LLR,Number=A,Type=Float,Description="Log-probability of the ALT tokens given both flanks, minus '
    'that of the REF tokens, both strands averaged (nats)">',
    '##INFO=<ID=SB_PLL,Number=A,Type=Float,Description="Pseudo-log-likelihood of ALT minus that of REF, differing and '
    'neighbouring tokens, both strands averaged (nats)">',
    '##INFO=<ID=SB_DIST,Number=A,Type=Float,Description="Cosine distance of the mean embeddings of the ALT and REF '
    'windows, both strands averaged">',
    '##INFO=<ID=SB_SKIP,Number=A,Type=String,Description="Why the allele was not scored">',
)


@dataclass
class Scores:
    """One number per pair of windows; float64 (pairs,), tokens that differ (on the forward strand) int64 (pairs,)."""

    llr: np.ndarray
    pll: np.ndarray
    distance: np.ndarray
    ref_tokens: np.ndarray
    alt_tokens: np.ndarray


@dataclass
class _Rows:
    """Masked rows to be computed once each, however many sums want them."""

    queries: list[tuple[Query, int]] = field(default_factory=list)
    index: dict[tuple, int] = field(default_factory=dict)

    def add(self, input_ids: Tensor, position: int, target: int) -> int:
        key = input_ids.numpy().tobytes(), position, target
        if key not in self.index:
            self.index[key] = len(self.queries)
            self.queries.append((Query(input_ids, position), target))
        return self.index[key]


class VariantScorer:
    """
    Scores of pairs of windows (letters ACGTN as bytes), reference and alternative.

    Args:
        model: StrandBertForMaskedLM in evaluation mode.
        pll_tokens: tokens on either side of those that differ that count in the pseudo-log-likelihood; None: the whole
            window.
        batch_tokens: tokens per pass. It changes no score.
        scores: those to compute; others are NaN.
    """

    def __init__(
        self, model, encoder: SequenceEncoder, pll_tokens: int | None = PLL_TOKENS, batch_tokens=None, scores=SCORES
    ):
        self.model, self.encoder, self.pll_tokens, self.batch_tokens = model, encoder, pll_tokens, batch_tokens
        self.scores = scores
        self.lengths = token_lengths(encoder.tokenizer)
        self.special = torch.tensor(encoder.tokenizer.all_special_ids)

    def __call__(self, pairs: list[tuple[bytes, bytes]]) -> Scores:
        if not pairs:
            return Scores(*(np.empty(0) for _ in range(5)))
        # four windows each: reference and alternative, forward and reverse
        windows = [w for pair in pairs for w in (*pair, *map(reverse_complement, pair))]
        ids = self.encoder(windows)
        tokens = [self.differing_tokens(a, b) for a, b in zip(ids[::2], ids[1::2], strict=True)]
        rows = _Rows()
        spans = [span for both in tokens for span in both]
        ways = [way if name in self.scores else None for name, way in (("llr", self._chain), ("pll", self._single))]
        sums = [[way(rows, x, *span) if way else [] for way in ways] for x, span in zip(ids, spans, strict=True)]
        values = token_log_probabilities(self.model, rows.queries, self.batch_tokens)
        totals = np.array([[values[wanted].sum() for wanted in pair] for pair in sums]).reshape(-1, 2, 2)
        llr, pll = (totals[:, 1] - totals[:, 0]).reshape(-1, 2, 2).mean(axis=1).T
        distance = self._distances(ids) if "distance" in self.scores else None
        found = [values if name in self.scores else np.full(len(pairs), np.nan)
                 for name, values in zip(SCORES, (llr, pll, distance), strict=True)]  # fmt: skip
        counts = np.array([[end - start for start, end in spans] for spans in tokens])[::2]
        return Scores(*found, *counts.T)

    @staticmethod
    def differing_tokens(ref: Tensor, alt: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Half-open intervals of the tokens between the longest common beginning and, of the rest, the longest end."""
        shorter = min(len(ref), len(alt))
        same = ref[:shorter] == alt[:shorter]
        start = shorter if bool(same.all()) else int(same.int().argmin())
        rest = shorter - start
        same = ref.flip(0)[:rest] == alt.flip(0)[:rest]
        common_end = rest if bool(same.all()) else int(same.int().argmin())
        return (start, len(ref) - common_end), (start, len(alt) - common_end)

    def _chain(self, rows: _Rows, ids: Tensor, start: int, end: int) -> list[int]:
        """Rows of log P(ids[start:end] | the rest), each token given those to its left."""
        hidden = self.model.config.mask_token_id
        return [rows.add(mask(ids, slice(p, end), hidden), p, int(ids[p])) for p in range(start, end)]

    def _single(self, rows: _Rows, ids: Tensor, start: int, end: int) -> list[int]:
        """Rows of the pseudo-log-likelihood of ids[start:end] and their neighbours."""
        around = len(ids) if self.pll_tokens is None else self.pll_tokens
        places = range(max(1, start - around), min(len(ids) - 1, end + around))
        hidden, unknown = self.model.config.mask_token_id, self.model.config.unk_token_id
        return [rows.add(mask(ids, p, hidden), p, int(ids[p])) for p in places if int(ids[p]) != unknown]

    def _distances(self, ids: list[Tensor]) -> np.ndarray:
        """Cosine distance of the windows' mean vectors over bases, mean of both strands: float64 (pairs,)."""
        rows = embed_token_ids(self.model, ids, pooling="none", batch_tokens=self.batch_tokens)
        means = torch.stack([self._mean_over_bases(*row) for row in zip(ids, rows, strict=True)])
        unit = torch.nn.functional.normalize(means, dim=1).view(-1, 2, 2, means.shape[1])
        # 1 - cos of unit vectors, without the cancellation
        return ((unit[:, :, 0] - unit[:, :, 1]).square().sum(-1) / 2).mean(1).numpy()

    def _mean_over_bases(self, ids: Tensor, rows: Tensor) -> Tensor:
        weights = self.lengths[ids[1:-1]].double() * ~torch.isin(ids[1:-1], self.special)
        return weights @ rows.double() / weights.sum().clamp(min=1)

    def tables(self, first: int, alleles: list[Allele]) -> Iterator[pyarrow.Table]:
        """One table with a row per allele; for `inference.jobs.run`."""
        scored = [i for i, allele in enumerate(alleles) if allele.status == SCORED]
        scores = self([(alleles[i].sequence, alleles[i].pair) for i in scored])
        columns = {name: [getattr(allele, name) for allele in alleles]
                   for name in ("name", "contig", "position", "id", "ref", "alt", "status")}  # fmt: skip
        columns["record"] = list(range(first, first + len(alleles)))
        for name in (*SCORES, "ref_tokens", "alt_tokens"):
            values = dict(zip(scored, getattr(scores, name).tolist(), strict=True))
            columns[name] = [values.get(i) for i in range(len(alleles))]
        yield pyarrow.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)


def write_vcf(source: Path, output: Path, tables: Iterator[pyarrow.Table], provenance: str) -> Counter:
    """
    Write `source` again with the scores of `tables` in INFO; everything else stays as it is. Returns counts by status.

    A name that ends in .gz is written with bgzip. The file appears when it is complete.
    """
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    counts: Counter = Counter()
    try:
        with pysam.BGZFile(str(temporary), "w") if output.suffix == ".gz" else open(temporary, "wb") as file:
            for line in tqdm(_scored_lines(source, tables, provenance, counts), desc=f"writing {output.name}", delay=5):
                file.write(line.encode() + b"\n")
        os.replace(temporary, output)
    finally:
        temporary.unlink(missing_ok=True)
    return counts


def _scored_lines(source: Path, tables: Iterator[pyarrow.Table], provenance: str, counts: Counter) -> Iterator[str]:
    rows = (row for table in tables for row in table.to_pylist())
    earlier = ("##strandbert=", *(f"##INFO=<ID={key}," for key in INFO_KEYS))
    for _, line in read_variant_lines(source):
        if line.startswith(earlier) or not line:
            continue
        if line.startswith("#"):
            if line.startswith("#CHROM"):
                yield from (*INFO_LINES, f"##strandbert={provenance}")
            yield line
            continue
        fields = line.split("\t", 8)
        alleles = [next(rows) for _ in range(0 if fields[4] == "." else fields[4].count(",") + 1)]
        counts.update(row["status"] for row in alleles)
        fields[7] = _info(fields[7], alleles)
        yield "\t".join(fields)


def _info(info: str, alleles: list[dict]) -> str:
    """INFO with the scores of a record's alleles; those of an earlier run are dropped."""
    kept = [entry for entry in info.split(";") if entry not in ("", ".") and entry.split("=")[0] not in INFO_KEYS]
    for key, name in zip(INFO_KEYS, SCORES, strict=False):
        values = ["." if row[name] is None else f"{row[name]:.5g}" for row in alleles]
        if any(value != "." for value in values):
            kept.append(f"{key}={','.join(values)}")
    reasons = ["." if row["status"] == SCORED else row["status"].replace(" ", "_") for row in alleles]
    if any(reason != "." for reason in reasons):
        kept.append(f"SB_SKIP={','.join(reasons)}")
    return ";".join(kept) or "."


def parquet_beside(output: Path) -> Path:
    """scored.vcf.gz -> scored.parquet; raises JobError for other names."""
    for suffix in (".vcf.gz", ".vcf"):
        if output.name.endswith(suffix):
            return output.with_name(output.name.removesuffix(suffix) + ".parquet")
    raise JobError(f"--output {output} must end in .vcf.gz or .vcf")


def score_file(options: argparse.Namespace) -> Counter:
    """The command with its options; returns how many alleles were scored, and skipped for which reason."""
    source, output = Path(options.vcf), Path(options.output)
    parquet = parquet_beside(output)
    check_files(parquet, [output], (source, options.genome), options.overwrite)
    state = processes(options.cpu or not torch.cuda.is_available())
    genome = Genome(options.genome, contig_names(source))
    model = load_masked_lm(options.model, getattr(torch, options.dtype)).to(state.device)
    pll_tokens = None if options.pll_tokens == "all" else int(options.pll_tokens)
    encoder = SequenceEncoder(options.model, model.config)
    scorer = VariantScorer(model, encoder, pll_tokens, options.batch_tokens)
    digest = fingerprint(model, encoder.tokenizer)
    settings = {"model": digest, "dtype": options.dtype, "device": state.device.type, "flank": options.flank,
                "pll_tokens": pll_tokens}  # fmt: skip
    provenance = f"<Command=score_variants,Model={digest},Flank={options.flank},PllTokens={options.pll_tokens}>"
    counts: Counter = Counter()

    def also_vcf(tables):
        counts.update(write_vcf(source, output, tables, provenance))

    run(parquet, settings, lambda: read_alleles(source, genome, options.flank), scorer.tables, state,
        options.overwrite, BLOCK_BASES, also_vcf, [output])  # fmt: skip
    return counts


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m inference.score_variants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("vcf", help="VCF (plain, gzip, bgzip) or BCF; any order, no index needed")
    parser.add_argument(
        "--genome", required=True, help="FASTA of the reference, plain, gzip or bgzip; chr1 and 1 match"
    )
    parser.add_argument("--model", required=True, help="StrandBERT folder or Hub name, with its language-model head")
    parser.add_argument(
        "--output", required=True, help="scored.vcf or scored.vcf.gz; scored.parquet is written beside it"
    )
    parser.add_argument(
        "--flank", type=int, default=FLANK, help="bp on either side of the change (default: %(default)s)"
    )
    parser.add_argument("--pll-tokens", default=str(PLL_TOKENS), metavar="N",
                        help="neighbouring tokens on a side in SB_PLL, or 'all' (default: %(default)s)")  # fmt: skip
    parser.add_argument("--batch-tokens", type=int, help="tokens per pass (default: 4096 on a CPU, 65536 on a GPU)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"],
                        help="arithmetic of the model (default: %(default)s)")  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    options = parser.parse_args(arguments)
    if options.flank < 1:
        parser.error(f"--flank is {options.flank}; at least 1 bp is needed")
    if options.pll_tokens != "all" and not options.pll_tokens.isdecimal():
        parser.error(f"--pll-tokens is {options.pll_tokens!r}; give a number of tokens, or all")
    if options.batch_tokens is not None and options.batch_tokens < 1:
        parser.error(f"--batch-tokens is {options.batch_tokens}; give at least 1, or leave it out")
    with said_in_one_line(VariantError):
        counts = score_file(options)
    if counts:
        skipped = ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common() if reason != SCORED)
        print(f"{counts[SCORED]:,} alleles scored" + (f"; not scored: {skipped}" if skipped else ""))


if __name__ == "__main__":
    main()
