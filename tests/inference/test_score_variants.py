"""Scores of variants: what they are defined to be, on either strand, in any batch, in every file."""

import random

import numpy as np
import pyarrow.parquet
import pysam
import pytest
import torch

from inference import jobs, score_variants
from inference.loading import SequenceEncoder, load_masked_lm
from inference.masked_scores import pseudo_log_likelihood
from inference.reading import reverse_complement
from inference.score_variants import VariantScorer, main
from modeling import StrandBertForMaskedLM

from ..conftest import ROOT
from .conftest import save_model, with_infinite_bias
from .planted import MOTIF, train_masked_lm, with_motif


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("lm"), StrandBertForMaskedLM)


@pytest.fixture(scope="module")
def model(folder):
    return load_masked_lm(str(folder))


@pytest.fixture(scope="module")
def encoder(folder, model):
    return SequenceEncoder(str(folder), model.config)


@pytest.fixture(scope="module")
def pairs():
    """Substitutions, an insertion, a deletion, one beside N, in random windows."""
    source = random.Random(0)
    windows = ["".join(source.choices("ACGT", k=60)).encode() for _ in range(6)]
    changes = [b"A", b"C", b"GATTACA", b"", b"T", b"G"]
    pairs = [(w, w[:30] + change + w[31:]) for w, change in zip(windows, changes, strict=True)]
    pairs[4] = tuple(w[:27] + b"NN" + w[29:] for w in pairs[4])
    return [pair for pair in pairs if pair[0] != pair[1]]


def naive_chain(model, tokenizer, window, span):
    """log P of the tokens of a span given the others, by one padded call of the model after the other."""
    ids = torch.tensor(tokenizer(window.decode())["input_ids"])
    total = 0.0
    for place in range(*span):
        row = ids.clone()
        row[place : span[1]] = tokenizer.mask_token_id
        with torch.no_grad():
            logits = model(input_ids=row[None]).logits[0, place]
        total += float(logits.log_softmax(-1)[ids[place]])
    return total


def test_llr_is_the_chain_of_masked_tokens_that_differ(model, encoder, pairs):
    expected = []
    for pair in pairs:
        strands = []
        for ref, alt in (pair, tuple(map(reverse_complement, pair))):
            spans = VariantScorer.differing_tokens(*encoder([ref, alt]))
            values = [naive_chain(model, encoder.tokenizer, w, s) for w, s in zip((ref, alt), spans, strict=True)]
            strands.append(values[1] - values[0])
        expected.append(np.mean(strands))
    np.testing.assert_allclose(VariantScorer(model, encoder)(pairs).llr, expected, atol=1e-5)


def test_pll_of_all_tokens_is_the_difference_of_pseudo_log_likelihoods(model, encoder, pairs):
    def both(which):
        windows = [pair[which] for pair in pairs]
        other = [reverse_complement(w) for w in windows]
        return (pseudo_log_likelihood(model, encoder, windows) + pseudo_log_likelihood(model, encoder, other)) / 2

    scores = VariantScorer(model, encoder, pll_tokens=None)(pairs)
    np.testing.assert_allclose(scores.pll, both(1) - both(0), atol=1e-4)


def test_tokens_that_differ_lie_between_equal_ends(encoder, pairs):
    for ref, alt in pairs:
        a, b = encoder([ref, alt])
        (start, end_a), (same, end_b) = VariantScorer.differing_tokens(a, b)
        assert start == same >= 1
        assert torch.equal(a[:start], b[:start]) and torch.equal(a[end_a:], b[end_b:])
        assert not torch.equal(a[start:end_a], b[start:end_b])


@pytest.mark.parametrize("name", ["llr", "pll", "distance"])
def test_reverse_complemented_windows_have_the_same_scores(model, encoder, pairs, name):
    other = [tuple(map(reverse_complement, pair)) for pair in pairs]
    scores = [getattr(VariantScorer(model, encoder)(p), name) for p in (pairs, other)]
    np.testing.assert_allclose(*scores, atol=1e-5)


