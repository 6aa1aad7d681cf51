"""
Export a model folder to ONNX, with any batch size and length, and check it against the model in onnxruntime.

    python -m hub_configs.export FOLDER                 the folder's own head -> FOLDER/onnx/model.onnx
    python -m hub_configs.export FOLDER --encoder       the encoder alone: last_hidden_state
    python -m hub_configs.export FOLDER --output FILE   another file (.onnx)

Inputs of the graph: input_ids and attention_mask, int64 (batch, length). Output: last_hidden_state (batch, length,
hidden) of an encoder, logits of a head. Before FILE appears both are run at lengths 1, 8, 511, 513 and 2000 and batches
of 1 and 7 with padding, and must agree within 1e-4. Needs `pip install onnx onnxruntime onnxscript`.

The graph holds dense attention: memory grows with heads x length^2 (the banded attention that the model itself uses
depends on values, which a graph cannot). docs/serving.md says what that means.
"""

import argparse
import contextlib
import importlib.util
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import modeling

from .checkpoint import ConversionError, read_json, read_weights
from .convert import model_class_of

SHAPES = [(1, 1), *((batch, length) for batch in (1, 7) for length in (8, 511, 513, 2000))]  # batch, length
ALLOWED = 1e-4  # largest difference between onnxruntime and the model, in absolute terms
NEEDED = ("onnx", "onnxruntime", "onnxscript")


class ExportError(RuntimeError):
    """A model that cannot be exported, or whose graph computes something else; the message says what."""


class TensorOutput(nn.Module):
    """A model that takes input_ids and attention_mask and returns one tensor, as graphs want it."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.output_name = "last_hidden_state" if type(model) is modeling.StrandBertModel else "logits"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[self.output_name]


def load(folder: Path, encoder: bool = False) -> TensorOutput:
    """The model of a folder, in fp32 on the CPU, by the code of modeling/. Raises ConversionError for a bad folder."""
    if read_json(folder / "config.json").get("model_type") != modeling.StrandBertConfig.model_type:
        raise ConversionError(f"{folder} is not a StrandBERT folder; convert it first (python -m hub_configs.convert)")
    model_class = modeling.StrandBertModel if encoder else model_class_of(read_weights(folder))
    return TensorOutput(model_class.from_pretrained(folder, dtype=torch.float32)).eval()


def exported_program(model: TensorOutput) -> torch.export.ExportedProgram:
    """The model by torch.export, with dynamic batch and length, both from 1."""
    any_size = torch.export.Dim.DYNAMIC
    shapes = {name: {0: any_size, 1: any_size} for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), torch.fx.experimental._config.patch(backed_size_oblivious=True):
        return torch.export.export(model, (), example(2, 16), dynamic_shapes=shapes)


def example(batch: int, length: int, vocab_size: int = 64) -> dict[str, Tensor]:
    """Random tokens; every row after the first is padded a little more, alternately on the right and on the left."""
    random = torch.Generator().manual_seed(batch * length)
    input_ids = torch.randint(5, vocab_size, (batch, length), generator=random)
    attention_mask = torch.ones_like(input_ids)
    for row in range(1, batch):
        padding = row * length // (2 * batch)
        attention_mask[row, slice(length - padding, None) if row % 2 else slice(0, padding)] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def write_onnx(model: TensorOutput, path: Path) -> list[str]:
    """
    Write the graph to a new file and check it; returns one line for each checked shape.

    Raises ExportError: a package is missing, or the graph differs from the model. The file then does not appear.
    """
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(f"ONNX export needs {', '.join(missing)}: pip install {' '.join(NEEDED)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        temporary = Path(scratch, path.name)
        graph = onnx_graph(model)
        forget_where_it_was_made(graph)
        graph.save(str(temporary))
        lines = check(model, temporary)
        for file in sorted(Path(scratch).iterdir(), reverse=True):  # first NAME.data, with weights over 1.5 GB
            os.replace(file, path.with_name(file.name))
    return lines


def onnx_graph(model: TensorOutput):
    """The model as a torch.onnx.ONNXProgram; the exporter's own messages are kept off the screen."""
    sizes = {0: "batch", 1: "length"}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), quiet():
        warnings.simplefilter("ignore")
        return torch.onnx.export(
            exported_program(model),
            input_names=["input_ids", "attention_mask"],
            output_names=[model.output_name],
            dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
            dynamo=True,
            verbose=False,
        )


@contextlib.contextmanager
def quiet():
    """No warnings of the exporter about packages that it does not need here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def forget_where_it_was_made(graph) -> None:
    """Remove stack traces and paths of this machine, which the exporter writes beside every node."""
    for part in (graph.model, graph.model.graph, *graph.model.graph.all_nodes()):
        part.metadata_props.clear()
        part.doc_string = None
    for function in graph.model.functions.values():
        for part in (function, *function.all_nodes()):
            part.metadata_props.clear()


def check(model: TensorOutput, path: Path) -> list[str]:
    """Run the file in onnxruntime beside the model at all checked shapes. Raises ExportError where they differ."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    lines = []
    for batch, length in tqdm(SHAPES, desc="checking", unit="shape", leave=False):
        inputs = example(batch, length, model.model.config.vocab_size)
        with torch.no_grad():
            expected = model(**inputs)
        start = time.perf_counter()
        [output] = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        seconds = time.perf_counter() - start
        difference = float((torch.from_numpy(output) - expected).abs().max())
        lines.append(f"batch {batch}, length {length:4}: largest difference {difference:.1e}, {seconds:.2f} s")
        if not difference < ALLOWED:
            raise ExportError("\n".join([*lines, f"the graph differs from the model by more than {ALLOWED}"]))
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hub_configs.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="model folder")
    parser.add_argument("--output", type=Path, help="file to write (default: FOLDER/onnx/model.onnx)")
    parser.add_argument("--encoder", action="store_true", help="leave the head out: last_hidden_state")
    options = parser.parse_args(arguments)
    path = options.output or options.folder / "onnx" / "model.onnx"
    try:
        lines = write_onnx(load(options.folder, options.encoder), path)
    except (ExportError, RuntimeError, ValueError, OSError) as error:
        print(f"not exported: {error}", file=sys.stderr)
        return 1
    print("\n".join([*lines, f"wrote {path}, {path.stat().st_size / 2**20:.1f} MiB"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
