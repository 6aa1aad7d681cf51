"""
Parameters and FLOPs of an encoder on a 500 bp input (DNABERT-2 paper, section 5.2; dnaGrinder paper, section 4.2).

Counted, not estimated: the matrix products of one forward pass over a real yeast sequence (EMP/H3, as in the dnaGrinder
paper), each multiply-add as two operations, with eager attention. Weights are random: only the config is read.
"""

import statistics
import warnings
from pathlib import Path

from gue.check import check_split
from gue.tasks import find_task

# Of hub_configs with DNABERT-2's own vocabulary: the units of the papers' FLOPs columns.
COUNTED_FLOPS = {"DNABERT-2": 23_719_809_024, "dnaGrinder": 12_784_472_064}
SEQUENCES = 100  # of EMP/H3's test split; the one with the median number of tokens is used


def count_cost(model: str, data_dir: Path) -> dict[str, int]:
    """
    Count an encoder's parameters (without head) and forward FLOPs.

    Returns:
        {"parameters", "flops_500bp"}; what cannot be counted is left out, with a warning that says why.
    """
    if model == "kmer-logistic":
        return {}  # run_classification.py knows how many k-mers it counts
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    cost = {}
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=True)
        encoder = _eager(AutoModel, config).to(torch.bfloat16).eval()
        cost["parameters"] = sum(parameter.numel() for parameter in encoder.parameters())
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=True)
        inputs = _median_input(tokenizer, _sequences(data_dir))
        cost["flops_500bp"] = count_flops(encoder, inputs)
    except Exception as error:  # a column of the report is no reason to lose a grid of runs
        warnings.warn(f"parameters or FLOPs of {model} are not counted: {error}", stacklevel=2)
    return cost


def count_flops(encoder, inputs: dict) -> int:
    """FLOPs of one forward pass without gradient."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder(**inputs)
    return counter.get_total_flops()


def _eager(auto_class, config):
    try:
        return auto_class.from_config(config, trust_remote_code=True, attn_implementation="eager")
    except (ValueError, TypeError):  # an architecture with one attention only
        return auto_class.from_config(config, trust_remote_code=True)


def _sequences(data_dir: Path) -> list[str]:
    task = find_task("EMP/H3")
    path = task.file(data_dir, "test")
    if path is None:
        raise ValueError(f"EMP/H3/test.csv, whose sequences are the 500 bp input, is not under {data_dir}")
    return [sequence for sequence, _ in check_split(task, "test", path).rows[:SEQUENCES]]


def _median_input(tokenizer, sequences: list[str]) -> dict:
    lengths = [len(ids) for ids in tokenizer(sequences)["input_ids"]]
    median = statistics.median_low(lengths)
    return dict(tokenizer(sequences[lengths.index(median)], return_tensors="pt"))
