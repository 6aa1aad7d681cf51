"""
Which bases a fine-tuned classifier decided on.

    python -m inference.attribution peaks.fa --model my_classifier --output attributions.parquet --motifs motifs.meme

writes for each base of each sequence its part of the prediction (integrated gradients), the motifs that recur where
these are high (MEME format, with a logo of each in motifs.png), and with --logos N a logo of each of the first N
sequences.

Integrated gradients (Sundararajan et al. 2017) follow the logit of a class from a sequence of [MASK] tokens to the real
one through `inputs_embeds`. A token's part is divided evenly among its bases; both strands, whose tokens begin at other
bases, are averaged. The parts of a sequence add up to what the logit gained over the masked sequence ("completeness").
--method attention instead shows how much the first token attends to each base in one layer, which explains less.
"""

import argparse
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import torch
from matplotlib.figure import Figure
from torch import Tensor

from inference.jobs import JobError, check_files, processes, run, said_in_one_line
from inference.loading import SequenceEncoder, fingerprint, load_classifier
from inference.logo import draw_logo, information, of_sequence, save
from inference.motifs import find_motifs, write_meme
from inference.reading import SequenceRecord, add_input_arguments, read_records, reverse_complement
from modeling.alibi_attention import alibi_slopes
from modeling.nucleotides import token_lengths
from training.storage import check_writable

TOLERANCE = 2e-3  # of completeness: of the logit's gain, or of 1 where it gained less
FIRST_STEPS, MOST_STEPS = 32, 1024
BATCH_TOKENS = 4096  # tokens per pass with gradients
BLOCK_BASES = 1 << 13


@dataclass
class Attribution:
    """
    `bases` float64 (bp,) adds up to `score - baseline`, the logit of class `target` and that of the masked sequence, up
    to `gap`; strands averaged.
    """

    bases: np.ndarray
    target: int
    score: float
    baseline: float
    gap: float


def integrated_gradients(
    model,
    encoder: SequenceEncoder,
    sequence: bytes,
    target: int | None = None,
    both_strands: bool = True,
    tolerance: float = TOLERANCE,
    batch_tokens: int = BATCH_TOKENS,
) -> Attribution:
    """
    What each base adds to a class's logit. Steps of the path (Gauss-Legendre) are doubled from 32 until parts add up.

    Args:
        model: StrandBertForSequenceClassification in evaluation mode; for regression the number itself is followed.
        sequence: letters ACGTN.
        target: class; None takes the predicted one.
        tolerance: of completeness, relative to the gain of the logit, or to 1 where that is smaller. After 1,024 steps
            the result comes as it is: look at `gap`.
    """
    *_, found = attribution_steps(model, encoder, sequence, target, both_strands, tolerance, batch_tokens)
    return found


