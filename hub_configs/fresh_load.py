"""
Load a model folder the way a stranger does, and report what came out. Run as a script, in an interpreter of its own:

    python fresh_load.py MODEL REFERENCE.safetensors OUTPUTS.safetensors

It imports nothing of the project. MODEL is a folder, or the name of a repository in the Hub cache. REFERENCE gives
input_ids and attention_mask (batch, length). OUTPUTS receives last_hidden_state at real tokens and the head's logits,
once from the default backend and once from eager. The last line of standard output is one JSON object that says what
was loaded, with the SHA-256 of every code file that ran.
"""

import hashlib
import json
import os
import platform
import sys

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")


def main(source: str, reference_file: str, outputs_file: str) -> None:
    import tokenizers
    import torch
    import transformers
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(reference_file, "pt") as reference:
        input_ids, attention_mask = reference.get_tensor("input_ids"), reference.get_tensor("attention_mask")
        sequences = json.loads((reference.metadata() or {}).get("sequences", "null"))
    tokens = attention_mask.bool()
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=True)
    architecture = config.architectures[0]
    heads = [name for name in config.auto_map if name.startswith("AutoModelFor")]
    auto_class = next((name for name in heads if architecture.endswith(name.removeprefix("AutoModel"))), "AutoModel")
    outputs = {}
    for backend in (None, "eager"):
        choice = {} if backend is None else {"attn_implementation": backend}
        model = getattr(transformers, auto_class).from_pretrained(
            source, trust_remote_code=True, dtype=torch.float32, **choice
        )
        with torch.no_grad():
            output = model(input_ids, attention_mask, output_hidden_states=True)
        suffix = backend or "default"
        outputs[f"last_hidden_state.{suffix}"] = output.hidden_states[-1][tokens].contiguous()
        if "logits" in output:
            per_token = output.logits.dim() == 3
            outputs[f"logits.{suffix}"] = (output.logits[tokens] if per_token else output.logits).contiguous()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    save_file(outputs, outputs_file)
    report = {
        "auto_class": auto_class,
        "model_class": type(model).__name__,
        "code": code_that_ran(),
        "parameters": model.num_parameters(),
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, transformers, tokenizers)},
    }
    if sequences is not None:
        report["input_ids"] = tokenizer(sequences)["input_ids"]
    print(json.dumps(report))


def code_that_ran() -> dict[str, str]:
    """File name -> SHA-256 of every module that transformers' loader of remote code has imported."""
    files = {
        module.__file__
        for name, module in list(sys.modules.items())
        if name.startswith("transformers_modules.") and not (module.__file__ or "__init__.py").endswith("__init__.py")
    }
    hashes = {}
    for path in sorted(files):
        with open(path, "rb") as file:
            hashes[os.path.basename(path)] = hashlib.sha256(file.read()).hexdigest()
    return hashes


if __name__ == "__main__":
    main(*sys.argv[1:])
