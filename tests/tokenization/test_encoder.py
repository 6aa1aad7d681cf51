"""The fast encoder gives the ids of `tokenizers`, on every input; where it cannot, it leaves the work to them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tests.tokenization.oracle import LETTERS, dna_like, our_merges, repeated
from tokenization import encoder as encoder_module
from tokenization.encoder import Encoder
from tokenization.tokenizer_files import bpe_tokenizer

VOCABULARY = 1500


@pytest.fixture(scope="module")
def merges():
    sequence = dna_like(seed=21, length=200_000)
    return our_merges([sequence[start : start + 1000] for start in range(0, len(sequence), 1000)], VOCABULARY - 5)


@pytest.fixture(scope="module")
def ours(merges):
    return Encoder(bpe_tokenizer(merges))


def like_dnabert2(merges):
    """The form of DNABERT-2's file: no normalizer, split at white space."""
    tokenizer = bpe_tokenizer(merges)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


@pytest.fixture(scope="module")
def original_form(merges):
    return Encoder(like_dnabert2(merges))


def expected(encoder, text):
    return encoder.tokenizer.encode(text, add_special_tokens=False).ids


tandem_repeats = st.builds(repeated, st.text(LETTERS, min_size=1, max_size=9), st.integers(1, 400))
sequences = st.lists(
    st.one_of(
        st.text(LETTERS, max_size=200),
        tandem_repeats,
        st.text("ACGTacgtuUNnRYKM \n", max_size=40),
        st.text(st.characters(max_codepoint=127), max_size=15),
    ),
    max_size=6,
).map("".join)


@settings(max_examples=600, deadline=None)
@given(sequence=sequences)
def test_ids_equal_those_of_tokenizers(ours, original_form, sequence):
    for encoder in (ours, original_form):
        assert encoder.fast
        assert encoder.encode(sequence).tolist() == expected(encoder, sequence)


@settings(max_examples=150, deadline=None)
@given(sequence=sequences)
def test_ids_equal_those_of_tokenizers_without_the_table_of_neighbours(merges, untabulated, sequence):
    assert untabulated.encode(sequence).tolist() == expected(untabulated, sequence)


