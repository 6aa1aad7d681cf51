"""
Compile the attention kernels for GPUs that need not be there, and count what the machine code uses.

    python -m tests.modeling.compile_triton_attention      one line of JSON per kernel; needs triton, not a GPU

Run by test_triton_compile.py. TRITON_INTERPRET must not be set.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from modeling import triton_attention as kernels

PASSES = {
    "forward": kernels._forward_kernel,
    "query gradient": kernels._query_gradient_kernel,
    "key and value gradient": kernels._key_value_gradient_kernel,
}
NUMBERS = {"query", "key", "value", "output", "grad_output", "grad_query", "grad_key", "grad_value"}
FP32_POINTERS = {"maxima", "log_sums", "row_sums", "slopes"}
INT32_POINTERS = {"block_first", "sequence_end", "range_low", "range_high", "order"}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

# compute capability, dtype, head_dim, dropout
CASES = [
    (90, "bf16", 64, False),
    (90, "bf16", 64, True),
    (90, "bf16", 128, False),
    (90, "fp16", 64, False),
    (90, "fp32", 64, False),
    (80, "bf16", 64, False),
]


def argument_type(name: str, dtype: str) -> str:
    if name in NUMBERS:
        return f"*{dtype}"
    if name in FP32_POINTERS:
        return "*fp32"
    if name in INT32_POINTERS:
        return "*i32"
    return {"scale": "fp32", "dropout_p": "fp32", "seed": "i64"}.get(name, "i32")


def compile_kernel(pass_index: int, capability: int, dtype: str, head_dim: int, dropout: bool):
    """The kernel as `_launch` would start it, for contiguous or fused tensors (strides divisible by 16)."""
    kernel = list(PASSES.values())[pass_index]
    rows, *steps = kernels.TILES[64 if head_dim <= 64 else 128, 4 if dtype == "fp32" else 2]
    columns, num_warps, num_stages = steps[pass_index]
    constants = {
        "HEAD_DIM": head_dim,
        "PADDED_DIM": max(16, triton.next_power_of_2(head_dim)),
        "ROWS": rows,
        "COLUMNS": columns,
        "DROPOUT": dropout,
        "UPCAST": False,
    }
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else argument_type(name, dtype) for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*") or name.endswith("stride")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def usage(compiled) -> dict:
    """Registers per thread, bytes spilled, bytes of shared memory, and counts of some machine instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        resources, code = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", resources).groups()
    counts = {name: len(re.findall(rf"\b{name}\b", code)) for name in ("HGMMA", "HMMA", "LDL", "STL")}
    return {"registers": int(registers), "spilled": int(stack), "shared": compiled.metadata.shared, **counts}


def main() -> None:
    for capability, dtype, head_dim, dropout in CASES:
        for index, name in enumerate(PASSES):
            case = {"pass": name, "sm": capability, "dtype": dtype, "head_dim": head_dim, "dropout": dropout}
            print(json.dumps(case | usage(compile_kernel(index, capability, dtype, head_dim, dropout))), flush=True)


if __name__ == "__main__":
    main()