def attribution_steps(
    model,
    encoder: SequenceEncoder,
    sequence: bytes,
    target: int | None = None,
    both_strands: bool = True,
    tolerance: float = TOLERANCE,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[Attribution | None]:
    """`integrated_gradients` step by step, so that it can be stopped: None after each pass, at last the result."""
    strands = [sequence, reverse_complement(sequence)] if both_strands else [sequence]
    ids = encoder(strands)
    if target is None:
        logits = [_logits(model, model.get_input_embeddings()(row.to(model.device))[None]) for row in ids]
        target = int(torch.stack(logits).mean(0).argmax())
    lengths = token_lengths(encoder.tokenizer)
    parts = []
    for row in ids:
        parts.append((yield from _of_tokens(model, row, target, tolerance, batch_tokens)))
    bases = [np.repeat(tokens / lengths[row].clamp(min=1).numpy(), lengths[row].numpy())
             for (tokens, *_), row in zip(parts, ids, strict=True)]  # fmt: skip
    if both_strands:
        bases[1] = bases[1][::-1]
    score, baseline = np.mean([part[1:] for part in parts], axis=0).tolist()
    total = np.mean(bases, axis=0)
    yield Attribution(total, target, score, baseline, abs(total.sum() - (score - baseline)))


@torch.no_grad()
def _logits(model, embeddings: Tensor) -> Tensor:
    return model(inputs_embeds=embeddings).logits[0].float().cpu()


def _of_tokens(model, ids: Tensor, target: int, tolerance: float, batch_tokens: int):
    """
    A generator that yields None after each pass and returns the parts of the tokens float64 (tokens,), 0 for [CLS] and
    [SEP], and the logits of the sequence and of the baseline.
    """
    embeddings = model.get_input_embeddings().weight.detach()
    outer = torch.isin(ids, torch.tensor([model.config.cls_token_id, model.config.sep_token_id]))
    masked = ids.masked_fill(~outer, model.config.mask_token_id)
    end, start = (embeddings[row.to(model.device)] for row in (ids, masked))
    score, baseline = (float(_logits(model, x[None])[target]) for x in (end, start))
    steps = FIRST_STEPS
    while True:
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        gradient = yield from _mean_gradient(model, start, end, (nodes + 1) / 2, weights / 2, target, batch_tokens)
        tokens = ((end - start).double() * gradient).sum(-1).cpu().numpy()
        gap = abs(tokens.sum() - (score - baseline))
        if gap <= tolerance * max(1.0, abs(score - baseline)) or 2 * steps > MOST_STEPS:
            return tokens, score, baseline
        steps *= 2


def _mean_gradient(model, start: Tensor, end: Tensor, nodes, weights, target: int, batch_tokens: int):
    """
    A generator that yields None after each pass and returns the weighted sum over the path of the logit's gradient:
    float64 (tokens, hidden).
    """
    total = torch.zeros_like(end, dtype=torch.float64)
    at_once = max(1, batch_tokens // len(end))
    for low in range(0, len(nodes), at_once):
        alpha = torch.tensor(nodes[low : low + at_once], dtype=end.dtype, device=end.device)[:, None, None]
        points = (start + alpha * (end - start)).requires_grad_()
        with torch.enable_grad():
            logits = model(inputs_embeds=points).logits
            (gradient,) = torch.autograd.grad(logits[:, target].sum(), points)
        share = torch.tensor(weights[low : low + at_once], device=end.device)
        total += (share[:, None, None] * gradient.double()).sum(0)
        yield
    return total


@torch.no_grad()
def attention_profile(
    model, encoder: SequenceEncoder, sequence: bytes, layer: int = -1, query: str = "cls", both_strands: bool = True
) -> np.ndarray:
    """
    Attention that each base gets in one layer, mean of heads: float64 (bp,); adds up to 1 less what special tokens get.

    A token's attention is divided evenly among its bases. Memory grows linearly with the length.

    Args:
        layer: 1 is the first, -1 the last.
        query: "cls", attention of the first token, as DNABERT's figures; "mean", of all tokens.

    Raises:
        ValueError: no such layer or query.
    """
    depth = layer_number(model.config, layer)
    if query not in ("cls", "mean"):
        raise ValueError(f"query={query!r} is unknown; choose cls or mean")
    lengths = token_lengths(encoder.tokenizer)
    profiles = []
    for ids in encoder([sequence, reverse_complement(sequence)] if both_strands else [sequence]):
        tokens = _attention_received(model, ids, depth, query).numpy()
        profiles.append(np.repeat(tokens / lengths[ids].clamp(min=1).numpy(), lengths[ids].numpy()))
    return (profiles[0] + profiles[1][::-1]) / 2 if both_strands else profiles[0]


def layer_number(config, layer: int) -> int:
    """1 for the first layer; -1 is the last. Raises ValueError for a layer that does not exist."""
    count = config.num_hidden_layers
    depth = layer if layer > 0 else count + 1 + layer
    if not 1 <= depth <= count:
        raise ValueError(f"layer={layer} does not exist; the model has {count}, so 1 .. {count} or -{count} .. -1")
    return depth


def _attention_received(model, ids: Tensor, depth: int, query: str) -> Tensor:
    """Mean over heads and queries of the attention probabilities in layer `depth`: float64 (tokens,)."""
    backbone = model.base_model
    hidden = backbone(
        input_ids=ids[None].to(model.device), num_layers=depth - 1, unpadded_output=True, return_dict=True
    ).last_hidden_state
    heads = model.config.num_attention_heads
    attention = backbone.encoder.layer[depth - 1].attention.self
    queries, keys, _ = attention.Wqkv(hidden).view(len(ids), 3, heads, -1).unbind(1)
    slopes = torch.tensor(alibi_slopes(heads), device=hidden.device)[:, None, None]
    places = torch.arange(len(ids), device=hidden.device)
    total = torch.zeros(len(ids), dtype=torch.float64)
    count = 1 if query == "cls" else len(ids)
    for low in range(0, count, 256):
        rows = queries[low : min(low + 256, count)].transpose(0, 1)  # (heads, rows, head_dim)
        logits = (rows @ keys.permute(1, 2, 0)).float() * rows.shape[-1] ** -0.5
        logits = logits - slopes * (places[None, low : low + rows.shape[1], None] - places).abs()
        total += logits.softmax(-1).double().mean(0).sum(0).cpu()
    return total / count


class Attributor:
    """Tables of attributions for blocks of records; for `inference.jobs.run`."""

    def __init__(self, model, encoder: SequenceEncoder, method: str, target: int | None, layer: int):
        self.model, self.encoder, self.method, self.target, self.layer = model, encoder, method, target, layer

    def __call__(self, first: int, records: list[SequenceRecord]) -> Iterator[pyarrow.Table]:
        for number, record in enumerate(records, first):
            length = len(record.sequence)
            columns = {"name": [record.name] * length, "record": np.full(length, number)}
            columns |= {"position": np.arange(length), "base": list(record.sequence.decode())}
            if self.method == "attention":
                columns["attribution"] = attention_profile(self.model, self.encoder, record.sequence, self.layer)
            else:
                found = integrated_gradients(self.model, self.encoder, record.sequence, self.target)
                columns["attribution"] = found.bases
                label = self.model.config.id2label.get(found.target, str(found.target))
                columns |= {"target": [label] * length, "gap": np.full(length, found.gap)}
            yield pyarrow.table(columns)


def logo_of_sequence(sequence: bytes, values: np.ndarray, title: str) -> Figure:
    """A sequence's letters, each as high as its value; rows of 150 bp."""
    rows = range(0, len(sequence), 150)
    figure = Figure(figsize=(14, 1.2 + 1.3 * len(rows)), layout="constrained")
    for low, axes in zip(rows, np.atleast_1d(figure.subplots(len(rows))), strict=True):
        draw_logo(axes, of_sequence(sequence[low : low + 150], values[low : low + 150]), low)
        axes.set_xlim(low - 0.5, low + min(150, len(sequence)) - 0.5)
        axes.set_ylim(min(0, 1.05 * values.min()), max(1.05 * values.max(), 1e-12))
    figure.suptitle(title, fontsize=9)
    return figure


def logo_of_motifs(motifs) -> Figure:
    """Sequence logos in bits, one below the other."""
    figure = Figure(figsize=(6, 0.6 + 1.6 * len(motifs)), layout="constrained")
    for motif, axes in zip(motifs, np.atleast_1d(figure.subplots(len(motifs))), strict=True):
        draw_logo(axes, information(motif.probabilities), 1)
        axes.set_ylim(0, 2)
        axes.set_ylabel("bits")
        axes.set_title(f"{motif.name}, {motif.sites} sites", fontsize=9)
    return figure


def _sequences(tables: Iterator[pyarrow.Table]) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """(name, sequence, attributions) of each record; a table may hold several, or a part of one."""
    for _, parts in itertools.groupby(_of_one_record(tables), lambda part: part["record"][0].as_py()):
        table = pyarrow.concat_tables(parts)
        yield table["name"][0].as_py(), "".join(table["base"].to_pylist()).encode(), table["attribution"].to_numpy()


def _of_one_record(tables: Iterator[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    for table in tables:
        changes = np.flatnonzero(np.diff(table["record"].to_numpy())) + 1
        for start, end in itertools.pairwise([0, *changes.tolist(), len(table)]):
            yield table.slice(start, end - start)


def attribute_file(options: argparse.Namespace):
    """The command with its options; returns what was read (in the main process), and the motifs."""
    output = Path(options.output)
    if output.suffix not in (".parquet", ".csv", ".tsv"):
        raise JobError(f"--output {output} must end in .parquet, .csv or .tsv")
    if options.motifs:
        if not options.motifs.endswith(".meme"):
            raise JobError(f"--motifs {options.motifs} must end in .meme; the logos are written beside it")
        check_writable(Path(options.motifs).parent, "--motifs")
    motif_files = [Path(options.motifs), Path(options.motifs).with_suffix(".png")] if options.motifs else []
    logos = [output.with_name(f"{output.stem}_{number}.png") for number in range(1, options.logos + 1)]
    figures = [*motif_files, *logos]
    check_files(output, figures, (options.input, options.genome), options.overwrite)
    state = processes(options.cpu or not torch.cuda.is_available())
    model = load_classifier(options.model, torch.float32)
    model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    if model.config.model_type != "strandbert":
        raise JobError(f"{options.model} is a {model.config.model_type!r} model; attribution needs a StrandBERT")
    if getattr(model.config, "reads_pairs", None):
        raise JobError(f"{options.model} was fine-tuned on pairs of sequences; attribution reads single ones")
    target = _class_of(options.target, model.config)
    if options.method == "attention":
        layer_number(model.config, options.layer)
    attributor = Attributor(
        model.to(state.device), SequenceEncoder(options.model, model.config), options.method, target, options.layer
    )
    digest = fingerprint(model, attributor.encoder.tokenizer)
    settings = {"model": digest, "device": state.device.type, "method": options.method,
                "target": target, "layer": options.layer}  # fmt: skip
    motifs: list = []

    def also_figures(tables):
        sequences = list(itertools.islice(_sequences(tables), None if options.motifs else options.logos))
        for path, (name, sequence, values) in zip(logos, sequences, strict=False):
            save(logo_of_sequence(sequence, values, name), path)
        if options.motifs:
            Path(options.motifs).parent.mkdir(parents=True, exist_ok=True)
            motifs.extend(find_motifs([s for _, s, _ in sequences], [v for _, _, v in sequences]))
            write_meme(options.motifs, motifs, [s for _, s, _ in sequences])
            if motifs:
                save(logo_of_motifs(motifs), motif_files[1])
            else:
                motif_files[1].unlink(missing_ok=True)  # of an earlier run

    def read():
        return read_records(options.input, options.genome, options.sequence_column, options.name_column)

    found = run(output, settings, read, attributor, state, options.overwrite, BLOCK_BASES, also_figures, figures)
    return (found if state.is_main_process else None), motifs


def _class_of(text: str | None, config) -> int | None:
    """Index of a class given by name or number; None for none."""
    if text is None:
        return None
    names = {str(name): index for index, name in config.id2label.items()}
    index = names.get(text, int(text) if text.isdecimal() else -1)
    if not 0 <= index < config.num_labels:
        raise JobError(f"--target {text!r} is no class of the model; it has {', '.join(names)}")
    return index


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m inference.attribution",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_input_arguments(parser)
    parser.add_argument("--model", required=True, help="fine-tuned StrandBERT classifier: folder, Hub name, or adapter")
    parser.add_argument("--output", required=True, help="file to write: .parquet, .csv or .tsv; position counts from 0")
    parser.add_argument("--target", help="class, by name or number (default: the predicted one of each sequence)")
    parser.add_argument("--method", default="gradients", choices=["gradients", "attention"], help="default: gradients")
    parser.add_argument("--layer", type=int, default=-1, help="layer of --method attention (default: the last)")
    parser.add_argument("--motifs", help="also find motifs and write them to this .meme file, their logos beside it")
    parser.add_argument("--logos", type=int, default=0, metavar="N", help="also draw the first N sequences as PNG")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    options = parser.parse_args(arguments)
    if options.logos < 0:
        parser.error(f"--logos is {options.logos}; give a number of sequences")
    with said_in_one_line(ValueError):
        found, motifs = attribute_file(options)
    if found is not None:
        print(f"{found.sequences:,} sequences, {found.bases:,} bp -> {options.output}")
    for motif in motifs:
        print(f"{motif.name}: {motif.sites:,} sites")


if __name__ == "__main__":
    main()
