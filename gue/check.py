"""
Validate a download of the benchmark: files, row counts, hashes, labels, letters, lengths, leakage between splits.

    python -m gue.check DIR
    python -m gue.check DIR --tasks tf/0 EMP --csv leakage.csv
"""

import argparse
import csv
import gzip
import hashlib
import io
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gue.tasks import SPLITS, KnownSplit, Task, UnknownTaskError, find_tasks
from tokenization.tokenizer_files import write_text_atomically
from training.classification_data import MISSING, read_letters
from training.sources import csv_reader
from training.storage import StorageError, check_writable, writing_into

MAX_MESSAGES = 3  # of one kind in one file
COMPLEMENT = str.maketrans("ACGTN", "TGCAN")
OVERLAP = 32  # bp that rows share by descent, not by chance; at 2 bits a base they fill a uint64
CODES = np.full(256, 4, np.uint8)
CODES[np.frombuffer(b"ACGT", np.uint8)] = 0, 1, 2, 3
BLOCK_LENGTH = 1 << 22  # bp looked at at once: bounds memory


@dataclass
class Split:
    """One file as read: rows are (sequence in ACGTN, label); `problems` name file, line and value."""

    path: Path
    sha256: str
    rows: list[tuple[str, str]]
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class TaskReport:
    """What was found for one task: its splits, problems (the download is wrong), notes (it is not, but know this)."""

    task: Task
    splits: dict[str, Split]
    problems: list[str]
    notes: list[str]
    leakage: list[dict]


def reverse_complement(sequence: str) -> str:
    """The other strand of a sequence in ACGTN; of a pair, both sequences turned round in place."""
    return "|".join(part[::-1].translate(COMPLEMENT) for part in sequence.split("|"))


def split_hashes(content: bytes) -> tuple[str, str]:
    """sha256 of the content, and of the same with the CRLF line ends of the distributed files."""
    crlf = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    return hashlib.sha256(content).hexdigest(), hashlib.sha256(crlf).hexdigest()


def read_content(path: Path) -> bytes:
    """
    Read a file, unpacked if it is gzip.

    Raises:
        ValueError: damaged gzip file.
    """
    content = path.read_bytes()
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}); download or copy it again") from None


def published_form(task: Task, split: str, content: bytes) -> KnownSplit | None:
    """Find the known form of the split that has this content, whatever its line ends."""
    hashes = split_hashes(content)
    return next((known for known in task.splits if known.split == split and known.sha256 in hashes), None)


def check_split(task: Task, split: str, path: Path) -> Split:
    """Read one file and compare it with what is known of it."""
    try:
        content = read_content(path)
    except (ValueError, OSError) as error:
        return Split(path, "", [], [str(error)])
    found = Split(path, hashlib.sha256(content).hexdigest(), [])
    _read_rows(task, found, content)
    _compare_size(task, split, found, content)
    _check_labels(task, split, found)
    _check_lengths(task, split, found)
    return found


def _read_rows(task: Task, found: Split, content: bytes):
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found.problems.append(f"{found.path}, line {line}: byte {content[error.start]:#04x} is no text; not a CSV file")
        return
    reader, complaints = csv_reader(io.StringIO(text, newline="")), Counter()
    try:
        header = [name.strip() for name in next(reader, [])]
        wanted = 2 if task.pair else 1
        columns = [i for i, name in enumerate(header) if name != "label"][:wanted]
        if "label" not in header or len(columns) < wanted or (not task.pair and "sequence" not in header):
            names = "two sequences and label" if task.pair else "sequence,label"
            other = next((mark for mark in "\t;|" if len(header) == 1 and mark in header[0]), None)
            what = f"the columns are {','.join(header) or '(none)'}, not {names}"
            what = f"the fields are separated by {other!r}, not by commas" if other else what
            found.problems.append(f"{found.path}, line 1: {what}")
            return
        label = header.index("label")
        columns = columns if task.pair else [header.index("sequence")]
        for row in filter(None, reader):
            try:
                found.rows.append(_parse_row(row, columns, label, len(header)))
            except ValueError as error:
                kind = str(error).split(" at position")[0]
                complaints[kind] += 1
                if complaints[kind] <= MAX_MESSAGES:
                    found.problems.append(f"{found.path}, line {reader.line_num}: {error}")
    except csv.Error as error:
        found.problems.append(f"{found.path}, line {reader.line_num}: {error}")
    found.problems.extend(
        f"{found.path}: {count} rows in all with {kind}" for kind, count in complaints.items() if count > MAX_MESSAGES
    )


