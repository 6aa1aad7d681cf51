"""The weights in hub_configs/strandbert-tiny: small, finite, and of a model that has learned."""

import gzip
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from ..conftest import ROOT

FOLDER = ROOT / "hub_configs" / "strandbert-tiny"
HELDOUT = ("protists/NC_006980.fa.gz", "bacteria/mtuberculosis_H37Rv.fna.gz")  # species it was not trained on


def test_the_file_is_small_and_every_weight_finite_in_half_precision():
    assert (FOLDER / "model.safetensors").stat().st_size < 16e6
    for name, weight in load_file(FOLDER / "model.safetensors").items():
        assert weight.dtype == torch.float16 and weight.isfinite().all(), name


@pytest.mark.parametrize("file", HELDOUT)
def test_masked_tokens_of_species_it_has_not_seen_cost_less_than_two_bits_per_base(shared_data, file):
    with gzip.open(shared_data(f"data/genomes/{file}"), "rt") as lines:
        genome = "".join(line.strip() for line in lines if not line.startswith(">"))
    windows = [genome[start : start + 600].upper() for start in range(50_000, 850_000, 12_500)]
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    model = AutoModelForMaskedLM.from_pretrained(FOLDER, trust_remote_code=True).eval()
    batch = tokenizer(windows, padding=True, return_tensors="pt")
    masked = torch.rand(batch["input_ids"].shape, generator=torch.Generator().manual_seed(0)) < 0.15
    masked &= batch["input_ids"] > tokenizer.mask_token_id
    targets = batch["input_ids"][masked]
    with torch.no_grad():
        logits = model(**batch | {"input_ids": batch["input_ids"].masked_fill(masked, tokenizer.mask_token_id)}).logits
    nats = torch.nn.functional.cross_entropy(logits[masked], targets, reduction="sum").item()
    bases = sum(map(len, tokenizer.convert_ids_to_tokens(targets)))
    assert nats / math.log(2) / bases < 2  # random weights: 2.4
