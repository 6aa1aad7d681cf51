"""One server with a small random model and classifier for the whole session, a client, and a browser."""

import os
import shutil
from pathlib import Path

import pytest

from ..conftest import ROOT
from ..inference.conftest import save_model

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
LABELS = {0: "background", 1: "promoter <b>x</b>"}


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A language model "small" and a classifier "head", on the list; a visitor may name no other."""
    from modeling import StrandBertForMaskedLM, StrandBertForSequenceClassification
    from space.models import Models

    folder = tmp_path_factory.mktemp("models")
    labels = {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}
    small = save_model(folder / "small", StrandBertForMaskedLM)
    head = save_model(folder / "head", StrandBertForSequenceClassification, seed=1, **labels)
    return Models({"language": {"small": str(small)}, "classifier": {"head": str(head)}}, local=False)


@pytest.fixture(scope="session")
def uploads(tmp_path_factory):
    """Folder of what users upload and download."""
    folder = tmp_path_factory.mktemp("uploads")
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def server(models, uploads):
    """Address of the running demo."""
    pytest.importorskip("gradio", reason="the demo needs gradio: pip install '.[space]'")
    from space import app

    demo = app.build(models)
    _, url, _ = app.launch(demo, prevent_thread_lock=True, quiet=True)
    yield url
    demo.close()


@pytest.fixture(scope="session")
def client(server):
    from gradio_client import Client

    return Client(server, verbose=False)


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
    if CHROMIUM is None:
        pytest.skip("browser tests need chromium on the PATH")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, server):
    """A new visitor's page, with the first tab shown; an error in the browser's own code fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
    page.goto(server)
    page.get_by_role("button", name="Show tokens").wait_for()
    yield page
    context.close()
    assert errors == []


@pytest.fixture(scope="session")
def examples():
    from space.app import read_examples

    return read_examples()


def axe_source() -> str | None:
    """Code of axe-core where npm has put it: $STRANDBERT_AXE, else build/ (by .ci/run), in or beside the checkout."""
    folders = (ROOT / "build", ROOT, ROOT.parent)
    places = [os.environ.get("STRANDBERT_AXE", ""), *(f / "node_modules/axe-core/axe.min.js" for f in folders)]
    return next((Path(place).read_text(encoding="utf-8") for place in places if place and Path(place).is_file()), None)
