"""
Variants scored per second: `inference.score_variants` against two plain loops that compute the same scores, in one run.

    python -m benchmarks.bench_variants calls.vcf.gz --genome genome.fa.gz --model my_model
    python -m benchmarks.bench_variants calls.vcf.gz --genome genome.fa.gz --model my_model --settings --variants 24

Rivals: one call of the model for each masked row, and one padded call for all masked rows of a window (all logits, the
windows' vectors from output_hidden_states). The largest difference of our scores from those of the first rival on four
variants is printed. Rows go to results/variants.csv. With --settings no rivals, but what flank, neighbouring tokens and
dtype cost and change: variants per CPU second, and rank correlation with the scores of the default (SB_PLL for other
numbers of tokens: with those of the whole window). Rows go to results/variant_settings.csv.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForMaskedLM, AutoTokenizer

from benchmarks.harness import append_rows, interleave, machine
from inference.loading import SequenceEncoder, load_masked_lm
from inference.reading import Genome, reverse_complement
from inference.score_variants import FLANK, PLL_TOKENS, VariantScorer
from inference.variant_windows import SCORED, contig_names, read_alleles


@torch.no_grad()
def plain_loop(model, tokenizer, pairs, rows_at_once):
    """(llr, pll, distance) of each pair, as one would write it: float64 (pairs, 3)."""
    special = [tokenizer.unk_token_id, *tokenizer.all_special_ids]
    results = []
    for pair in pairs:
        strands = []
        for windows in (pair, tuple(map(reverse_complement, pair))):
            ids = [torch.tensor(tokenizer(window.decode())["input_ids"]) for window in windows]
            spans = VariantScorer.differing_tokens(*ids)
            sums = []
            for row, (start, end) in zip(ids, spans, strict=True):
                first, last = max(1, start - PLL_TOKENS), min(len(row) - 1, end + PLL_TOKENS)
                asked = [(place, end) for place in range(start, end)]
                asked += [(place, place + 1) for place in range(first, last) if row[place] != tokenizer.unk_token_id]
                values = []
                for low in range(0, len(asked), rows_at_once):
                    some = asked[low : low + rows_at_once]
                    batch = row.repeat(len(some), 1)
                    for line, (place, stop) in zip(batch, some, strict=True):
                        line[place:stop] = tokenizer.mask_token_id
                    logits = model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits.log_softmax(-1)
                    values += [float(logits[i, place, row[place]]) for i, (place, _) in enumerate(some)]
                hidden = model(input_ids=row[None], output_hidden_states=True).hidden_states[-1][0].double()
                weights = torch.tensor([0 if i in special else len(t) for i, t in zip(
                    row.tolist(), tokenizer.convert_ids_to_tokens(row), strict=True)]).double()  # fmt: skip
                vector = weights @ hidden
                sums.append((sum(values[: end - start]), sum(values[end - start :]), vector / vector.norm()))
            (llr, pll, ref), (other_llr, other_pll, alt) = sums
            strands.append((other_llr - llr, other_pll - pll, float((ref - alt).square().sum() / 2)))
        results.append(np.mean(strands, axis=0))
    return np.array(results)


SETTINGS = (
    {"pll_tokens": None},
    {"pll_tokens": 0},
    {"pll_tokens": PLL_TOKENS},
    {"pll_tokens": 8},
    {"flank": FLANK // 2},
    {"flank": 2 * FLANK},
    {"dtype": torch.bfloat16},
)


def compare_settings(options, genome) -> list[dict]:
    """A row for each setting, all others being the defaults."""
    default = {"pll_tokens": PLL_TOKENS, "flank": FLANK, "dtype": torch.float32}
    found, rows = {}, []
    for setting in ({}, *SETTINGS):
        values = default | setting
        model = load_masked_lm(options.model).to(values["dtype"])
        scorer = VariantScorer(model, SequenceEncoder(options.model, model.config), values["pll_tokens"])
        pairs = chosen_pairs(options, genome, values["flank"])
        scorer(pairs[:2])
        start = time.process_time()
        scores = scorer(pairs)
        cpu = time.process_time() - start
        found[tuple(values.items())] = scores
        reference = found[tuple((default | ({"pll_tokens": None} if "pll_tokens" in setting else {})).items())]
        rows.append({
            **machine(), "model": options.model, "variants": len(pairs),
            **values | {"dtype": str(values["dtype"]).removeprefix("torch.")},
            "variants_per_cpu_s": round(len(pairs) / cpu, 3),
            **{f"spearman_{name}": round(float(spearmanr(getattr(scores, name), getattr(reference, name)).statistic), 4)
               for name in ("llr", "pll", "distance")},
            "largest_change_of_llr": round(float(np.abs(scores.llr - reference.llr).max()), 4),
        })  # fmt: skip
        print({key: value for key, value in rows[-1].items() if key not in machine()}, flush=True)
    return rows


def chosen_pairs(options, genome, flank: int):
    """(sequence, windows) of alleles spread evenly over the VCF, those that the shortest flank of SETTINGS can hold."""
    keys = [key(a) for a in read_alleles(options.vcf, genome, FLANK // 2) if a.status == SCORED]
    keys = keys[:: max(1, len(keys) // options.variants)][: options.variants]
    alleles = {key(a): a for a in read_alleles(options.vcf, genome, flank)}
    return [(alleles[k].sequence, alleles[k].pair) for k in keys]


def key(allele):
    return allele.contig, allele.position, allele.ref, allele.alt


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vcf")
    parser.add_argument("--genome", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--variants", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", action="store_true", help="what the settings of the scores cost and change")
    options = parser.parse_args()
    torch.set_num_threads(1)
    genome = Genome(options.genome, contig_names(options.vcf))
    if options.settings:
        return print(append_rows("variant_settings", compare_settings(options, genome)))
    pairs = chosen_pairs(options, genome, FLANK)
    model = load_masked_lm(options.model)
    scorer = VariantScorer(model, SequenceEncoder(options.model, model.config))
    rival, tokenizer = AutoModelForMaskedLM.from_pretrained(options.model), AutoTokenizer.from_pretrained(options.model)
    rival.eval()
    ours = scorer(pairs)
    expected = np.stack([ours.llr, ours.pll, ours.distance], axis=1)
    difference = np.abs(plain_loop(rival, tokenizer, pairs[:4], 1) - expected[:4]).max()
    print(f"largest difference of a score from the plain loop: {difference:.2e}")
    functions = {
        "score_variants": lambda: scorer(pairs),
        "one row a call": lambda: plain_loop(rival, tokenizer, pairs, 1),
        "one window a call": lambda: plain_loop(rival, tokenizer, pairs, 1000),
    }
    seconds = interleave(functions, options.rounds)
    rows = []
    for name, times in seconds.items():
        cpu = statistics.median(cpu for _, cpu in times)
        ratio = statistics.median(a[1] / b[1] for a, b in zip(times, seconds["score_variants"], strict=True))
        rows.append({
            **machine(), "name": name, "hidden_size": model.config.hidden_size,
            "layers": model.config.num_hidden_layers, "flank": FLANK, "variants": len(pairs),
            "variants_per_cpu_s": round(len(pairs) / cpu, 3), "times_score_variants": round(ratio, 2),
        })  # fmt: skip
        print(f"{name}: {len(pairs) / cpu:.2f} variants per CPU second, takes {ratio:.2f} times as long")
    print(append_rows("variants", rows))


if __name__ == "__main__":
    main()
