"""
FLOPs of a classifier on a 500 bp input (DNABERT-2 paper, section 5.2; dnaGrinder paper, section 4.2).

Counted, not estimated: the matrix products of one forward pass over a real yeast sequence (EMP/H3, as in the dnaGrinder
paper), a multiply-add being two operations. Weights are random: only config and tokenizer are read.
"""

import warnings
from pathlib import Path

from gue.check import check_split
from gue.tasks import find_task

# Of hub_configs with DNABERT-2's own vocabulary: the units of the papers' FLOPs columns.
COUNTED_FLOPS = {"DNABERT-2": 23_720_991_744, "dnaGrinder": 12_785_654_784}
SEQUENCES = 100  # of EMP/H3's test split; the one with the median number of tokens is used
KMER_LOGISTIC = "kmer-logistic"


def count_flops(model: str, tokenizer_name: str, data_dir: Path, trust_remote_code: bool = False) -> int | None:
    """Forward FLOPs of a two-class classifier; None, with a warning that says why, when they cannot be counted."""
    if model == KMER_LOGISTIC:
        return None
    try:
        return _count(model, tokenizer_name, _sequences(data_dir), trust_remote_code)
    except Exception as error:  # a column of the report is no reason to lose a grid of runs
        warnings.warn(f"FLOPs of {model} are not counted: {error}", stacklevel=2)
        return None


def _count(model: str, tokenizer_name: str, sequences: list[str], trust_remote_code: bool) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from training.classification_data import SINGLE_LABEL, Labels
    from training.classification_model import ModelError, load_classifier, load_config, load_tokenizer

    config = load_config(model, Labels(SINGLE_LABEL, ("0", "1")), trust_remote_code)
    tokenizer = load_tokenizer(tokenizer_name, config, trust_remote_code)
    try:  # eager: every product is one that the counter knows
        classifier = load_classifier(config, tokenizer, None, None, False, trust_remote_code, "eager")
    except ModelError:
        classifier = load_classifier(config, tokenizer, None, None, False, trust_remote_code)
    inputs = sorted((classifier.sequences.encode([sequence.encode()])[0] for sequence in sequences), key=len)
    ids = torch.as_tensor(inputs[(len(inputs) - 1) // 2])[None]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        classifier.model.eval()(input_ids=ids)
    return counter.get_total_flops()


def _sequences(data_dir: Path) -> list[str]:
    task = find_task("EMP/H3")
    path = task.file(data_dir, "test")
    if path is None:
        raise ValueError(f"EMP/H3/test.csv, whose sequences are the 500 bp input, is not under {data_dir}")
    return [sequence for sequence, _ in check_split(task, "test", path).rows[:SEQUENCES]]
