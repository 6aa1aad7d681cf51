"""The reference: what `tokenizers` makes of the same words."""

import json
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers

from tokenization.bpe_trainer import NO_LENGTH_LIMIT, Limits, Progress, TokensInMemory, merges_as_text, train

LETTERS = "ACGT"


def reference_merges(words, vocabulary, min_frequency=0, max_token_length=None):
    """Merge list of tokenizers' BpeTrainer; `vocabulary` counts letters and merges."""
    options = {} if max_token_length is None else {"max_token_length": max_token_length}
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=list(LETTERS),
        min_frequency=min_frequency,
        show_progress=False,
        **options,
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(words, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def codes_of(words):
    """Letter codes of words, as `tokenization.words` makes them."""
    table = bytes.maketrans(LETTERS.encode(), bytes(range(4)))
    joined = b"\xff".join([b"", *(word.encode().translate(table) for word in words), b""])
    return np.frombuffer(joined, np.uint8).copy()


def our_merges(words, vocabulary, min_frequency=0, max_token_length=None, positions=None, store=None):
    """Merge list of the exact trainer; `positions` forces the size of the pool."""
    store = TokensInMemory(codes_of(words)) if store is None else store
    if positions is not None:
        store.positions = positions
    progress = Progress(np.zeros((vocabulary - 4, 3), np.int64))
    train(store, progress, Limits(max(1, min_frequency), max_token_length or NO_LENGTH_LIMIT), lambda done: None)
    return [merge[:2] for merge in merges_as_text(progress)]


def repeated(unit, length):
    return (unit * (length // len(unit) + 1))[:length]


random_words = st.text(LETTERS, min_size=1, max_size=120)
runs = st.builds(repeated, st.sampled_from(LETTERS), st.integers(1, 70))
tandem_repeats = st.builds(repeated, st.text(LETTERS, min_size=1, max_size=6), st.integers(1, 150))
two_letters = st.text("AC", min_size=1, max_size=90)
word_lists = st.lists(st.one_of(random_words, runs, tandem_repeats, two_letters), min_size=1, max_size=7)


def write_fasta(path: Path, sequences) -> Path:
    path.write_text("".join(f">sequence{i}\n{sequence}\n" for i, sequence in enumerate(sequences)))
    return path


def dna_like(seed: int, length: int) -> str:
    """Sequence with uneven composition, repeats copied with changes, and microsatellites."""
    random = np.random.default_rng(seed)
    bases = random.choice(4, length, p=[0.3, 0.19, 0.21, 0.3])
    for _ in range(length // 2000):
        size, source, target = random.integers(50, 400), *random.integers(0, max(1, length - 400), 2)
        bases[target : target + size] = bases[source : source + size][: len(bases[target : target + size])]
    for _ in range(length // 5000):
        unit, start = random.integers(0, 4, random.integers(1, 5)), random.integers(0, length)
        piece = bases[start : start + 60]
        piece[:] = np.resize(unit, len(piece))
    return "".join(np.array(list(LETTERS))[bases])