@pytest.fixture(scope="module")
def untabulated(merges):
    """As for a vocabulary above the limit of the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "TABLE_LIMIT", 0)
        return Encoder(bpe_tokenizer(merges))


@pytest.mark.parametrize("length", [1, 7, 8, 9, 4095, 4096, 4097, 100_000])
def test_long_sequences_across_blocks(ours, length):
    sequence = dna_like(seed=22, length=length)
    assert ours.encode(sequence).tolist() == expected(ours, sequence)


@pytest.mark.parametrize("unit", ["A", "CA", "GATTACA", "ACGTTGCA"])
def test_long_tandem_repeats(ours, unit):
    sequence = repeated(unit, 20_001)
    assert ours.encode(sequence).tolist() == expected(ours, sequence)


def test_every_ascii_character_between_bases(ours, original_form):
    for encoder in (ours, original_form):
        for code in range(128):
            text = f"ACGTA{chr(code)}CGTACG{chr(code)}{chr(code)}TT"
            assert encoder.encode(text).tolist() == expected(encoder, text), code


@pytest.mark.parametrize(
    "text", ["ACGÄT", "ACG\u2028TAC", "AC[MASK]GT", "[CLS]ACGT[SEP]", "AC\0GT", "AC[GT", "ACG\u00a0TT"]
)
def test_special_tokens_and_other_scripts(ours, original_form, text):
    for encoder in (ours, original_form):
        assert encoder.encode(text).tolist() == expected(encoder, text)


@pytest.mark.parametrize("form", [bpe_tokenizer, like_dnabert2])
@pytest.mark.parametrize("added", ["N", "<human>", "[other]"])
@pytest.mark.parametrize("special", [False, True])
def test_added_tokens_are_found(merges, form, added, special):
    tokenizer = form(merges)
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    encoder = Encoder(tokenizer)
    assert encoder.fast
    for text in (f"ACGT{added}ACG", f"ACGT{added.swapcase()}ACG", f"AC{added[:2]} {added[2:]}GT", "ACGTRACG"):
        assert encoder.encode(text).tolist() == expected(encoder, text)
    assert tokenizer.token_to_id(added) in encoder.encode(f"ACGT{added}ACG")


def test_bytes_are_read_like_text(ours):
    assert ours.encode(b"ACGTNacgu").tolist() == ours.encode("ACGTNacgu").tolist()


def test_bytes_that_are_no_text_are_refused(ours):
    with pytest.raises(ValueError, match="byte 255 at position 3"):
        ours.encode(b"AC\xffGT")


def test_ids_are_uint16(ours):
    assert ours.encode("ACGT").dtype == np.uint16


def test_truncation_and_padding_left_in_a_tokenizer_do_not_matter(merges):
    tokenizer = bpe_tokenizer(merges)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    sequence = dna_like(seed=24, length=600)
    for text in (sequence, sequence + "Ä"):
        assert Encoder(tokenizer).encode(text).tolist() == Encoder(bpe_tokenizer(merges)).encode(text).tolist()


def test_an_empty_sequence_has_no_ids(ours):
    assert ours.encode("").tolist() == []


def test_a_batch_lays_sequences_end_to_end(ours):
    batch = ["ACGTACGTAA", "", "NNA", "acgu ACGT"]
    ids, offsets = ours.encode_batch(batch)
    parts = [ids[start:end].tolist() for start, end in zip(offsets, offsets[1:], strict=False)]
    assert parts == [expected(ours, sequence) for sequence in batch]


def test_a_batch_with_a_sequence_for_tokenizers_is_the_same(ours):
    batch = ["ACGTACGTAA", "AÄC", "NNA"]
    ids, offsets = ours.encode_batch(batch)
    parts = [ids[start:end].tolist() for start, end in zip(offsets, offsets[1:], strict=False)]
    assert parts == [expected(ours, sequence) for sequence in batch]


def test_unknown_characters_are_counted(merges):
    encoder = Encoder(bpe_tokenizer(merges))
    encoder.encode("ACGT" * 20)
    assert encoder.warning() is None
    encoder.encode("ACGTNNACRG" * 2)
    assert encoder.warning().startswith("6 of 100 characters (6.00%) are not A, C, G or T")


def changed(merges, change):
    content = json.loads(bpe_tokenizer(merges).to_str())
    change(content)
    return Tokenizer.from_str(json.dumps(content))


def move_last_merge_to_the_front(content):
    content["model"]["merges"].insert(0, content["model"]["merges"].pop())


def lowercase(content):
    content["normalizer"] = {"type": "Lowercase"}


def fuse(content):
    content["model"]["fuse_unk"] = True


@pytest.mark.parametrize(
    ("change", "reason"),
    [(move_last_merge_to_the_front, "no merge before made"), (lowercase, "normalizer"), (fuse, "not one .UNK. each")],
)
def test_what_a_vocabulary_does_not_allow_is_left_to_tokenizers(merges, change, reason):
    encoder = Encoder(changed(merges[:40], change))
    assert not encoder.fast and reason in encoder.reason.replace("[", ".").replace("]", ".")
    for text in ("ACGTNNNACGTTTTTTTAC", dna_like(seed=23, length=500)):
        assert encoder.encode(text).tolist() == expected(encoder, text)


def test_a_token_made_in_two_ways_is_left_to_tokenizers():
    vocabulary = {token: index for index, token in enumerate(["[UNK]", *"ACGT", "AA", "AAA"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("A", "A"), ("AA", "A"), ("A", "AA")], unk_token="[UNK]"))
    encoder = Encoder(tokenizer)
    assert not encoder.fast
    assert encoder.encode("AAAAAA").tolist() == expected(encoder, "AAAAAA")


def test_another_model_is_left_to_tokenizers():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "ACGT": 1}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([])
    assert Encoder(tokenizer).encode("ACGT").tolist() == [1]


def test_a_folder_and_its_file_load_alike(tmp_path, merges):
    bpe_tokenizer(merges).save(str(tmp_path / "tokenizer.json"))
    assert np.array_equal(
        Encoder.load(tmp_path).encode("ACGTT"), Encoder.load(tmp_path / "tokenizer.json").encode("ACGTT")
    )


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        Encoder.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json: not a tokenizer.json"):
        Encoder.load(tmp_path)


@pytest.mark.shared
@pytest.mark.parametrize(
    "genome",
    ["bacteria/ecoli_K12_MG1655.fna.gz", "vertebrates_softmasked/galGal4.cgp12way.fa.gz", "viruses/SARS.fa.gz"],
)
def test_real_genomes_with_the_tokenizer_of_dnabert2(shared_data, genome):
    from corpus.fasta import read_fasta

    encoder = Encoder.load(shared_data("data/tokenizer/DNABERT-2-117M/tokenizer.json"))
    sequence = next(read_fasta(shared_data(f"data/genomes/{genome}"))).sequence[:400_000].decode()
    assert encoder.fast
    for text in (sequence.upper(), sequence[:100_000]):  # as it is: soft-masked letters, each one [UNK]
        assert encoder.encode(text).tolist() == expected(encoder, text)