def _parse_row(row: list[str], columns: list[int], label: int, width: int) -> tuple[str, str]:
    """(sequence in ACGTN, label); ValueError says what is wrong with the row."""
    if len(row) != width:
        raise ValueError(f"{len(row)} fields instead of {width}")
    letters, value = b"|".join(read_letters(row[index].strip()) for index in columns), row[label].strip()
    if value.lower() in MISSING:
        raise ValueError(f"no label ({value!r})")
    return letters.decode(), value


def _compare_size(task: Task, split: str, found: Split, content: bytes):
    known = [form for form in task.splits if form.split == split]
    if not known or (found.problems and not found.rows):
        return
    if published_form(task, split, content):
        if found.sha256 not in {form.sha256 for form in known}:
            found.notes.append(f"{found.path}: as published, with other line ends")
        return
    sizes = {form.rows: form.source for form in known}
    if len(found.rows) not in sizes:
        expected = " or ".join(f"{rows:,} ({source})" for rows, source in sizes.items())
        found.problems.append(f"{found.path}: {len(found.rows):,} rows; expected are {expected}")
    elif all(form.sha256 for form in known if form.rows == len(found.rows)):
        found.problems.append(f"{found.path}: as many rows as published, other content (sha256 {found.sha256})")
    else:
        found.notes.append(f"{found.path}: as many rows as published; no hash is known (sha256 {found.sha256})")


def _check_labels(task: Task, split: str, found: Split):
    counts = Counter(label for _, label in found.rows)
    if task.num_labels and found.rows:
        allowed = [str(label) for label in range(task.num_labels)]
        for label in sorted(counts.keys() - set(allowed)):
            rows = counts[label]
            found.problems.append(f"{found.path}: label {label!r} in {rows} rows; the labels are 0 to {allowed[-1]}")
        absent = [label for label in allowed if label not in counts]
        if absent:
            found.problems.append(f"{found.path}: no row has label {', '.join(absent)}")


def _check_lengths(task: Task, split: str, found: Split):
    lengths = [len(sequence) for sequence, _ in found.rows]
    if not lengths or task.suite == "GUE+":  # printed lengths are nominal there
        return
    longer, shorter = sum(n > task.length for n in lengths), sum(n < task.length for n in lengths)
    if longer:
        found.problems.append(f"{found.path}: {longer} rows are longer than {task.length} bp (longest {max(lengths)})")
    if shorter:
        found.notes.append(f"{found.path}: {shorter} rows are shorter than {task.length} bp (shortest {min(lengths)})")


def leakage(task: Task, splits: dict[str, Split]) -> list[dict]:
    """
    Count repeated sequences, within each split and between each two.

    Returns:
        one row per split or pair of splits. Within: `exact` rows beyond the first of their sequence,
        `reverse_complement` rows that only repeat another's other strand. Between, e.g. "test in train": rows of test
        whose sequence, or else whose reverse complement, is in train. `other_label`: those with another label there.
        `overlapping` (between only): rows that share a stretch of 32 bp, on either strand, with one there, repeats
        included; `overlapping_other_label`: those that share it with rows of other labels only.
    """
    rows, labels = [], {}
    kmers = {split: _kmers_by_label(splits[split].rows) for split in ("train", "dev") if split in splits}
    for split, found in splits.items():
        counts = _within(found.rows) | {"overlapping": "", "overlapping_other_label": ""}
        rows.append({"task": task.name, "where": split, "rows": len(found.rows), **counts})
        labels[split] = {}
        for sequence, label in found.rows:
            labels[split].setdefault(sequence, set()).add(label)
    for first, second in (("dev", "train"), ("test", "train"), ("test", "dev")):
        if first in splits and second in splits:
            counts = _between(splits[first].rows, labels[second])
            counts |= _overlapping(splits[first].rows, kmers[second])
            rows.append({"task": task.name, "where": f"{first} in {second}", "rows": len(splits[first].rows), **counts})
    return rows


