"""Labelled tables: what is read, which classes they become, and the message for everything that can be wrong."""

import gzip

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from inference.reading import SequenceInputError
from training.classification_data import (
    MULTI_LABEL,
    REGRESSION,
    Columns,
    LabelledDataError,
    pair_columns,
    read_labelled,
    shared_rows,
    split_off_validation,
)

GOOD = "sequence,label\nACGTACGT,0\nTTGCAACC,1\nacguNRYA,1\n"


def write(folder, text: str | bytes, name="train.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(folder, text, name="train.csv", columns=None, problem_type=None, **others):
    files = {"train": [write(folder, text, name)]}
    files |= {split: [write(folder, content, f"{split}.csv")] for split, content in others.items()}
    return read_labelled(files, columns or Columns(), problem_type)


def error(folder, text, **options) -> str:
    with pytest.raises(SequenceInputError) as caught:
        read(folder, text, **options)
    return str(caught.value)


# -- what is read --------------------------------------------------------------------------------------------------


def test_rows_come_back_in_the_letters_acgtn_with_their_labels_and_places(tmp_path):
    examples, labels = read(tmp_path, GOOD)
    train = examples["train"]
    assert train.sequences == [b"ACGTACGT", b"TTGCAACC", b"ACGTNNNA"]
    assert train.labels.tolist() == [0, 1, 1] and train.labels.dtype == np.int64
    assert train.where[2] == f"{tmp_path / 'train.csv'}, line 4"
    assert labels.names == ("0", "1")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("byte-order-mark.csv", b"\xef\xbb\xbf" + GOOD.encode()),
        ("windows.csv", GOOD.replace("\n", "\r\n").encode()),
        ("tabs.tsv", GOOD.replace(",", "\t").encode()),
        ("packed.csv.gz", gzip.compress(GOOD.encode(), mtime=0)),
        ("quoted.csv", GOOD.replace("ACGTACGT", '" ACGTACGT\n"').encode()),
        ("blank-lines.csv", (GOOD + "\n\n").encode()),
        ("other-columns.csv", b"id,label,sequence\na,0,ACGTACGT\nb,1,TTGCAACC\nc,1,acguNRYA\n"),
    ],
)
def test_the_same_rows_in_another_dress_read_the_same(tmp_path, name, content):
    examples, labels = read(tmp_path, content, name=name)
    assert examples["train"].sequences == [b"ACGTACGT", b"TTGCAACC", b"ACGTNNNA"]
    assert examples["train"].labels.tolist() == [0, 1, 1]


def test_parquet_reads_as_csv_does(tmp_path):
    table = pyarrow.table({"sequence": ["ACGT", "TTTT"], "label": pyarrow.array([0, 1], pyarrow.int8())})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    examples, _ = read_labelled({"train": [tmp_path / "train.parquet"]}, Columns())
    assert examples["train"].sequences == [b"ACGT", b"TTTT"] and examples["train"].labels.tolist() == [0, 1]
    assert examples["train"].where[1].endswith("row 2")


def test_several_files_are_read_one_after_the_other(tmp_path):
    paths = [write(tmp_path, GOOD, "a.csv"), write(tmp_path, GOOD, "b.csv")]
    examples, _ = read_labelled({"train": paths}, Columns())
    assert len(examples["train"]) == 6 and examples["train"].where[5].startswith(str(paths[1]))


def test_label_text_becomes_classes_in_sorted_order(tmp_path):
    text = "sequence,label\nACGT,promoter\nAAAA,enhancer\nCCCC,none of them\n"
    examples, labels = read(tmp_path, text, test="sequence,label\nGGGG,promoter\n")
    assert labels.names == ("enhancer", "none of them", "promoter")
    assert examples["train"].labels.tolist() == [2, 0, 1] and examples["test"].labels.tolist() == [2]


def test_numbers_that_do_not_count_from_0_become_classes_in_the_order_of_numbers(tmp_path):
    examples, labels = read(tmp_path, "sequence,label\nACGT,10\nAAAA,2\nCCCC,2.0\n")
    assert labels.names == ("2", "10") and examples["train"].labels.tolist() == [1, 0, 0]


def test_several_label_columns_are_multi_label(tmp_path):
    columns = Columns(labels=("exon", "repeat"))
    examples, labels = read(tmp_path, "sequence,exon,repeat\nACGT,1,0\nAAAA,1,1\n", columns=columns)
    assert labels.problem_type == MULTI_LABEL and labels.names == ("exon", "repeat")
    assert examples["train"].labels.tolist() == [[1, 0], [1, 1]] and examples["train"].labels.dtype == np.float32


def test_regression_reads_numbers(tmp_path):
    examples, labels = read(tmp_path, "sequence,label\nACGT,-1.5\nAAAA,2e3\n", problem_type=REGRESSION)
    assert labels.names == ("label",) and examples["train"].labels.tolist() == [[-1.5], [2000]]


