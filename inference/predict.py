"""
Classes or values for every sequence of a file, by a fine-tuned model.

    python -m inference.predict peaks.fa --model my_finetuned_model --output peaks.csv
    python -m inference.predict pairs.csv --sequence-column enhancer --pair-column promoter --model M --output x.parquet
    accelerate launch --num_processes 4 -m inference.predict reads.fq.gz --model M --output reads.parquet

The model is a folder that run_classification.py (or a Trainer) saved, in full or as LoRA adapter, merged or not, the
k-mer baseline too, or a Hub name. Input as for inference.embed, all of it checked before the first computation. Output:
.csv, .tsv or .parquet with name, predicted label and the probability of each label (one probability per label for
multi-label models, the value for regression). An interrupted job goes on when the same command is given again.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow
import torch
import transformers

from inference.embed import report
from inference.jobs import JobError, check_files, processes, refuse_not_finite, run, said_in_one_line
from inference.loading import fingerprint, load_predictor
from inference.reading import SequenceRecord, add_input_arguments, read_records
from modeling.embedding import STRANDS
from modeling.memory import is_out_of_memory, must_fit
from training.classification_batches import ClassificationCollator, TooLongError, View, evaluation_batches, views_of
from training.classification_data import REGRESSION, SINGLE_LABEL, Examples
from training.classification_model import Classifier, ModelError
from training.kmer_logistic import CONFIG_FILE as KMER_CONFIG
from training.kmer_logistic import KmerLogistic
from training.metrics import probabilities

SUFFIXES = (".csv", ".tsv", ".parquet")
TOO_LONG = "cut it into pieces, or try --dtype bfloat16"
BATCH_BASES = {"cpu": 1 << 14, "cuda": 1 << 18}  # bp of one pass


class BasePredictor:
    """
    Tables of predictions for blocks of records; `logits` is the model's.

    Args:
        reads_pairs: whether a row is two sequences; None where the model does not say.
        views: ways of reading a sequence; their outputs are averaged.
    """

    def __init__(self, names: list[str], problem_type: str, reads_pairs: bool | None, views: tuple[View, ...]):
        self.names, self.problem_type, self.reads_pairs, self.views = names, problem_type, reads_pairs, views
        if len(set(names)) < len(names):
            raise ModelError(f"two labels of the model have one name: {', '.join(names)}; correct its config.json")

    def __call__(self, first: int, records: list[SequenceRecord]) -> Iterator[pyarrow.Table]:
        """One table with a row per record, of which the first has the number `first`; JobError for outputs like NaN."""
        logits = sum(self.logits(first, records, view) for view in self.views) / len(self.views)
        bad = [record.place() for record, row in zip(records, logits, strict=True) if not np.isfinite(row).all()]
        refuse_not_finite(bad)  # here, because probabilities of infinite logits may be finite
        scores = probabilities(logits, self.problem_type)
        columns = {"name": [record.name for record in records], "record": np.arange(first, first + len(records))}
        if self.problem_type == SINGLE_LABEL:
            columns["predicted"] = [self.names[index] for index in scores.argmax(axis=1)]
        what = "predicted" if self.problem_type == REGRESSION else "probability"
        columns |= {f"{what}_{name}": column for name, column in zip(self.names, scores.T, strict=True)}
        yield pyarrow.table(columns)

    def logits(self, first: int, records: list[SequenceRecord], view: View) -> np.ndarray:
        """(records, labels) as a view reads them."""
        raise NotImplementedError

    def checked(self, number: int, record: SequenceRecord) -> SequenceRecord:
        """The record of this number; raises TooLongError when the model cannot read it whole."""
        return record


class KmerPredictor(BasePredictor):
    """The k-mer baseline of a folder."""

    def __init__(self, folder: str, views: tuple[View, ...]):
        try:
            self.model = KmerLogistic.load(folder)
        except ValueError as error:
            raise ModelError(str(error)) from None
        labels = self.model.labels
        super().__init__(list(labels.names), labels.problem_type, self.model.pairs, views)

    def logits(self, first: int, records: list[SequenceRecord], view: View) -> np.ndarray:
        """float64 (records, labels) as a view reads them."""
        rows = [view.read(_sequences(record), number)[0] for number, record in enumerate(records, first)]
        sequences, *pairs = zip(*rows, strict=True)
        pairs = list(pairs[0]) if pairs else None
        return self.model.logits(Examples(list(sequences), pairs, np.empty(0), [record.where for record in records]))


class Predictor(BasePredictor):
    """
    A fine-tuned model.

    Args:
        batch_bases: bp of one pass; None for `BATCH_BASES`.
    """

    def __init__(self, classifier: Classifier, views: tuple[View, ...] = (View(),), batch_bases: int | None = None):
        self.classifier, self.model = classifier, classifier.model
        self.batch_bases = batch_bases or BATCH_BASES.get(self.model.device.type, 1 << 14)
        self.collate = ClassificationCollator(classifier.tokenizer, classifier.packed, classifier.reads_mask)
        config = self.model.config
        names = [config.id2label[index] for index in range(config.num_labels)]
        problem_type = config.problem_type or (REGRESSION if len(names) == 1 else SINGLE_LABEL)
        super().__init__(names, problem_type, getattr(config, "reads_pairs", None), views)

    @torch.no_grad()
    def logits(self, first: int, records: list[SequenceRecord], view: View) -> np.ndarray:
        """float32 (records, labels) as a view reads them; batches of similar length."""
        samples = [self._sample(number, record, view) for number, record in enumerate(records, first)]
        lengths = np.array([len(record.sequence) + len(record.pair or b"") for record in records])
        logits = np.empty((len(records), len(self.names)), np.float32)
        for rows in evaluation_batches(lengths, self.batch_bases):
            batch = self.collate([samples[row] for row in rows])
            del batch["labels"]
            inputs = {k: v.to(self.model.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            tokens = [len(samples[row]["input_ids"]) for row in rows]
            bases_per_token = lengths[rows].sum() / sum(tokens)
            packed = must_fit(self.model, max(tokens), sum(tokens), bases_per_token, "--batch-bases", TOO_LONG)
            with packed if self.classifier.packed else _padded_must_fit(self.model, tokens):
                logits[rows] = self.model(**inputs).logits.float().cpu().numpy()
        return logits

    def checked(self, number: int, record: SequenceRecord) -> SequenceRecord:
        """The record of this number; raises TooLongError when the model cannot read it whole."""
        if self.classifier.sequences.max_length is not None and not self.classifier.sequences.truncate:
            for view in self.views:
                self._sample(number, record, view)
        return record

    def _sample(self, number: int, record: SequenceRecord, view: View) -> dict:
        ids, types = self.classifier.sequences.encode(*view.read(_sequences(record), number), record.place())
        sample = {"input_ids": ids, "label": np.int64(0)}
        return sample if types is None else sample | {"token_type_ids": types}


def _sequences(record: SequenceRecord) -> list[bytes]:
    return [sequence for sequence in (record.sequence, record.pair) if sequence is not None]


@contextmanager
def _padded_must_fit(model, tokens: list[int]) -> Iterator[None]:
    """Around a pass over a padded batch; raises MemoryError when an allocation fails."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        what = f"a batch of {len(tokens):,} sequences of up to {max(tokens):,} tokens"
        advice = "lower --batch-bases" if len(tokens) > 1 else TOO_LONG
        raise MemoryError(f"{what} does not fit into the memory of {model.device}; {advice}") from error


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m inference.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_input_arguments(parser)
    parser.add_argument("--model", required=True, help="folder of a fine-tuned model or LoRA adapter, or Hub name")
    parser.add_argument("--output", required=True, help=f"file to write: {', '.join(SUFFIXES)}")
    parser.add_argument("--pair-column", help="column with the second sequence of a pair, for models of pairs")
    parser.add_argument("--reverse-complement", default="none", choices=STRANDS, help="average both strands, or not")
    parser.add_argument("--average-tokens", type=int, default=1, metavar="N",
                        help="average N tokenisations of every sequence, for StrandBERT models fine-tuned with "
                             "--augment_tokens; N times the time (default: 1)")  # fmt: skip
    parser.add_argument("--augment-tokens", type=float, default=0.1, metavar="P",
                        help="chance that a boundary between two bases ends a token, in all tokenisations but the "
                             "first; as in fine-tuning (default: 0.1)")  # fmt: skip
    parser.add_argument("--truncate", action="store_true", help="cut sequences that a model with a limit cannot read")
    parser.add_argument("--batch-bases", type=int, help="bp per pass (default: 16384 on a CPU, 262144 on a GPU)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"],
                        help="arithmetic of the model")  # fmt: skip
    parser.add_argument("--trust-remote-code", action="store_true",
                        help="run code that comes with the model (StrandBERT needs none)")  # fmt: skip
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()  # of loading weights
    with said_in_one_line(TooLongError):
        if (found := predict_file(options)) is not None:
            print(report(found), f"-> {options.output}")


