"""The Triton attention kernels compiled ahead of time for sm_80 and sm_90, without a GPU. `pytest -s` shows a table."""

import json

import pytest

from tests.modeling.triton_process import run_with_triton

SHARED_MEMORY = 99 * 1024  # bytes per block of the consumer cards, sm_86 and sm_89; data-centre cards have more


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Resources of each kernel."""
    folder = str(tmp_path_factory.mktemp("triton"))
    done = run_with_triton("-m", "tests.modeling.compile_triton_attention", TRITON_CACHE_DIR=folder)
    if "No such file or directory" in done.stderr and ("cuobjdump" in done.stderr or "ptxas" in done.stderr):
        pytest.skip("this triton comes without ptxas or cuobjdump")
    assert done.returncode == 0, done.stderr[-5000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    print("\n" + " ".join(f"{name:>9}" for name in rows[0]))
    for row in rows:
        print(" ".join(f"{str(value):>9}" for value in row.values()))
    return rows


def test_every_pass_is_compiled_for_both_architectures(compiled):
    assert len(compiled) == 18
    assert {row["sm"] for row in compiled} == {80, 90}


def test_no_register_is_spilled(compiled):
    assert [row for row in compiled if row["spilled"] or row["LDL"] or row["STL"]] == []


def test_matrix_units_are_used_in_half_precision(compiled):
    half = [row for row in compiled if row["dtype"] != "fp32"]
    assert all(row["HGMMA"] >= 2 for row in half if row["sm"] == 90)
    assert all(row["HMMA"] >= 2 for row in half if row["sm"] == 80)


def test_fp32_is_computed_in_full_precision(compiled):
    """Matrix units would round fp32 to tf32."""
    assert [row for row in compiled if row["dtype"] == "fp32" and (row["HGMMA"] or row["HMMA"])] == []


def test_shared_memory_fits_consumer_cards(compiled):
    assert max(row["shared"] for row in compiled) <= SHARED_MEMORY