def test_pairs_keep_their_order(tmp_path):
    path = write(tmp_path, "enhancer,promoter,label\nACGT,TTTT,0\nAAAA,CCCC,1\n")
    columns = pair_columns(path, ("label",))
    examples, _ = read_labelled({"train": [path]}, columns)
    assert examples["train"].row(0) == [b"ACGT", b"TTTT"] and examples["train"].lengths().tolist() == [8, 8]


@pytest.mark.parametrize("names", [("1_1", "1_2", "11"), ("01", "1", "2")])
def test_names_that_look_like_numbers_stay_names(tmp_path, names):
    path = write(tmp_path, "sequence,label\n" + "".join(f"ACGT,{name}\n" for name in names))
    examples, labels = read_labelled({"train": [path]}, Columns())
    assert labels.names == tuple(sorted(names)) and sorted(examples["train"].labels) == [0, 1, 2]


# -- what is wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("seq,label\nACGT,0\n", "line 1", "no column 'sequence'; the columns are 'seq', 'label'"),
        ("sequence,class\nACGT,0\n", "line 1", "no column 'label'"),
        ("label,sequence,label\n0,ACGT,0\n", "line 1", "two columns 'label'"),
        ("ACGTACGTAA,0\nACGTACGTAC,1\n", "line 1", "seems to hold data"),
        ("sequence,label\nACGT,0\n,1\n", "line 3, column 'sequence'", "no sequence ('')"),
        ("sequence,label\nACGT,0\n   ,1\n", "line 3", "no sequence"),
        ("sequence,label\nACGT,0\nNaN,1\n", "line 3, column 'sequence'", "no sequence ('NaN')"),
        ("sequence,label\nACGT,0\nAC-T,1\n", "line 3", "character '-' at position 3 is not a nucleotide"),
        ("sequence,label\nACGT,0\nACG CGT,1\n", "line 3, column 'sequence'", "white space within the sequence"),
        ('sequence,label\nACGT,0\n"ACG\nCGT",1\n', "line 4, column 'sequence'", "white space within the sequence"),
        ("sequence,label\nACGT,0\nACTT,\n", "line 3", "no label in column 'label' ('')"),
        ("sequence,label\nACGT,0\nACTT,nan\n", "line 3", "no label in column 'label' ('nan')"),
        ("sequence,label\nACGT,0\nACTT,0.37\n", "line 3", "'0.37' in column 'label' is a decimal number"),
        ("sequence,label\nACGT,1e5\nACTT,2\n", "line 2", "'1e5' in column 'label' is a decimal number"),
        ("sequence,label\nACGT,0\nACTT\n", "line 3", "1 fields, but the header has 2"),
        ("sequence,label\nACGT,0\nACTT,1,2\n", "line 3", "3 fields"),
        ("sequence;label\nACGT;0\n", "line 1", "separated by semicolons, not by commas"),
        (
            "sequence\tlabel\nACGT\t0\n",
            "line 1",
            "separated by tabs, not by commas as the suffix says; write it as .tsv",
        ),
        ('sequence,label\n"ACGT,0\n', "line", "unexpected end of data"),
        ("sequence,label\n", "train.csv", "holds no row"),
        ("", "line 1", "the columns are (none)"),
        ("sequence,label\nACGT,1\nACTT,1\n", "", "every training row has the label '1'"),
        ("sequence,label\n" + "".join(f"ACGT,id{i}\n" for i in range(50)), "", "50 different labels in 50 rows"),
    ],
)
def test_a_bad_table_is_named_with_its_row(tmp_path, text, place, message):
    found = error(tmp_path, text)
    assert place in found and message in found


def test_a_label_beyond_those_of_the_training_rows_is_out_of_range(tmp_path):
    found = error(tmp_path, GOOD, test="sequence,label\nACGT,0\nACGA,2\n")
    assert (
        f"{tmp_path / 'test.csv'}, line 3: label '2' in column 'label' is out of range: the 2 classes are 0, 1" in found
    )


def test_labels_of_a_task_with_known_classes_must_lie_in_their_range(tmp_path):
    with pytest.raises(LabelledDataError, match="line 4: label '3' .* the 3 classes are 0, 1, 2"):
        path = write(tmp_path, "sequence,label\nAC,0\nAC,1\nAC,3\n")
        read_labelled({"train": [path]}, Columns(), class_names=("donor", "acceptor", "neither"))


def test_multi_label_columns_hold_0_and_1_only(tmp_path):
    columns = Columns(labels=("a", "b"))
    assert "line 2: '2' in column 'b' is neither 0 nor 1" in error(tmp_path, "sequence,a,b\nAC,0,2\n", columns=columns)


def test_none_is_a_class_among_words_and_a_missing_value_among_numbers(tmp_path):
    assert read(tmp_path, "sequence,label\nAC,none\nAG,promoter\n")[1].names == ("none", "promoter")
    found = error(tmp_path, "sequence,label\nAC,0\nAG,1\nAT,None\n")
    assert "line 4: no label in column 'label' ('None' among numbers)" in found


