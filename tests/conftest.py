"""What every test shares: one torch thread, no network, its own Hugging Face cache, the optional reference data."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="strandbert-tests-")  # before transformers is imported
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data():
    """Function from a relative path to a file of the reference data ($STRANDBERT_DATA or ../shared), or a skip."""
    folder = Path(os.environ.get("STRANDBERT_DATA") or ROOT.parent / "shared")

    def find(relative):
        path = folder / relative
        if not path.exists():
            pytest.skip(f"reference data {relative} is neither in $STRANDBERT_DATA nor in shared/ beside the checkout")
        return path

    return find