def _within(rows: list[tuple[str, str]]) -> dict[str, int]:
    seen, counts = {}, Counter(exact=0, reverse_complement=0, other_label=0)
    for sequence, label in rows:
        strand = sequence if sequence in seen else reverse_complement(sequence)
        if strand in seen:
            counts["exact" if strand == sequence else "reverse_complement"] += 1
            counts["other_label"] += label not in seen[strand]
        seen.setdefault(sequence, set()).add(label)
    return dict(counts)


def _between(rows: list[tuple[str, str]], other: dict[str, set[str]]) -> dict[str, int]:
    counts = Counter(exact=0, reverse_complement=0, other_label=0)
    for sequence, label in rows:
        strand = sequence if sequence in other else reverse_complement(sequence)
        if strand in other:
            counts["exact" if strand == sequence else "reverse_complement"] += 1
            counts["other_label"] += label not in other[strand]
    return dict(counts)


def _kmers_by_label(rows: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    """The 32-mers of the rows of each label that has any, ascending."""
    found = {}
    for label in {label for _, label in rows}:
        kmers = [part for part, _ in _canonical_kmers([row for row in rows if row[1] == label])]
        if sum(map(len, kmers)):
            found[label] = np.sort(np.concatenate(kmers))
    return found


def _overlapping(rows: list[tuple[str, str]], other: dict[str, np.ndarray]) -> dict[str, int]:
    same, different = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    labels = np.array([label for _, label in rows])
    for kmers, places in _canonical_kmers(rows):
        for label, there in other.items():
            hit = places[there[np.minimum(np.searchsorted(there, kmers), len(there) - 1)] == kmers]
            same[hit[labels[hit] == label]] = True
            different[hit[labels[hit] != label]] = True
    return {"overlapping": int((same | different).sum()), "overlapping_other_label": int((different & ~same).sum())}


def _canonical_kmers(rows: list[tuple[str, str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of (32-mers of either strand, the smaller of the two as uint64; the row of each), without N."""
    first = 0
    while first < len(rows):
        last, length = first, 0
        while last < len(rows) and (not length or length + len(rows[last][0]) <= BLOCK_LENGTH):
            length += len(rows[last][0]) + 1
            last += 1
        text = "|".join([*(sequence for sequence, _ in rows[first:last]), ""])
        codes = CODES[np.frombuffer(text.encode(), np.uint8)]
        places = np.repeat(np.arange(first, last), [len(sequence) + 1 for sequence, _ in rows[first:last]])
        if len(codes) >= OVERLAP:
            broken = np.concatenate(([0], np.cumsum(codes > 3)))
            whole = broken[OVERLAP:] == broken[:-OVERLAP]
            forward, backward = codes.astype(np.uint64), 3 - np.minimum(codes, 3).astype(np.uint64)
            width = 1
            while width < OVERLAP:  # k-mers of twice the width from neighbours
                shift = np.uint64(2 * width)
                forward = (forward[:-width] << shift) | forward[width:]
                backward = backward[:-width] | (backward[width:] << shift)
                width *= 2
            yield np.minimum(forward, backward)[whole], places[: len(whole)][whole]
        first = last


def check_task(task: Task, data_dir: str | Path) -> TaskReport:
    """Check every split of one task under `data_dir`."""
    wanted = list(dict.fromkeys(known.split for known in task.splits)) or list(SPLITS)
    paths = {split: path for split in SPLITS if (path := task.file(data_dir, split))}
    splits = {split: check_split(task, split, path) for split, path in paths.items()}
    problems = [f"{task.name}: {split}.csv (or .csv.gz) is missing" for split in wanted if split not in splits]
    notes = []
    for found in splits.values():
        problems.extend(found.problems)
        notes.extend(found.notes)
    counts = leakage(task, splits)
    for row in counts:
        repeated = row["exact"] + row["reverse_complement"]
        if " in " in row["where"] and repeated:
            notes.append(
                f"{task.name}: {row['where']}: {row['exact']} of {row['rows']:,} sequences, and "
                f"{row['reverse_complement']} reverse complements ({row['other_label']} with another label)"
            )
        if row["overlapping"]:
            notes.append(
                f"{task.name}: {row['where']}: {row['overlapping']} of {row['rows']:,} sequences share {OVERLAP} bp or "
                f"more ({row['overlapping_other_label']} with other labels only)"
            )
    return TaskReport(task, splits, problems, notes, counts)


def describe(report: TaskReport) -> str:
    """One line per split, then problems and notes."""
    lines = []
    for split, found in report.splits.items():
        counts = Counter(label for _, label in found.rows)
        labels = " ".join(
            f"{label}:{count}" for label, count in sorted(counts.items(), key=lambda x: (len(x[0]), x[0]))
        )
        verdict = "problem" if found.problems else "ok"
        lines.append(f"{report.task.name:24} {split:6} {verdict:8} {len(found.rows):>7,} rows  {labels}")
    lines.extend(f"  problem: {problem}" for problem in report.problems)
    lines.extend(f"  note: {note}" for note in report.notes)
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Check a folder; returns 1 when anything is missing or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path, help="folder that holds GUE/ (or tf/, EMP/, ...), .csv or .csv.gz")
    parser.add_argument("--tasks", nargs="+", default=["all"], help="names, groups (EMP), suites (GUE); default: all")
    parser.add_argument(
        "--csv", type=Path, help="write the counts of repeats and overlaps of every split and pair of splits here"
    )
    arguments = parser.parse_args(argv)
    if not arguments.data_dir.is_dir():
        parser.error(f"{arguments.data_dir} is not a folder")
    if arguments.csv and arguments.csv.is_dir():
        parser.error(f"--csv {arguments.csv} is a folder; name a file")
    try:
        tasks = find_tasks(arguments.tasks)
        if arguments.csv:
            check_writable(arguments.csv.parent, "--csv")
    except (UnknownTaskError, StorageError) as error:
        parser.error(str(error))
    absent, bad, rows = [], [], []
    for task in tqdm(tasks, desc="checking", unit="task", disable=None):
        report = check_task(task, arguments.data_dir)
        if not report.splits:
            absent.append(task.name)
            continue
        tqdm.write(describe(report))
        rows.extend(report.leakage)
        bad.extend([task.name] * bool(report.problems))
    if absent:
        print(f"not there at all: {', '.join(absent)}")
    good = [task for task in tasks if task.name not in (*absent, *bad)]
    print(f"{sum(bool(task.splits) for task in good)} of {len(tasks)} tasks are complete and as known")
    if unknown := [task.name for task in good if not task.splits]:
        print(f"complete, but nothing is known to compare with: {', '.join(unknown)}")
    if arguments.csv and rows:
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        try:
            with writing_into(arguments.csv.parent, lambda: "make room and run the same command again"):
                arguments.csv.parent.mkdir(parents=True, exist_ok=True)
                write_text_atomically(arguments.csv, table.getvalue())
        except StorageError as error:
            sys.exit(f"error: {error}")
    return int(bool(absent or bad))


if __name__ == "__main__":
    sys.exit(main())
