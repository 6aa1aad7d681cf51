"""
One cell of the load matrix, in an interpreter of its own: `python cell.py JOB.json`. It imports nothing of the project.

JOB names the transformers version that must be found, whether triton is present, the sources to load (folders or hub
names), and where to write outputs.safetensors and report.json. A failing load is written down with its traceback and
the next one is tried.
"""

import importlib.util
import json
import sys
import traceback
from pathlib import Path

SEQUENCES = ["ACGTTGCATTACGGATCCAGT", "tataaaggc", "ACGTNNNNACGU"]


def hide(package):
    """Make `import package` fail as if it were not installed."""
    sys.modules[package] = None


def poison_uninitialised_memory(torch):
    """Fill what torch.empty and its relatives return with NaN, so that a weight nobody loaded is seen in the output."""

    def poisoned(function):
        def wrapper(*args, **kwargs):
            tensor = function(*args, **kwargs)
            if tensor.is_floating_point() and tensor.device.type != "meta":
                with torch.no_grad():
                    tensor.fill_(float("nan"))
            return tensor

        return wrapper

    torch.empty = poisoned(torch.empty)
    torch.empty_like = poisoned(torch.empty_like)
    torch.Tensor.new_empty = poisoned(torch.Tensor.new_empty)


def load_config(transformers, sources):
    config = transformers.AutoConfig.from_pretrained(sources["mlm"], trust_remote_code=True)
    keys = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id", "tie_word_embeddings")
    return {"facts": [type(config).__name__, {key: getattr(config, key) for key in keys}, len(config.auto_map)]}


def load_tokenizer(transformers, sources):
    tokenizer = transformers.AutoTokenizer.from_pretrained(sources["mlm"], trust_remote_code=True)
    batch = tokenizer(SEQUENCES, padding=True)
    facts = [batch["input_ids"], batch["attention_mask"], sorted(batch), tokenizer("AC", "GT")["input_ids"]]
    return {"facts": facts}


def load_model(auto_class, source, new_head=False):
    """Function that loads a class twice (default backend, eager) and returns its outputs on a padded batch."""

    def load(transformers, sources):
        import torch

        torch.manual_seed(0)
        batch = torch.randint(5, 96, (3, 17))
        mask = (torch.arange(17) < torch.tensor([[17], [9], [2]])).long()
        outputs = {}
        for backend in ("default", "eager"):
            choice = {} if backend == "default" else {"attn_implementation": backend}
            model = getattr(transformers, auto_class).from_pretrained(
                sources[source], trust_remote_code=True, dtype=torch.float32, **choice
            )
            for name, parameter in model.named_parameters():
                if not parameter.isfinite().all():
                    raise AssertionError(f"{name} is not finite: it was never initialised")
            with torch.no_grad():
                output = model(batch, attention_mask=mask, output_hidden_states=True)
            outputs[f"hidden.{backend}"] = output.hidden_states[-1]
            if "logits" in output and not new_head:
                outputs[f"logits.{backend}"] = output.logits
            if any(not tensor.isfinite().all() for tensor in outputs.values()):
                raise AssertionError(f"{auto_class} ({backend}) gives NaN or infinity")
        return {"tensors": outputs}

    return load


LOADS = {
    "AutoConfig": load_config,
    "AutoTokenizer": load_tokenizer,
    "AutoModel": load_model("AutoModel", "mlm"),
    "MaskedLM": load_model("AutoModelForMaskedLM", "mlm"),
    "MaskedLM .bin": load_model("AutoModelForMaskedLM", "bin"),
    "SequenceClf": load_model("AutoModelForSequenceClassification", "sequence"),
    "TokenClf": load_model("AutoModelForTokenClassification", "token"),
    "new head": load_model("AutoModelForSequenceClassification", "mlm", new_head=True),
}


def run(transformers, sources):
    """({load: facts or error}, tensors) of every load."""
    report, tensors = {}, {}
    for name, load in LOADS.items():
        try:
            result = load(transformers, sources)
        except Exception:  # the report shows it, and the other loads still run
            report[name] = {"error": traceback.format_exc()}
            continue
        report[name] = {"facts": result.get("facts")}
        tensors.update({f"{name}/{key}": tensor.contiguous() for key, tensor in result.get("tensors", {}).items()})
    return report, tensors


def main(job_file):
    job = json.loads(Path(job_file).read_text())
    if not job["triton"]:
        hide("triton")
    import torch

    torch.set_num_threads(1)
    poison_uninitialised_memory(torch)
    import transformers
    from safetensors.torch import save_file

    if not transformers.__version__.startswith(job["transformers"]):
        raise SystemExit(f"expected transformers {job['transformers']}, found {transformers.__version__}")
    if job["triton"]:
        importlib.import_module("triton")
    for package in ("modeling", "hub_configs"):
        if importlib.util.find_spec(package):
            raise SystemExit(f"the checkout is importable here ({package}); this cell would prove nothing")
    report, tensors = run(transformers, job["sources"])
    if "strandbert" in sys.modules:
        raise SystemExit("the installed package was used in place of the folder's code")
    save_file(tensors, job["tensors"])
    Path(job["report"]).write_text(json.dumps({"version": transformers.__version__, "loads": report}))


if __name__ == "__main__":
    main(sys.argv[1])
