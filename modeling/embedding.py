"""
Vectors for sequences: `model.embed(["ACGT...", ...])`, one method of every StrandBERT class.

Sequences of any length are sorted by length and laid end to end in batches of a bounded number of tokens, so no
arithmetic is spent on padding and a sequence's vector does not depend on what else is embedded. The default is the mean
over the tokens of the sequence, without [CLS] and [SEP]; [UNK], which stands for N, counts only where there is nothing
else.
"""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from .memory import must_fit
from .nucleotides import checked_letters, token_lengths, token_of_nucleotide
from .nucleotides import reverse_complement as other_strand

POOLINGS = ("mean", "cls", "max", "none")
RESOLUTIONS = ("sequence", "token", "nucleotide")
STRANDS = ("none", "average")
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}


def embed(
    self,
    sequences: str | list[str],
    pooling: str = "mean",
    layer: int = -1,
    resolution: str = "sequence",
    reverse_complement: str = "none",
    batch_tokens: int | None = None,
    window: int | None = None,
    overlap: int = 0,
    tokenizer=None,
) -> Tensor | list[Tensor]:
    """
    Vectors of DNA sequences: float32, on the CPU, in the order of the sequences, without gradients.

    Args:
        sequences: letters ACGTN in either case, U is T, ambiguity codes are N; one sequence or several.
        pooling: what makes one vector of the tokens of a sequence: "mean", "max", "cls" (the vector of [CLS]), or
            "none" (the same as resolution="token").
        layer: 0 is the embeddings, 1 the first layer, -1 the last one, as in `hidden_states`.
        resolution: "sequence", one vector each; "token", a row per token without [CLS] and [SEP]; "nucleotide", a row
            per letter, that of the token which covers it: always len(sequence) rows.
        reverse_complement: "average" takes the mean of both strands; not with resolution="token", as the tokens of
            the strands differ.
        batch_tokens: tokens per pass; the default is 4,096 on a CPU and 65,536 on a GPU. A longer sequence is a pass
            of its own, and takes memory in proportion to its length.
        window: tokens; longer sequences are read in windows of so many tokens. Default: in one piece.
        overlap: tokens that neighbouring windows share; each half is taken from the window where it is farther
            from the end.
        tokenizer: default is the one in the folder that the model was loaded from.

    Returns:
        "sequence": (sequences, hidden), or (hidden,) for a single text; "token" and "nucleotide": a list of
        (rows, hidden), or one of them for a single text.

    Raises:
        ValueError: unknown options, an empty sequence, a character that is no nucleotide.
        MemoryError: a sequence that does not fit; states the length that would have.
    """
    check_options(pooling, resolution, reverse_complement, window, overlap)
    single = isinstance(sequences, str)
    tokenizer = _own_tokenizer(self) if tokenizer is None else tokenizer
    letters = [checked_letters(s, f"sequence {i}") for i, s in enumerate([sequences] if single else sequences)]
    strands = letters + [other_strand(s) for s in letters if reverse_complement == "average"]
    input_ids = _tokenize(tokenizer, strands, self.config)
    whole = resolution == "sequence" and pooling != "none"
    bases_per_token = sum(map(len, strands)) / max(1, sum(map(len, input_ids)))
    rows = embed_token_ids(
        self, input_ids, pooling if whole else "none", layer, batch_tokens, window, overlap, bases_per_token
    )
    if resolution == "nucleotide":
        lengths, drop = token_lengths(tokenizer), _outer_ids(self.config)
        places = [
            token_of_nucleotide(ids[~torch.isin(ids, drop)], lengths, len(s))
            for ids, s in zip(input_ids, strands, strict=True)
        ]
        places = places[: len(letters)] + [place.flip(0) for place in places[len(letters) :]]
        rows = [row[place] for row, place in zip(rows, places, strict=True)]
    if reverse_complement == "average":
        rows = [(a + b) / 2 for a, b in zip(rows[: len(letters)], rows[len(letters) :], strict=True)]
    if single:
        return rows[0]
    return rows if not whole else torch.stack(rows) if rows else torch.empty(0, self.config.hidden_size)