def test_damaged_and_zipped_parquet_files_are_named(tmp_path):
    table = pyarrow.table({"sequence": ["ACGT" * 50] * 500, "label": list(range(500))})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    content = (tmp_path / "x.parquet").read_bytes()
    assert "x.parquet.gz: Parquet is compressed inside" in error(tmp_path, gzip.compress(content), name="x.parquet.gz")
    damaged = content[:20] + bytes(40) + content[60:]
    assert "x.parquet: not a readable Parquet file" in error(tmp_path, damaged, name="x.parquet")


@pytest.mark.parametrize("value", ["abc", "inf", "1,5"])
def test_regression_wants_numbers(tmp_path, value):
    found = error(tmp_path, f'sequence,label\nAC,1\nAC,"{value}"\n', problem_type=REGRESSION)
    assert f"line 3: {value!r} in column 'label' is no number" in found


def test_regression_of_one_number_has_nothing_to_learn(tmp_path):
    assert "every training row has the label '3.5'" in error(
        tmp_path, "sequence,label\nAC,3.5\nAG,3.5\n", problem_type=REGRESSION
    )


def test_files_that_are_missing_folders_or_of_another_kind(tmp_path):
    for path, message in (
        (tmp_path / "absent.csv", "no such file"),
        (tmp_path, "is a folder"),
        (write(tmp_path, GOOD, "train.xlsx"), "unknown kind of table '.xlsx'"),
        (write(tmp_path, b"\x1f\x8b garbage", "train.csv.gz"), "damaged gzip"),
        (write(tmp_path, b"no parquet", "train.parquet"), "not a readable Parquet file"),
    ):
        with pytest.raises(LabelledDataError if "gzip" not in message else Exception, match=message):
            read_labelled({"train": [path]}, Columns())


# -- rows in two splits --------------------------------------------------------------------------------------------


def test_rows_shared_by_splits_are_counted_and_reverse_complements_apart(tmp_path):
    test = "sequence,label\nACGTACGT,0\nGGTTGCAA,1\nGGGGGGGG,0\nTTGCAACC,1\n"
    examples, _ = read(tmp_path, GOOD, test=test)
    (entry,) = shared_rows(examples)
    assert entry["splits"] == ["train", "test"]
    assert entry["identical"] == 2 and entry["reverse_complement"] == 1
    assert entry["example"][0].endswith("train.csv, line 2") and entry["example"][1].endswith("test.csv, line 2")


def test_a_pair_is_shared_only_as_a_whole(tmp_path):
    text = "a,b,label\nACGG,TTTT,0\nAAAA,CCCC,1\n"
    columns = Columns("a", "b")
    apart, _ = read(tmp_path, text, columns=columns, test="a,b,label\nACGG,CCCC,0\nTTTT,ACGG,1\n")
    assert shared_rows(apart) == []
    turned, _ = read(tmp_path, text, columns=columns, test="a,b,label\nCCGT,AAAA,0\n")
    assert shared_rows(turned)[0]["reverse_complement"] == 1


@settings(max_examples=25)
@given(st.lists(st.text("ACGT", min_size=2, max_size=4), min_size=40, max_size=80))
def test_a_held_out_part_shares_no_sequence_with_the_rest(tmp_path_factory, sequences):
    assume(len(set(sequences)) > 20)
    folder = tmp_path_factory.mktemp("rows")
    text = "sequence,label\n" + "".join(f"{s},{i % 2}\n" for i, s in enumerate(sequences))
    examples, _ = read(folder, text)
    train, validation = split_off_validation(examples["train"], 25)
    assert len(train) + len(validation) == len(sequences) and len(validation) <= len(sequences) / 4
    assert shared_rows({"train": train, "validation": validation}) == []
    assert sorted(train.where + validation.where) == sorted(examples["train"].where)


def test_every_class_is_held_out_in_its_share(tmp_path):
    sequences = ["".join("ACGT"[row >> shift & 3] for shift in (8, 6, 4, 2, 0)) + "AAAC" for row in range(200)]
    labels = ["rare" if row % 20 == 0 else "single" if row == 1 else "common" for row in range(200)]
    rows = zip(sequences, labels, strict=True)
    examples, found = read(tmp_path, "sequence,label\n" + "".join(f"{s},{label}\n" for s, label in rows))
    train, validation = split_off_validation(examples["train"], 5)
    assert found.names == ("common", "rare", "single")
    assert np.bincount(validation.labels, minlength=3).tolist() == [9, 1, 0]  # the one row of a class is trained on
    assert np.bincount(train.labels).tolist() == [180, 9, 1]


def test_a_table_with_one_sequence_is_no_table_of_pairs(tmp_path):
    with pytest.raises(LabelledDataError, match="line 1: a task of pairs has two columns of sequences"):
        pair_columns(write(tmp_path, GOOD), ("label",))


def test_too_few_rows_to_hold_any_out(tmp_path):
    examples, _ = read(tmp_path, "sequence,label\nACGT,0\nACGT,1\n")
    with pytest.raises(LabelledDataError, match="2 rows are too few"):
        split_off_validation(examples["train"], 10)
