"""Mutagenesis of a region: the matrix is that of the single variants, and both files are written."""

import random

import numpy as np
import pytest

from inference.loading import SequenceEncoder, load_masked_lm
from inference.mutagenesis import main, mutagenesis, parse_region
from inference.score_variants import VariantScorer
from modeling import StrandBertForMaskedLM

from .conftest import save_model, with_infinite_bias

CONTIG = "".join(random.Random(1).choices("ACGT", k=90)).encode()
CONTIG = CONTIG[:43] + b"N" + CONTIG[44:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("lm"), StrandBertForMaskedLM)


@pytest.fixture(scope="module")
def scorer(folder):
    model = load_masked_lm(str(folder))
    return VariantScorer(model, SequenceEncoder(str(folder), model.config))


@pytest.fixture(scope="module")
def matrix(scorer):
    return mutagenesis(scorer, CONTIG, 40, 46, flank=20)


@pytest.mark.parametrize("position, base", [(40, "A"), (41, "C"), (42, "G"), (45, "T")])
def test_each_entry_is_the_score_of_one_variant(scorer, matrix, position, base):
    window = CONTIG[position - 20 : position + 21]
    other = window[:20] + base.encode() + window[21:]
    expected = 0 if other == window else scorer([(window, other)]).llr[0]
    assert matrix[position - 40, "ACGT".index(base)] == pytest.approx(expected, abs=1e-5)


def test_bases_of_the_sequence_score_zero_and_n_has_no_row(matrix):
    for position, row in zip(range(40, 46), matrix, strict=True):
        if CONTIG[position] == ord("N"):
            assert np.isnan(row).all()
        else:
            assert row["ACGT".index(chr(CONTIG[position]))] == 0 and np.isfinite(row).all()


def test_command_writes_table_and_figure(folder, tmp_path, matrix, monkeypatch):
    (tmp_path / "g.fa").write_bytes(b">chr1\n" + CONTIG + b"\n")
    options = ["--genome", str(tmp_path / "g.fa"), "--model", str(folder), "--flank", "20", "--cpu"]
    main(["1:41-46", *options, "--output", str(tmp_path / "region.png")])
    lines = [line.split("\t") for line in (tmp_path / "region.tsv").read_text().splitlines()]
    assert lines[0] == ["position", "base", "A", "C", "G", "T"] and lines[4] == ["44", "N", ".", ".", ".", "."]
    values = np.array([[np.nan if value == "." else float(value) for value in line[2:]] for line in lines[1:]])
    np.testing.assert_allclose(values, matrix, atol=1e-4)
    assert (tmp_path / "region.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="already exists"):
        main(["1:41-46", *options, "--output", str(tmp_path / "region.png")])
    (tmp_path / "other.tsv").mkdir()
    monkeypatch.setattr(VariantScorer, "__init__", lambda *_, **__: pytest.fail("computed in vain"))
    with pytest.raises(SystemExit, match="other.tsv is a folder; choose another name"):
        main(["1:41-46", *options, "--output", str(tmp_path / "other.png"), "--overwrite"])


@pytest.mark.parametrize(
    "score, unused",
    [("llr", ["_single", "_distances"]), ("pll", ["_chain", "_distances"]), ("distance", ["_chain", "_single"])],
)
def test_only_the_score_that_is_asked_for_is_computed(scorer, folder, tmp_path, monkeypatch, score, unused):
    expected = mutagenesis(scorer, CONTIG, 40, 43, flank=20, score=score)
    for name in unused:
        monkeypatch.setattr(VariantScorer, name, lambda *_: pytest.fail("computed in vain"))
    (tmp_path / "g.fa").write_bytes(b">1\n" + CONTIG + b"\n")
    main(["1:41-43", "--genome", str(tmp_path / "g.fa"), "--model", str(folder), "--score", score, "--flank", "20",
          "--output", str(tmp_path / "region.png"), "--cpu"])  # fmt: skip
    lines = (tmp_path / "region.tsv").read_text().splitlines()[1:]
    values = np.array([[float(value) for value in line.split("\t")[2:]] for line in lines])
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "region, words",
    [
        ("1", "not understood"),
        ("1:5-2", "is empty"),
        ("1:0-2", "is empty"),
        ("1:80-91", "ends beyond the contig, which has 90 bp"),
        ("7:1-2", "no contig '7'"),
    ],
)
def test_wrong_regions_are_said_in_one_line(folder, tmp_path, region, words):
    (tmp_path / "g.fa").write_bytes(b">chr1\n" + CONTIG + b"\n")
    with pytest.raises(SystemExit, match=words):
        main([region, "--genome", str(tmp_path / "g.fa"), "--model", str(folder), "--output",
              str(tmp_path / "region.png"), "--cpu"])  # fmt: skip


def test_scores_that_are_not_finite_are_not_written(folder, tmp_path):
    (tmp_path / "g.fa").write_bytes(b">1\n" + CONTIG + b"\n")
    with pytest.raises(SystemExit, match=r"1:43 \(and 1 more\): the outputs are not finite"):
        main(["1:43-45", "--genome", str(tmp_path / "g.fa"), "--output", str(tmp_path / "region.png"), "--cpu",
              "--model", str(with_infinite_bias(folder, tmp_path / "model"))])  # fmt: skip
    assert not list(tmp_path.glob("region.*"))


def test_regions_are_read_as_samtools_does():
    assert parse_region("HLA:A*01:1,000-1,010") == ("HLA:A*01", 999, 1010)