def embed_token_ids(
    model,
    input_ids: list[Tensor],
    pooling: str = "mean",
    layer: int = -1,
    batch_tokens: int | None = None,
    window: int | None = None,
    overlap: int = 0,
    bases_per_token: float = 5.0,
) -> list[Tensor]:
    """
    `embed` for token ids, each (tokens,) with [CLS] and [SEP]: (hidden,) each, or (tokens - 2, hidden) without pooling.

    bases_per_token says in bp what would have fitted when memory is not enough. The model runs in evaluation mode and
    is left in the mode that it was in.
    """
    check_options(pooling, "sequence", "none", window, overlap)
    depth = depth_of(model.config, layer)
    batch_tokens = BATCH_TOKENS.get(model.device.type, 65536) if batch_tokens is None else batch_tokens
    drop, unknown = _outer_ids(model.config), model.config.unk_token_id
    for i, ids in enumerate(input_ids if pooling in ("mean", "max") else ()):
        if bool(torch.isin(ids, drop).all()):
            raise ValueError(f"sequence {i} has no token to take the {pooling} of: too short for this tokenizer")
    pieces = [piece for i, ids in enumerate(input_ids) for piece in _windows(i, ids, window, overlap, drop)]
    results: list = [None] * len(input_ids)
    parts: dict[int, dict[int, tuple]] = {}
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        for batch in _batches([len(piece[1]) for piece in pieces], batch_tokens):
            hidden_states = _hidden_states(model, [pieces[i][1] for i in batch], depth, bases_per_token)
            for i, hidden in zip(batch, hidden_states, strict=True):
                sequence, ids, start, end, last = pieces[i]
                if start == 0 and last:
                    results[sequence] = _pool(hidden, ids, pooling, drop, unknown)
                else:
                    kept = hidden[start:end].float().cpu()
                    parts.setdefault(sequence, {})[i] = (kept, ids[start:end])
    finally:
        for module in training:
            module.training = True
    for sequence, pieces_of_it in parts.items():
        hidden, ids = (torch.cat([pieces_of_it[i][k] for i in sorted(pieces_of_it)]) for k in (0, 1))
        results[sequence] = _pool(hidden, ids, pooling, drop, unknown)
    return results


