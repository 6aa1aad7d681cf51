"""
Reference outputs of a model folder, computed from config.json and model.safetensors alone.

Nothing of modeling/ is used: one sequence at a time, dense attention, float64, each step as in the DNABERT-2 and
dnaGrinder papers. Whatever the model's code does about padding, packing, kernels or loading must agree with this.
"""

import json
import math
import random
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, silu

from .checkpoint import ConversionError, read_json, read_tensor_file
from .folder import write_safetensors

REFERENCE_FILE = "reference_outputs.safetensors"
POOLINGS = {  # (tokens, hidden) -> (hidden,)
    "first": lambda tokens: tokens[0],
    "mean": lambda tokens: tokens.mean(0),
    "max": lambda tokens: tokens.amax(0),
}


def reference_sequences() -> list[str]:
    """Four fixed pieces of DNA: one base, unknown bases, a masked token, and 600 bp."""
    draw = random.Random(2306)
    long = "".join(draw.choice("ACGT") for _ in range(600))
    return ["A", "ACGTTGCANNNNGGATCC", "TATAAAGGC[MASK]GCGCATTTACG", long]


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. Raises ConversionError naming the file."""
    content = json.dumps(read_json(path))
    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises nothing more special
        raise ConversionError(f"{path} is not a tokenizer.json: {error}") from None


def encode(tokenizer_file: Path, sequences: list[str]) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, (batch, longest), right-padded with [PAD], not cut. Raises ConversionError."""
    tokenizer = read_tokenizer(tokenizer_file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = [tokenizer.encode(sequence).ids for sequence in sequences]
    length = max(map(len, ids))
    pad = tokenizer.token_to_id("[PAD]")
    if pad is None:
        raise ConversionError(f"{tokenizer_file} has no token [PAD]")
    input_ids = torch.tensor([row + [pad] * (length - len(row)) for row in ids])
    attention_mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    return input_ids, attention_mask


def write_reference(folder: Path) -> Path:
    """
    Compute and store the reference outputs of a model folder; returns the file. No code of the folder runs.

    Raises ConversionError naming the file that is absent or damaged, or the setting or weight that is missing.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json")
    weights = read_tensor_file(folder / "model.safetensors")
    sequences = reference_sequences()
    input_ids, attention_mask = encode(folder / "tokenizer.json", sequences)
    try:
        outputs = reference_outputs(config, weights, input_ids, attention_mask)
    except KeyError as error:
        raise ConversionError(f"{folder}: config.json or model.safetensors lacks {error}") from None
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ConversionError(f"{folder}: config.json, tokenizer and weights do not fit each other: {error}") from None
    path, tensors = folder / REFERENCE_FILE, {"input_ids": input_ids, "attention_mask": attention_mask, **outputs}
    write_safetensors(path, tensors, {"sequences": json.dumps(sequences)})
    return path


def read_reference(path: Path) -> tuple[dict[str, Tensor], list[str] | None]:
    """
    Tensors of a reference file, and the sequences its input_ids were made from (None when it has none).

    Raises ConversionError when the file is damaged or is not a reference.
    """
    tensors = read_tensor_file(path)
    absent = [name for name in ("input_ids", "attention_mask") if name not in tensors]
    if absent:
        raise ConversionError(f"{path} is not a reference: it lacks {', '.join(absent)}")
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return tensors, json.loads(metadata["sequences"]) if "sequences" in metadata else None


def reference_outputs(config: dict, weights: dict[str, Tensor], input_ids: Tensor, attention_mask: Tensor) -> dict:
    """
    float32 outputs at real tokens, sequences end to end: last_hidden_state (tokens, hidden) and, when the weights hold
    a head, logits: (tokens, vocab) of masked LM, (tokens, labels) of a token classifier, (batch, labels) of a sequence
    classifier.
    """
    w = {name.removeprefix("bert."): tensor.double() for name, tensor in weights.items()}
    hidden = [encoder(config, w, ids[mask.bool()]) for ids, mask in zip(input_ids, attention_mask, strict=True)]
    outputs = {"last_hidden_state": torch.cat(hidden)}
    architecture = config["architectures"][0]
    if architecture.endswith("ForMaskedLM"):
        transformed = gelu(dense(w, "cls.predictions.transform.dense", outputs["last_hidden_state"]))
        transformed = norm(w, "cls.predictions.transform.LayerNorm", transformed, 1e-12)
        word_embeddings = w["embeddings.word_embeddings.weight"]
        outputs["logits"] = linear(transformed, word_embeddings, w["cls.predictions.decoder.bias"])
    elif architecture.endswith("ForTokenClassification"):
        outputs["logits"] = dense(w, "classifier", outputs["last_hidden_state"])
    elif architecture.endswith("ForSequenceClassification"):
        pool = POOLINGS[config.get("classifier_pooling", "first")]
        pooled = torch.stack([pool(tokens) for tokens in hidden])
        if config["classifier_head"] == "pooler":
            outputs["logits"] = dense(w, "classifier", torch.tanh(dense(w, "pooler.dense", pooled)))
        else:
            inner = gelu(norm(w, "classifier.1", dense(w, "classifier.0", pooled), config["layer_norm_eps"]))
            outputs["logits"] = dense(w, "classifier.4", inner)
    return {name: tensor.float().contiguous() for name, tensor in outputs.items()}


def encoder(config: dict, w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """One sequence of token ids (length,) -> vectors (length, hidden)."""
    eps, heads = config["layer_norm_eps"], config["num_attention_heads"]
    activation = {"gelu": gelu, "silu": silu}[config["glu_activation"]]
    x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(w, "embeddings.LayerNorm", x, eps)
    bias = alibi(heads, len(ids))
    for layer in range(config["num_hidden_layers"]):
        p = f"encoder.layer.{layer}."
        q, k, v = (
            part.view(len(ids), heads, -1).transpose(0, 1)
            for part in dense(w, p + "attention.self.Wqkv", x).chunk(3, dim=-1)
        )
        logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias
        mixed = (logits.softmax(-1) @ v).transpose(0, 1).reshape(len(ids), -1)
        x = norm(w, p + "attention.output.LayerNorm", dense(w, p + "attention.output.dense", mixed) + x, eps)
        gate, up = linear(x, w[p + "mlp.gated_layers.weight"]).chunk(2, dim=-1)
        x = norm(w, p + "mlp.layernorm", dense(w, p + "mlp.wo", activation(gate) * up) + x, eps)
    return x


def alibi(heads: int, length: int) -> Tensor:
    """(heads, length, length): -slope * |i - j|; slopes 2^(-8/n), 2^(-16/n), ..., interleaved unless n is 2^k."""
    lower = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / lower) for i in range(lower)]
    slopes += [2 ** (-8 * (i + 1) / (2 * lower)) for i in range(0, 2 * lower, 2)][: heads - lower]
    positions = torch.arange(length)
    distance = (positions[:, None] - positions[None, :]).abs()
    return -torch.tensor(slopes, dtype=torch.float64)[:, None, None] * distance


def dense(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """x W^T + b."""
    return linear(x, w[name + ".weight"], w[name + ".bias"])


def norm(w: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last dimension."""
    return layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], eps)
