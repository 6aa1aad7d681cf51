"""
What somebody with nothing but torch and transformers does with a published folder: `empty_environment.py FOLDER`.

Runs in an environment of its own (test_empty_environment.py makes it). Opening a socket raises. Prints one JSON object.
"""

import importlib.metadata
import importlib.util
import json
import os
import socket
import sys

os.environ["HF_HUB_OFFLINE"] = "1"


def refuse(*arguments, **options):
    raise OSError("a socket was opened")


def main(folder):
    socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
    import torch
    import transformers

    options = {"trust_remote_code": True}
    encoder = transformers.AutoModel.from_pretrained(folder, **options)
    vectors = encoder.embed(["ACGTTGCATTAC", "tataaaggc"])
    fill = transformers.pipeline("fill-mask", folder, **options)
    tokens = [answer["token_str"] for answer in fill("ACGTTGCATTACGG[MASK]TTACGGATCC")]
    found = {d.metadata["Name"].lower() for d in importlib.metadata.distributions()}
    report = {
        "vectors": list(vectors.shape),
        "finite": bool(vectors.isfinite().all()),
        "tokens": tokens,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "project": [name for name in ("modeling", "hub_configs", "strandbert") if importlib.util.find_spec(name)],
        "extras": sorted(found & {"accelerate", "datasets", "peft", "numba", "scikit-learn", "triton", "flash-attn"}),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