def predict_file(options: argparse.Namespace):
    """The command with its options; returns what was read, in the main process."""
    if Path(options.output).suffix not in SUFFIXES:
        raise JobError(f"--output {options.output} must end in one of {', '.join(SUFFIXES)}")
    if options.average_tokens < 1:
        raise JobError(f"--average-tokens {options.average_tokens} must be at least 1")
    if not 0 < options.augment_tokens <= 1:
        raise JobError(f"--augment-tokens {options.augment_tokens} must lie above 0 and at most at 1")
    check_files(options.output, [], (options.input, options.genome), options.overwrite)
    state = processes(options.cpu or not torch.cuda.is_available())
    views = views_of(options.reverse_complement == "average", options.average_tokens, options.augment_tokens)
    settings = {
        "device": state.device.type,
        **{name: getattr(options, name) for name in ("dtype", "reverse_complement", "truncate")},
        "average_tokens": [options.average_tokens, options.augment_tokens] if options.average_tokens > 1 else None,
    }
    predictor, settings["model"] = load(options, views, state.device)
    settings["labels"] = predictor.names
    if predictor.reads_pairs is not None and predictor.reads_pairs != bool(options.pair_column):
        what, advice = "single sequences", "leave out --pair-column"
        if predictor.reads_pairs:
            what, advice = "pairs of sequences", "name the column of the second one with --pair-column"
        raise JobError(f"{options.model} was fine-tuned on {what}; {advice}")

    def read():
        columns = (options.sequence_column, options.name_column, options.pair_column)
        for number, record in enumerate(read_records(options.input, options.genome, *columns)):
            try:
                yield predictor.checked(number, record)
            except TooLongError as error:
                raise TooLongError(f"{options.input}, {error}") from None

    found = run(options.output, settings, read, predictor, state, options.overwrite)
    return found if state.is_main_process else None


def load(options: argparse.Namespace, views: tuple[View, ...], device: torch.device) -> tuple[BasePredictor, str]:
    """The model of the options, and a digest of all that its answers depend on."""
    only_strandbert = JobError("--average-tokens works with StrandBERT models only")
    if (Path(options.model) / KMER_CONFIG).is_file():
        if options.average_tokens > 1:
            raise only_strandbert
        predictor = KmerPredictor(options.model, views)
        return predictor, predictor.model.digest()
    classifier = load_predictor(options.model, getattr(torch, options.dtype), options.trust_remote_code)
    if options.average_tokens > 1 and not classifier.packed:
        raise only_strandbert
    classifier.model.to(device)
    classifier.sequences.truncate = options.truncate
    return Predictor(classifier, views, options.batch_bases), fingerprint(classifier.model, classifier.tokenizer)


if __name__ == "__main__":
    main()
