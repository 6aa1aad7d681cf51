"""
Labelled sequences from CSV, TSV and Parquet, checked row by row: what fine-tuning and the k-mer baseline read.

Every error names the file, the row, the column and the value.
"""

import csv
import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference.reading import SequenceInputError, check_plain_parquet, read_lines, reverse_complement
from tokenization.alphabet import normalize
from training.sources import COMPRESSED_SUFFIXES, DELIMITERS, SPLIT_SEED, csv_reader

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
MISSING = ("", "nan", "na", "n/a")  # what missing values of a table look like, in lower case
MISSING_AMONG_NUMBERS = ("none", "null")  # among words these are names of classes
OTHER_DELIMITERS = {"\t": "tabs", ";": "semicolons", "|": "vertical bars", ",": "commas"}
MOST_CLASSES = 1000


class LabelledDataError(SequenceInputError):
    """Labelled data that cannot be used; the message names file, row, column and value."""


@dataclass(frozen=True)
class Labels:
    """
    What is predicted.

    Attributes:
        problem_type: one of PROBLEM_TYPES.
        names: of the classes in the order of their ids; of the label columns for multi-label and regression.
    """

    problem_type: str
    names: tuple[str, ...]


@dataclass
class Examples:
    """
    The rows of one split.

    Attributes:
        sequences, pairs: letters ACGTN; `pairs` holds the second sequences, None where there are none.
        labels: int64 (rows,) class ids; float32 (rows, label columns) for multi-label and regression.
        where: file and row of each example.
    """

    sequences: list[bytes]
    pairs: list[bytes] | None
    labels: np.ndarray
    where: list[str]

    def __len__(self) -> int:
        return len(self.sequences)

    def row(self, index: int) -> list[bytes]:
        """The sequence of a row, or both of a pair."""
        return [self.sequences[index]] if self.pairs is None else [self.sequences[index], self.pairs[index]]

    def lengths(self) -> np.ndarray:
        """int64 (rows,): bp of each row, both sequences of a pair together."""
        lengths = np.array([len(sequence) for sequence in self.sequences], dtype=np.int64)
        return lengths if self.pairs is None else lengths + [len(sequence) for sequence in self.pairs]

    def digest(self) -> str:
        """First digits of the sha256 of sequences and labels."""
        digest = hashlib.sha256(self.labels.tobytes())
        for row in range(len(self)):
            digest.update(b"|".join(self.row(row)) + b"\n")
        return digest.hexdigest()[:16]

    def take(self, rows: Sequence[int]) -> "Examples":
        """The examples at these positions."""
        pairs = None if self.pairs is None else [self.pairs[row] for row in rows]
        return Examples(
            [self.sequences[row] for row in rows], pairs, self.labels[list(rows)], [self.where[row] for row in rows]
        )


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read; one label column, or several for multi-label and regression."""

    sequence: str = "sequence"
    pair: str | None = None
    labels: tuple[str, ...] = ("label",)

    def names(self) -> list[str]:
        """All of them: sequence, pair if any, labels."""
        return [self.sequence, *([] if self.pair is None else [self.pair]), *self.labels]


def pair_columns(path: str | Path, labels: tuple[str, ...]) -> Columns:
    """
    The first two columns of a table besides the labels, as the paired tasks of GUE+ have them in no fixed names.

    Raises:
        LabelledDataError: there are no two, or the first line is no CSV.
    """
    try:
        header = [title.strip() for title in next(csv_reader(read_lines(path)), [])]
    except csv.Error as error:
        raise LabelledDataError(f"{path}, line 1: {error}") from None
    titles = [title for title in header if title not in labels]
    if len(titles) < 2:
        raise LabelledDataError(
            f"{path}, line 1: a task of pairs has two columns of sequences; the columns are "
            f"{', '.join(map(repr, header)) or '(none)'}"
        )
    return Columns(titles[0], titles[1], labels)


def read_labelled(
    files: dict[str, Sequence[str | Path]],
    columns: Columns,
    problem_type: str | None = None,
    class_names: Sequence[str] | None = None,
) -> tuple[dict[str, Examples], Labels]:
    """
    Read the splits of one task.

    Args:
        files: files of each split; "train" is there and decides about the classes.
        problem_type: None: single-label with one label column, multi-label with several.
        class_names: names of classes 0, 1, ... when they are known; labels are then these numbers.

    Returns:
        Examples by split, and what the labels are. Class labels 0 .. n-1 stay as they are; other numbers and text
        become classes in sorted order.

    Raises:
        LabelledDataError: see the module.
    """
    rows = {split: list(_rows(paths, columns)) for split, paths in files.items()}
    for split, found in rows.items():
        if not found:
            raise LabelledDataError(f"{', '.join(map(str, files[split]))}: holds no row; the {split} split is empty")
    problem_type = problem_type or (SINGLE_LABEL if len(columns.labels) == 1 else MULTI_LABEL)
    if problem_type == SINGLE_LABEL:
        if len(columns.labels) > 1:
            raise LabelledDataError(
                f"--problem_type {SINGLE_LABEL} reads one label column, not {len(columns.labels)} "
                f"({', '.join(columns.labels)}); name one, or choose {MULTI_LABEL} or {REGRESSION}"
            )
        names = _classes(rows["train"], columns.labels[0], class_names)
        convert = _ClassIds(names, columns.labels[0], named_by_number=class_names is not None)
    else:
        names = columns.labels
        convert = _Numbers(columns.labels, only_0_and_1=problem_type == MULTI_LABEL)
    examples = {}
    for split, found in rows.items():
        sequences, pairs, labels, where = zip(*found, strict=True)
        values = [convert(value, place) for value, place in zip(labels, where, strict=True)]
        examples[split] = Examples(
            list(sequences),
            None if columns.pair is None else list(pairs),
            np.array(values, dtype=np.int64 if problem_type == SINGLE_LABEL else np.float32),
            list(where),
        )
    if problem_type == REGRESSION and not np.ptp(examples["train"].labels, axis=0).any():
        raise LabelledDataError(
            f"every training row has the label {rows['train'][0][2][0]!r}; there is nothing to learn"
        )
    return examples, Labels(problem_type, tuple(names))


def split_off_validation(examples: Examples, percentage: float) -> tuple[Examples, Examples]:
    """
    Hold out about `percentage` percent of the rows of each class, and one row at least where there are others;
    duplicates and reverse complements stay on one side.

    The same rows whatever the seed of a run, so that seeds can be compared.

    Raises:
        LabelledDataError: too few rows to hold any out.
    """
    classes = examples.labels if examples.labels.ndim == 1 else np.zeros(len(examples), dtype=np.int64)
    groups: dict[tuple, list[int]] = {}
    for row, key in enumerate(_strand_free_keys(examples)):
        groups.setdefault(key, []).append(row)
    members = list(groups.values())
    sizes = np.bincount(classes)
    several = np.bincount([classes[rows[0]] for rows in members], minlength=len(sizes)) > 1
    room = np.where(several, np.maximum(sizes * percentage / 100, 1), 0)  # rows of each class still to be held out
    held_out = []
    for index in np.random.default_rng(SPLIT_SEED).permutation(len(members)):
        of = classes[members[index][0]]
        if len(members[index]) <= room[of]:
            held_out += members[index]
            room[of] -= len(members[index])
    if not held_out:
        raise LabelledDataError(
            f"{len(examples)} rows are too few to hold out {percentage:g} percent of them; give --validation_file"
        )
    kept = np.setdiff1d(np.arange(len(examples)), held_out)
    return examples.take(kept.tolist()), examples.take(sorted(held_out))


def shared_rows(examples: dict[str, Examples]) -> list[dict]:
    """
    Sequences that stand in two splits, as they are or as reverse complements.

    Returns one entry for each two splits that share any: `splits`, `identical` and `reverse_complement` (rows of the
    later split, each counted once), `example` (where one of them stands, twice).
    """
    found = []
    names = list(examples)
    for index, first in enumerate(names):
        exact = {key: row for row, key in enumerate(_keys(examples[first]))}
        either = {key: row for row, key in enumerate(_strand_free_keys(examples[first]))}
        for second in names[index + 1 :]:
            places = examples[first].where, examples[second].where
            entry = {"splits": [first, second], "identical": 0, "reverse_complement": 0, "example": None}
            keys = zip(_keys(examples[second]), _strand_free_keys(examples[second]), strict=True)
            for row, (key, strand_free) in enumerate(keys):
                match = exact.get(key, either.get(strand_free))
                if match is not None:
                    entry["identical" if key in exact else "reverse_complement"] += 1
                    entry["example"] = entry["example"] or [places[0][match], places[1][row]]
            if entry["example"]:
                found.append(entry)
    return found


def _keys(examples: Examples) -> Iterator[tuple]:
    return zip(examples.sequences, examples.pairs or [b""] * len(examples), strict=True)


def _strand_free_keys(examples: Examples) -> Iterator[tuple]:
    for key in _keys(examples):
        yield min(key, tuple(reverse_complement(sequence) for sequence in key))


# -- rows ----------------------------------------------------------------------------------------------------------


def _rows(paths: Sequence[str | Path], columns: Columns) -> Iterator[tuple[bytes, bytes | None, list[str], str]]:
    """(sequence, second sequence or None, label values, where) of every row."""
    for path in map(Path, paths):
        for place, values in _table(path, columns.names()):
            where = f"{path}, {place}"
            sequence = _letters(values[0], columns.sequence, where)
            pair = None if columns.pair is None else _letters(values[1], columns.pair, where)
            labels = values[len(values) - len(columns.labels) :]
            for name, value in zip(columns.labels, labels, strict=True):
                if value.lower() in MISSING:
                    raise LabelledDataError(f"{where}: no label in column {name!r} ({value!r}); complete or remove it")
            yield sequence, pair, labels, where


def read_letters(value: str) -> bytes:
    """
    The letters ACGTN of a field.

    Raises:
        ValueError: a missing sequence, a letter that is no nucleotide, white space within.
    """
    if value.lower() in MISSING:
        raise ValueError(f"no sequence ({value!r}); complete or remove the row")
    letters = normalize(value)
    if len(letters) < len(value):
        raise ValueError("white space within the sequence; give the letters in one piece, not as k-mers")
    return letters


def _letters(value: str, column: str, where: str) -> bytes:
    try:
        return read_letters(value)
    except ValueError as error:
        raise LabelledDataError(f"{where}, column {column!r}: {error}") from None


def _table(path: Path, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """(place, stripped values of the named columns) of every row; the suffix tells the format."""
    if not path.is_file():
        raise LabelledDataError(f"{path}: {'is a folder, not a file' if path.is_dir() else 'no such file'}")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED_SUFFIXES]
    suffix = suffixes[-1] if suffixes else ""
    if suffix == ".parquet":
        check_plain_parquet(path)
        return _parquet(path, names)
    if suffix not in DELIMITERS:
        known = ", ".join(DELIMITERS)
        raise LabelledDataError(f"{path}: unknown kind of table {suffix!r}; known are .parquet, {known} (also .gz)")
    return _delimited(path, DELIMITERS[suffix], names)


def _delimited(path: Path, delimiter: str, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    reader = csv_reader(read_lines(path), delimiter)
    try:
        header = [title.strip() for title in next(reader, [])]
        if len(header) == 1:
            for other, word in OTHER_DELIMITERS.items():
                if other in header[0]:
                    wanted = ".tsv" if other == "\t" else ".csv or .tsv, with commas or tabs"
                    raise LabelledDataError(
                        f"{path}, line 1: the columns are separated by {word}, not by {OTHER_DELIMITERS[delimiter]} as "
                        f"the suffix says; write it as {wanted}"
                    )
        positions = _positions(path, header, names)
        for row in reader:
            where = f"line {reader.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise LabelledDataError(f"{path}, {where}: {len(row)} fields, but the header has {len(header)}")
            yield where, [row[position].strip() for position in positions]
    except csv.Error as error:
        raise LabelledDataError(f"{path}, line {reader.line_num}: {error}") from None


def _parquet(path: Path, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _positions(path, file.schema_arrow.names, names)
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=list(dict.fromkeys(names))):
                for row in batch.to_pylist():
                    number += 1
                    values = (row[name] for name in names)
                    yield f"row {number}", [_text(value) for value in values]
    except (pyarrow.ArrowException, OSError) as error:  # OSError: damaged pages
        raise LabelledDataError(f"{path}: not a readable Parquet file ({error})") from None


def _text(value) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return str(int(value) if isinstance(value, bool) else value).strip()


def _positions(path: Path, header: list[str], names: list[str]) -> list[int]:
    for name in names:
        if header.count(name) != 1:
            found = "two columns" if name in header else "no column"
            shown = ", ".join(map(repr, header)) or "(none)"
            bare = (
                " The first line seems to hold data; a line with the names of the columns is missing."
                if any(re.fullmatch("[ACGTNacgtn]{8,}", title) for title in header)
                else ""
            )
            raise LabelledDataError(
                f"{path}, line 1: {found} {name!r}; the columns are {shown}.{bare} Name the right ones with "
                "--sequence_column, --pair_column and --label_column"
            )
    return [header.index(name) for name in names]


# -- labels --------------------------------------------------------------------------------------------------------


def _as_integer(value: str) -> int | None:
    """7 for "7", "7.0" and "+7"; None for what is no whole number, and for names such as "07" and "1_1"."""
    return int(float(value)) if re.fullmatch(r"[+-]?(0|[1-9][0-9]*)(\.0*)?", value) else None


def _classes(rows: list, column: str, class_names: Sequence[str] | None) -> list[str]:
    """Names of the classes that the training rows hold, in the order of their ids."""
    if class_names is not None:
        return list(class_names)
    first_places: dict[str, str] = {}
    for _, _, (value,), where in rows:
        first_places.setdefault(value, where)
    numbers = {value: _as_integer(value) for value in first_places}
    advice = f"For numbers that are to be predicted, add --problem_type {REGRESSION}"
    if None in numbers.values():
        decimals = [v for v, number in numbers.items() if number is None and _is_number(v) and not v.isdecimal()]
        if decimals:
            raise LabelledDataError(
                f"{first_places[decimals[0]]}: label {decimals[0]!r} in column {column!r} is a decimal number, no "
                f"class. {advice}"
            )
        lost = [value for value in first_places if value.lower() in MISSING_AMONG_NUMBERS]
        if lost and any(number is not None for number in numbers.values()):
            raise LabelledDataError(
                f"{first_places[lost[0]]}: no label in column {column!r} ({lost[0]!r} among numbers); complete or "
                "remove it"
            )
        names = sorted(first_places)
    else:
        names = [str(number) for number in sorted(set(numbers.values()))]
    if len(names) == 1:
        raise LabelledDataError(f"every training row has the label {names[0]!r}; two classes are the least")
    if len(names) > MOST_CLASSES or (len(names) > 20 and len(names) > len(rows) / 2):
        raise LabelledDataError(
            f"column {column!r} holds {len(names):,} different labels in {len(rows):,} rows, which are no classes; is "
            f"it the right column? {advice}"
        )
    return names


def _is_number(value: str) -> bool:
    return re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", value) is not None


class _ClassIds:
    """From a label as written to its class id."""

    def __init__(self, names: Sequence[str], column: str, named_by_number: bool):
        self.column = column
        self.ids = {str(index) if named_by_number else name: index for index, name in enumerate(names)}

    def __call__(self, values: list[str], where: str) -> int:
        number = _as_integer(values[0])
        class_id = self.ids.get(values[0], None if number is None else self.ids.get(str(number)))
        if class_id is None:
            shown = ", ".join(list(self.ids)[:10]) + (", ..." if len(self.ids) > 10 else "")
            raise LabelledDataError(
                f"{where}: label {values[0]!r} in column {self.column!r} is out of range: the {len(self.ids)} classes "
                f"are {shown}"
            )
        return class_id


class _Numbers:
    """From the values of the label columns to numbers."""

    def __init__(self, columns: Sequence[str], only_0_and_1: bool):
        self.columns = columns
        self.only_0_and_1 = only_0_and_1

    def __call__(self, values: list[str], where: str) -> list[float]:
        numbers = []
        for column, value in zip(self.columns, values, strict=True):
            number = float(value) if _is_number(value) else math.nan
            if not math.isfinite(number):
                raise LabelledDataError(f"{where}: {value!r} in column {column!r} is no number")
            if self.only_0_and_1 and number not in (0, 1):
                raise LabelledDataError(
                    f"{where}: {value!r} in column {column!r} is neither 0 nor 1, as a multi-label column holds. For "
                    f"numbers that are to be predicted, add --problem_type {REGRESSION}"
                )
            numbers.append(number)
        return numbers