@pytest.mark.parametrize("name", ["llr", "pll", "distance"])
def test_exchanging_ref_and_alt_turns_the_sign_but_not_the_distance(model, encoder, pairs, name):
    back = VariantScorer(model, encoder)([pair[::-1] for pair in pairs])
    there = VariantScorer(model, encoder)(pairs)
    sign = 1 if name == "distance" else -1
    np.testing.assert_allclose(getattr(back, name), sign * getattr(there, name), atol=1e-5)


@pytest.mark.parametrize("name", ["llr", "pll", "distance"])
def test_batching_changes_no_score(model, encoder, pairs, name):
    together = getattr(VariantScorer(model, encoder)(pairs), name)
    alone = [getattr(VariantScorer(model, encoder, batch_tokens=1)([pair]), name)[0] for pair in pairs]
    np.testing.assert_allclose(alone, together, atol=1e-5)


HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=chr1>\n##INFO=<ID=AC,Number=A,Type=Integer,Description=\"a\">\n"
    '##INFO=<ID=DB,Number=0,Type=Flag,Description="d">\n'
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="g">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1\tS2\n"
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A genome of 3,000 bp with contig 1, and a VCF that calls it chr1."""
    path = tmp_path_factory.mktemp("files")
    source = random.Random(5)
    genome = "".join(source.choices("ACGT", k=3000))
    (path / "genome.fa").write_text(f">1\n{genome}\n")
    lines = []
    for number, position in enumerate(range(40, 2900, 60)):
        ref = genome[position - 1]
        alt = {"A": "C", "C": "GT", "G": "A,T", "T": "TGA"}[ref]
        if number % 9 == 4:
            ref = {"A": "C", "C": "A", "G": "A", "T": "G"}[ref]
            alt = "T" if ref != "T" else "G"
        lines.append(f"chr1\t{position}\trs{number}\t{ref}\t{alt}\t50\tPASS\tAC=1;DB\tGT\t0|1\t./.\n")
    lines.append(f"chr1\t2950\t.\t{genome[2949]}\t<DEL>,.\t.\t.\t.\tGT\t0|0\t1|0\n")
    lines.append(f"chr1\t2960\t.\t{genome[2959]}\t.\t.\t.\tAC=3\tGT\t0|0\t1|0\n")
    (path / "calls.vcf").write_text(HEADER + "".join(lines))
    return path


def run(files, folder, output, *more, vcf=None):
    main([str(vcf or files / "calls.vcf"), "--genome", str(files / "genome.fa"), "--model", str(folder),
          "--output", str(output), "--cpu", "--flank", "40", "--pll-tokens", "1", *more])  # fmt: skip


@pytest.fixture(scope="module")
def scored(files, folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("scored") / "scored.vcf.gz"
    run(files, folder, output)
    return output


def test_vcf_keeps_everything_and_gains_scores(files, scored):
    with pysam.BGZFile(str(scored)) as file:
        lines = [line.decode() for line in file]
    before = (files / "calls.vcf").read_text().splitlines()
    ours = [line for line in lines if "SB_" in line.split("\t")[0] or line.startswith("##strandbert=")]
    assert len(ours) == 5
    kept = [line for line in lines if line not in ours]
    assert len(kept) == len(before)
    for old, new in zip(before, kept, strict=True):
        a, b = old.split("\t"), new.split("\t")
        assert a[:7] == b[:7] and a[8:] == b[8:]
        if not old.startswith("#"):
            info = [entry for entry in b[7].split(";") if not entry.startswith("SB_")]
            assert (";".join(info) or ".") == a[7]


def test_vcf_and_parquet_agree_and_pysam_reads_both(scored):
    rows = iter(pyarrow.parquet.read_table(scored.with_name("scored.parquet")).to_pylist())
    with pysam.VariantFile(str(scored)) as file:
        for record in file:
            for index in range(len(record.alts or ())):
                row = next(rows)
                assert (row["position"], row["ref"], row["alt"]) == (record.pos, record.ref, record.alts[index])
                for key, name in (("SB_LLR", "llr"), ("SB_PLL", "pll"), ("SB_DIST", "distance")):
                    value = record.info[key][index] if key in record.info else None
                    assert value == (None if row[name] is None else pytest.approx(row[name], rel=1e-4))
                reason = record.info["SB_SKIP"][index] if "SB_SKIP" in record.info else None
                assert reason == (None if row["status"] == "scored" else row["status"].replace(" ", "_"))
    assert next(rows, None) is None


def test_ref_mismatches_are_refused_and_counted(files, folder, tmp_path, capsys):
    run(files, folder, tmp_path / "a.vcf")
    assert "5 REF mismatch, 1 symbolic allele, 1 missing ALT" in capsys.readouterr().out
    rows = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert sum(row["status"] == "REF mismatch" for row in rows) == 5
    assert all((row["llr"] is None) == (row["status"] != "scored") for row in rows)


def test_scoring_a_scored_file_again_replaces_the_scores(files, folder, scored, tmp_path):
    run(files, folder, tmp_path / "twice.vcf.gz", vcf=scored)
    assert pysam.BGZFile(str(tmp_path / "twice.vcf.gz")).read() == pysam.BGZFile(str(scored)).read()


def test_info_of_other_programs_is_kept(files, folder, tmp_path):
    text = (files / "calls.vcf").read_text().replace("AC=1;DB", "SB_RATIO=0.5;AC=1;SB_LLR=9")
    (tmp_path / "other.vcf").write_text(text.replace("#CHROM", "##INFO=<ID=SB_RATIO,Number=1>\n#CHROM"))
    run(files, folder, tmp_path / "scored.vcf", vcf=tmp_path / "other.vcf")
    lines = (tmp_path / "scored.vcf").read_text().splitlines()
    assert "##INFO=<ID=SB_RATIO,Number=1>" in lines
    infos = [line.split("\t")[7] for line in lines if line.startswith("chr1\t")]
    assert infos[0].startswith("SB_RATIO=0.5;AC=1;SB_") and "SB_LLR=9" not in infos[0].split(";")


def test_interrupted_job_ends_with_the_same_bytes(files, folder, scored, tmp_path, monkeypatch):
    monkeypatch.setattr(score_variants, "BLOCK_BASES", 1000)
    run(files, folder, tmp_path / "whole.vcf.gz")
    tables, calls = VariantScorer.tables, []

    def breaking(self, first, alleles):
        calls.append(first)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return tables(self, first, alleles)

    monkeypatch.setattr(VariantScorer, "tables", breaking)
    with pytest.raises(SystemExit, match="the same command goes on"):
        run(files, folder, tmp_path / "scored.vcf.gz")
    assert not (tmp_path / "scored.vcf.gz").exists()
    done = len(list((tmp_path / "scored.parquet.parts").glob("part-*")))
    run(files, folder, tmp_path / "scored.vcf.gz")
    assert done == 3 and calls[4] == calls[3]
    for name in ("vcf.gz", "parquet"):
        assert (tmp_path / f"scored.{name}").read_bytes() == (tmp_path / f"whole.{name}").read_bytes()
    assert (tmp_path / "scored.vcf.gz").read_bytes() == scored.read_bytes()


def test_failure_while_the_vcf_is_written_computes_nothing_again(files, folder, scored, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_write_output", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(SystemExit, match="the same command goes on"):
            run(files, folder, tmp_path / "scored.vcf.gz")
    monkeypatch.setattr(VariantScorer, "__call__", lambda *_: pytest.fail("computed again"))
    run(files, folder, tmp_path / "scored.vcf.gz")
    assert (tmp_path / "scored.vcf.gz").read_bytes() == scored.read_bytes()


@pytest.mark.parametrize(
    "more, words",
    [
        (["--output", "x.txt"], "must end in .vcf.gz or .vcf"),
        (["--genome", "missing.fa"], "missing.fa"),
        (["--model", "missing"], "missing"),
        (["--flank", "0"], "at least 1 bp"),
        (["--pll-tokens", "-1"], "number of tokens, or all"),
        (["--batch-tokens", "0"], "at least 1"),
    ],
)
def test_wrong_options_are_said_in_one_line(files, folder, tmp_path, capsys, more, words):
    with pytest.raises(SystemExit) as error:
        run(files, folder, tmp_path / "scored.vcf", *more)
    text = error.value.code if isinstance(error.value.code, str) else capsys.readouterr().err.splitlines()[-1]
    assert words in text


def test_existing_output_and_the_input_itself_are_not_overwritten(files, folder, tmp_path):
    copy = tmp_path / "calls.vcf"
    copy.write_bytes((files / "calls.vcf").read_bytes())
    with pytest.raises(SystemExit, match="is the input itself"):
        run(files, folder, copy, "--overwrite", vcf=copy)
    (tmp_path / "there.vcf").write_text("mine")
    with pytest.raises(SystemExit, match="already exists"):
        run(files, folder, tmp_path / "there.vcf")
    assert (tmp_path / "there.vcf").read_text() == "mine"


def test_scores_that_are_not_finite_are_not_written(files, folder, tmp_path):
    with pytest.raises(SystemExit, match="record 'chr1:40:.*: the outputs are not finite"):
        run(files, with_infinite_bias(folder, tmp_path / "model"), tmp_path / "scored.vcf")
    assert not (tmp_path / "scored.vcf").exists() and not (tmp_path / "scored.parquet").exists()


def test_model_without_language_model_head_is_refused(files, classifier_folder, tmp_path):
    with pytest.raises(SystemExit, match="no language-model head"):
        run(files, classifier_folder, tmp_path / "scored.vcf")


def test_variants_that_break_a_learnt_motif_rank_first(tmp_path):
    train_masked_lm(tmp_path, ROOT / "tokenization" / "vocabulary", steps=300)
    model = load_masked_lm(str(tmp_path))
    window = with_motif(random.Random(99), 160, place=70)
    inside = range(70, 70 + len(MOTIF))
    places = [p for p in range(40, 120) for base in b"ACGT" if base != window[p]]
    pairs = [(window, window[:p] + bytes([base]) + window[p + 1 :])
             for p in range(40, 120) for base in b"ACGT" if base != window[p]]  # fmt: skip
    pairs += [(window, window[:p] + window[p + 1 :]) for p in range(40, 120)]
    scores = VariantScorer(model, SequenceEncoder(str(tmp_path), model.config))(pairs)
    breaks = np.isin(places, inside)
    deletes = np.isin(np.arange(40, 120), inside)
    for values in (scores.llr, scores.pll, -scores.distance):
        for value, motif in ((values[: len(places)], breaks), (values[len(places) :], deletes)):
            worse = (value[motif][:, None] < value[~motif]).mean()  # area under the ROC curve
            assert worse > 0.95
            strongest = np.argsort(value)[: motif.sum() // 2]
            assert motif[strongest].all()


def test_real_variants_score_alike_on_both_strands(shared_data, model, encoder):
    from inference.reading import Genome
    from inference.variant_windows import read_alleles

    data = shared_data("data/vcf/g1k_chr20_1mb_grch37")
    genome = Genome(data / "ref.z.fa.gz")
    alleles = list(read_alleles(data / "z.300samples.phased.derived.vcf.gz", genome, 100))
    indels = [a for a in alleles if len(a.ref) != len(a.alt)][::40]
    pairs = [(a.sequence, a.pair) for a in alleles[::500] + indels]
    other = [tuple(map(reverse_complement, pair)) for pair in pairs]
    scorer = VariantScorer(model, encoder)
    for name in ("llr", "pll", "distance"):
        np.testing.assert_allclose(getattr(scorer(pairs), name), getattr(scorer(other), name), atol=1e-5)
