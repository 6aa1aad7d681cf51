"""Random DNA with one planted motif, and small models that are trained on it in seconds."""

import random

import numpy as np
import torch

from inference.loading import SequenceEncoder
from inference.reading import reverse_complement
from modeling import StrandBertConfig, StrandBertForMaskedLM, StrandBertForSequenceClassification

MOTIF = b"TTGCGCAAGTCCATGAATCG"  # of the language model
SITE = b"TGACTCATCC"  # of the classifier
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "initializer_range": 0.1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def random_dna(source, length):
    return "".join(source.choices("ACGT", k=length)).encode()


def with_motif(source, length, motif=MOTIF, place=None):
    """Random DNA of `length` bp with the motif at a random place, or at `place`."""
    place = source.randrange(length - len(motif) + 1) if place is None else place
    dna = random_dna(source, length)
    return dna[:place] + motif + dna[place + len(motif) :]


def packed(rows):
    lengths = [len(row) for row in rows]
    return {
        "input_ids": torch.cat(rows)[None],
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "max_seqlen": max(lengths),
    }


def train_masked_lm(folder, tokenizer_folder, steps, seed=0):
    """A language model of sequences in which MOTIF, on either strand, is all there is to learn."""
    source = random.Random(seed)
    torch.manual_seed(seed)
    model = StrandBertForMaskedLM(StrandBertConfig(**SIZES)).train()
    encoder = SequenceEncoder(str(tokenizer_folder), model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        sequences = [with_motif(source, 60) for _ in range(32)]
        rows = encoder([reverse_complement(s) if source.random() < 0.5 else s for s in sequences])
        batch = packed(rows)
        ids = batch["input_ids"]
        chosen = (torch.rand(ids.shape) < 0.2) & (ids > 4)
        labels = ids.masked_fill(~chosen, -100)
        loss = model(**{**batch, "input_ids": ids.masked_fill(chosen, 4)}, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    encoder.tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return loss.item()


def train_classifier(folder, tokenizer_folder, steps, seed=0):
    """A classifier of whether SITE, on either strand, is in 80 bp of random DNA."""
    source = random.Random(seed)
    torch.manual_seed(seed)
    config = StrandBertConfig(**SIZES, num_labels=2, classifier_pooling="mean", classifier_dropout=0.0)
    model = StrandBertForSequenceClassification(config).train()
    encoder = SequenceEncoder(str(tokenizer_folder), model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    correct = []
    for _ in range(steps):
        labels = [source.randrange(2) for _ in range(32)]
        sequences = [with_motif(source, 80, SITE) if label else random_dna(source, 80) for label in labels]
        rows = encoder([reverse_complement(s) if source.random() < 0.5 else s for s in sequences])
        output = model(**packed(rows), labels=torch.tensor(labels))
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        correct.append((output.logits.argmax(1) == torch.tensor(labels)).float().mean().item())
    encoder.tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return float(np.mean(correct[-20:]))