def check_options(pooling: str, resolution: str, strand: str, window: int | None, overlap: int):
    """Raise ValueError for options of `embed` that are unknown or do not go together."""
    for name, value, known in (
        ("pooling", pooling, POOLINGS),
        ("resolution", resolution, RESOLUTIONS),
        ("reverse_complement", strand, STRANDS),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")
    if resolution != "sequence" and pooling in ("cls", "max"):
        raise ValueError(
            f"pooling={pooling!r} makes one vector per sequence; leave it out with resolution={resolution!r}"
        )
    if strand == "average" and (resolution == "token" or resolution == "sequence" and pooling == "none"):
        raise ValueError("the tokens of both strands differ and cannot be averaged; use resolution='nucleotide'")
    if window is None and overlap:
        raise ValueError(f"overlap={overlap} is of windows; say with window=... how many tokens each has")
    if window is not None and pooling == "cls":
        raise ValueError("pooling='cls' has no meaning with windows: each has a [CLS] of its own; use 'mean' or 'max'")
    if window is not None and not 0 <= overlap < window - 2:
        raise ValueError(f"overlap={overlap} must be at least 0 and less than window - 2 = {window - 2} tokens")


def _own_tokenizer(model):
    """The tokenizer of the folder that the model was loaded from; read once."""
    if not hasattr(model, "_embed_tokenizer"):
        if not model.name_or_path:
            raise ValueError(
                "the model was not loaded from a folder, so it has no tokenizer: give embed(tokenizer=...)"
            )
        revision = getattr(model.config, "_commit_hash", None)
        model._embed_tokenizer = PreTrainedTokenizerFast.from_pretrained(model.name_or_path, revision=revision)
    return model._embed_tokenizer


def _tokenize(tokenizer, sequences: list[str], config) -> list[Tensor]:
    for name in ("unk_token_id", "cls_token_id", "sep_token_id", "pad_token_id"):
        if getattr(tokenizer, name) != getattr(config, name):
            raise ValueError(
                f"{name} is {getattr(tokenizer, name)} in the tokenizer and {getattr(config, name)} in the model: they "
                "do not belong together"
            )
    if not sequences:
        return []
    ids = tokenizer(sequences, truncation=False, padding=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [torch.tensor(row) for row in ids]


def _outer_ids(config) -> Tensor:
    """Token ids that stand for no letter: [CLS], [SEP], [PAD]."""
    return torch.tensor([config.cls_token_id, config.sep_token_id, config.pad_token_id])


def depth_of(config, layer: int) -> int:
    """Number of layers to run for an index into `hidden_states`."""
    count = config.num_hidden_layers
    if not -count - 1 <= layer <= count:
        raise ValueError(
            f"layer={layer} does not exist; the model has {count}, so -{count + 1} .. {count} are possible"
        )
    return layer if layer >= 0 else count + 1 + layer


def _windows(index: int, ids: Tensor, window: int | None, overlap: int, drop: Tensor):
    """
    (index, ids, start, end, last) of each window of one sequence: ids with [CLS] and [SEP], of which the rows
    start:end are kept. A sequence that is read in one piece has start 0.
    """
    if window is None or len(ids) <= window:
        return [(index, ids, 0, len(ids), True)]
    first, body, final = ids[:1], ids[1:-1], ids[-1:]
    if not bool(torch.isin(ids[[0, -1]], drop).all()):
        raise ValueError("windows need token ids that begin with [CLS] and end with [SEP]")
    size = window - 2
    pieces = []
    for low in range(0, len(body) - overlap, size - overlap):
        high, last = min(low + size, len(body)), low + size >= len(body)
        start = 1 + (overlap // 2 if low else 0)
        end = 1 + high - low - (0 if last else overlap - overlap // 2)
        pieces.append((index, torch.cat([first, body[low:high], final]), start, end, last))
    return pieces


def _batches(lengths: list[int], batch_tokens: int):
    """Indices, longest first, in batches of at most `batch_tokens` tokens or one sequence."""
    batch, tokens = [], 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and tokens + lengths[index] > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


@torch.no_grad()
def _hidden_states(model, input_ids: list[Tensor], depth: int, bases_per_token: float) -> tuple[Tensor, ...]:
    """Hidden states (tokens, hidden) of each sequence of one pass, after `depth` layers."""
    lengths = [len(ids) for ids in input_ids]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    with must_fit(model, max(lengths), sum(lengths), bases_per_token):
        output = model.base_model(
            input_ids=torch.cat(input_ids)[None].to(model.device),
            cu_seqlens=cu_seqlens.to(model.device),
            max_seqlen=max(lengths),
            num_layers=depth,
            output_attentions=False,
            output_hidden_states=False,
            unpadded_output=True,
            return_dict=True,
        )
        return output.last_hidden_state.split(lengths)


def _pool(hidden: Tensor, ids: Tensor, pooling: str, drop: Tensor, unknown: int) -> Tensor:
    """(tokens, hidden) -> (hidden,), or without pooling the rows of letters; float32 on the CPU."""
    if pooling == "cls":
        return hidden[0].to("cpu", torch.float32, copy=True)  # a view would keep the whole batch
    kept = ~torch.isin(ids, drop)
    if pooling != "none" and bool((kept & (ids != unknown)).any()):
        kept &= ids != unknown
    rows = hidden[kept.to(hidden.device)].float()
    if pooling == "mean":
        rows = rows.mean(dim=0)
    elif pooling == "max":
        rows = rows.amax(dim=0)
    return rows.cpu()
