"""
The baseline to beat: counts of 3- to 6-mers and logistic regression.

Counts are of the forward strand, divided by their largest absolute value in the training data; scikit-learn's liblinear
solver; C is the one of STRENGTHS with the lowest validation loss. Seconds to minutes to train.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tokenization.tokenizer_files import write_bytes_atomically, write_text_atomically
from training.classification_data import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Examples, Labels
from training.metrics import compute_metrics, label_scale

NAME = "kmer-logistic"
LENGTHS = (3, 4, 5, 6)
STRENGTHS = (0.01, 0.1, 1.0)
BLOCK = 1 << 22  # bp counted at once: bounds the memory
CONFIG_FILE, WEIGHTS_FILE = "kmer_logistic.json", "kmer_logistic.npy"
_DIGIT = np.full(256, 4, dtype=np.int64)
_DIGIT[list(b"ACGT")] = range(4)


class KmerLogistic:
    """
    The baseline as a model: `fit`, `logits`, `save`, `load`.

    Regression has the same features under ridge regression.
    """

    def __init__(self, labels: Labels, pairs: bool):
        self.labels = labels
        self.pairs = pairs
        self.strength: float | None = None
        self.scale = self.weights = self.bias = np.empty(0)

    def fit(self, train: Examples, validation: Examples):
        """Train with each strength and keep the one with the lowest validation loss."""
        counts = count_kmers(train)
        self.scale = np.asarray(abs(counts).max(axis=0).todense()).ravel().astype(np.float64)
        self.scale[self.scale == 0] = 1
        scaled, held_out = self._features(counts), self._features(count_kmers(validation))
        problem_type, (_, deviation) = self.labels.problem_type, label_scale(train.labels, self.labels)
        best = np.inf
        for strength in STRENGTHS:
            weights, bias = self._fit_once(scaled, train.labels, strength)
            logits = held_out @ weights + bias
            loss = compute_metrics(logits, validation.labels, problem_type, deviation)["loss"]
            if loss < best:
                best, self.strength, self.weights, self.bias = loss, strength, weights, bias

    def logits(self, examples: Examples) -> np.ndarray:
        """float64 (rows, outputs), as a classifier with these labels gives them."""
        return self._features(count_kmers(examples)) @ self.weights + self.bias

    def parameters(self) -> int:
        """Numbers that were fitted; of two classes those of the second, the first one's are 0."""
        fitted = slice(1, None) if self.labels.problem_type == SINGLE_LABEL and len(self.bias) == 2 else slice(None)
        return self.weights[:, fitted].size + self.bias[fitted].size

    def digest(self) -> str:
        """Hexadecimal digest of what was fitted."""
        return hashlib.sha256(self.scale.tobytes() + self.weights.tobytes() + self.bias.tobytes()).hexdigest()

    def save(self, folder: str | Path):
        """Write kmer_logistic.json and kmer_logistic.npy (rows: scale, then weights; the bias is in the JSON)."""
        content = io.BytesIO()
        np.save(content, np.vstack([self.scale, self.weights.T]), allow_pickle=False)
        write_bytes_atomically(Path(folder) / WEIGHTS_FILE, content.getvalue())
        config = {
            "model": NAME,
            "kmer_lengths": LENGTHS,
            "problem_type": self.labels.problem_type,
            "labels": self.labels.names,
            "pairs": self.pairs,
            "C": self.strength,
            "bias": self.bias.tolist(),
        }
        write_text_atomically(Path(folder) / CONFIG_FILE, json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "KmerLogistic":
        """Read what `save` wrote. Raises ValueError for files that are damaged or missing."""
        try:
            config = json.loads((Path(folder) / CONFIG_FILE).read_text(encoding="utf-8"))
            model = cls(Labels(config["problem_type"], tuple(config["labels"])), config["pairs"])
            rows = np.load(Path(folder) / WEIGHTS_FILE, allow_pickle=False)
            model.scale, model.weights, model.bias = rows[0], rows[1:].T, np.array(config["bias"])
            model.strength = config["C"]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{folder} holds no whole {NAME} model: {error}") from None
        return model

    def _features(self, counts):
        from scipy.sparse import diags_array

        return (counts @ diags_array(1 / self.scale)).tocsr()

    def _fit_once(self, features, labels: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights (features, outputs) and bias (outputs,)."""
        from sklearn.linear_model import LogisticRegression, Ridge

        if self.labels.problem_type == REGRESSION:
            ridge = Ridge(alpha=1 / strength).fit(features, labels)
            return np.atleast_2d(ridge.coef_).T, np.atleast_1d(ridge.intercept_)
        binary = self.labels.problem_type == SINGLE_LABEL and len(self.labels.names) == 2
        if self.labels.problem_type == MULTI_LABEL:
            columns = list(labels.T)
        else:
            columns = [labels == index for index in ([1] if binary else range(len(self.labels.names)))]
        weights, bias = [], []
        for column in columns:
            if column.min() == column.max():  # a label that the training data do not vary
                weights.append(np.zeros(features.shape[1]))
                bias.append(20.0 if column.max() else -20.0)
                continue
            fitted = LogisticRegression(C=strength, solver="liblinear", max_iter=1000).fit(features, column)
            weights.append(fitted.coef_[0])
            bias.append(fitted.intercept_[0])
        if binary:  # logits of two classes whose difference is the log-odds
            weights, bias = [np.zeros_like(weights[0]), weights[0]], [0.0, bias[0]]
        return np.stack(weights, axis=1), np.array(bias)


def count_kmers(examples: Examples):
    """
    Sparse float32 (rows, 5,440 = 4^3 + 4^4 + 4^5 + 4^6; twice as many for pairs): occurrences of every k-mer.

    A k-mer with an ambiguous base is not counted.
    """
    from scipy.sparse import hstack

    parts = [_count(examples.sequences)]
    if examples.pairs is not None:
        parts.append(_count(examples.pairs))
    return hstack(parts, format="csr")


def _count(sequences: Sequence[bytes]):
    from scipy.sparse import vstack

    block = np.cumsum([len(sequence) for sequence in sequences]) // BLOCK
    starts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(sequences)]
    return vstack([_count_block(sequences[start:end]) for start, end in itertools.pairwise(starts)], format="csr")


def _count_block(sequences: Sequence[bytes]):
    from scipy.sparse import coo_array

    digits = _DIGIT[np.frombuffer(b"N".join([*sequences, b""]), dtype=np.uint8)]
    row = np.repeat(np.arange(len(sequences)), [len(sequence) + 1 for sequence in sequences])
    rows, columns, offset = [], [], 0
    codes, valid = digits, digits < 4  # of the k-mer that begins at each position
    for length in range(1, max(LENGTHS) + 1):
        if length > 1:
            codes, valid = codes[:-1] * 4 + digits[length - 1 :], valid[:-1] & (digits[length - 1 :] < 4)
        if length in LENGTHS:
            rows.append(row[: len(codes)][valid])
            columns.append(codes[valid] + offset)
            offset += 4**length
    rows, columns = (np.concatenate(parts).astype(np.int32) for parts in (rows, columns))  # what liblinear reads
    ones = np.ones(len(rows), dtype=np.float32)
    return coo_array((ones, (rows, columns)), shape=(len(sequences), offset)).tocsr()
