"""
The demo of StrandBERT in a browser.

    make demo
    python -m space.app --model my_model --classifier my_finetuned_model

opens it on this machine. Without --model it shows the models of space/models.toml. As a Hugging Face Space the same
file runs by itself; `python -m hub_configs.publish --space` makes the repository for it.
"""

import argparse
import csv
import os
import signal
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # a Space runs this file by its path

import gradio as gr  # noqa: E402
import torch  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402

from space import api, benchmarks, classification, embedding, explore, variants  # noqa: E402
from space.files import keep_swept  # noqa: E402
from space.inputs import UPLOAD_BYTES, InputError  # noqa: E402
from space.limits import BodyLimit  # noqa: E402
from space.models import ENVIRONMENT, Models, read_sources, tomllib  # noqa: E402
from space.parts import CSS, THEME  # noqa: E402

LOOPBACK = ("127.0.0.1", "localhost", "::1")
BODY_BYTES = 2 * UPLOAD_BYTES  # of any request: the largest file fits, also as text within JSON
MOST_WAITING = 100  # requests in the queue; more are refused with a message
FILES_CHECKED, FILES_KEPT = 60, 3600  # seconds


def read_examples() -> list[dict]:
    """Examples with `title`, `source`, `fasta` and `variant`."""
    content = tomllib.loads((ROOT / "space" / "examples" / "sequences.toml").read_text(encoding="utf-8"))
    return [{**row, "fasta": f">{row['name']} {row['source']}\n{row['sequence']}\n"} for row in content["example"]]


def build(models: Models) -> gr.Blocks:
    """The app with all tabs and endpoints; nothing is computed."""
    examples = read_examples()
    table = (ROOT / "space" / "examples" / "species.csv").read_text(encoding="utf-8")
    number = len(list(csv.reader(table.splitlines()))) - 1
    with gr.Blocks(title="StrandBERT", analytics_enabled=False) as demo:
        gr.Markdown("# StrandBERT\n\nA DNA language model to look into: tokens, vectors, predictions, variants.")
        names = models.names("language")
        own = " Or the folder or Hub name of another StrandBERT." if models.local else ""
        model = gr.Dropdown(names, value=names[0], label="Language model", allow_custom_value=models.local,
                            info=f"Used by Explore, Embed and Variants.{own}")  # fmt: skip
        with gr.Tabs():
            with gr.Tab("Explore"):
                explore.build(models, model, examples)
            with gr.Tab("Embed"):
                pair = "".join(row["fasta"] for row in (examples[1], examples[3]))
                embedding.build(models, model, table, pair, f"{number} pieces of five genomes, 400 bp each")
            with gr.Tab("Classify"):
                classification.build(models, examples)
            with gr.Tab("Variants"):
                variants.build(models, model, examples)
            with gr.Tab("Benchmarks"):
                benchmarks.build()
        with gr.Accordion("Sources of the examples, limits, and what happens to your data", open=False):
            gr.Markdown(about_text(examples))
        api.add_endpoints(models)
    return demo.queue(max_size=MOST_WAITING, default_concurrency_limit=1)


def launch(demo: gr.Blocks, share: bool = False, **options):
    """
    Start the server with the look and the limits of the demo; options as of `Blocks.launch`, which left alone would
    give the page a public address on hosted notebooks.
    """
    limits = {
        "max_file_size": UPLOAD_BYTES,
        "app_kwargs": {"middleware": [Middleware(BodyLimit, most_bytes=BODY_BYTES)]},
        "ssr_mode": False,
    }
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # else browsers keep what was computed
    return demo.launch(theme=THEME, css=CSS, footer_links=["api"], share=share, **limits, **options)


def about_text(examples: list[dict]) -> str:
    """What the foot of the page says, Markdown."""
    sources = "\n".join(f"- {row['title']}: {row['source']}." for row in examples)
    return (
        f"{sources}\n- Pieces of five genomes: human GRCh38 chr1, yeast S288C chrII (SGD R64-2-1), E. coli K-12 MG1655 "
        "NC_000913.3, phage lambda NC_001416.1, SARS-CoV-2 NC_045512.2; each name says where it was cut.\n\n"
        f"Sequences are read in the letters A, C, G, T; U is read as T, ambiguity codes as N. A file may have "
        f"{UPLOAD_BYTES / 1e6:.0f} MB. An upload is deleted as soon as it is read, a result file within two hours; "
        "nothing else is stored. Long work waits in a queue and can be cancelled.\n\n"
        "For research. Scores of variants are not a diagnosis."
    )


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m space.app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="pre-trained StrandBERT: folder or Hub name (or $STRANDBERT_DEMO_MODEL)")
    parser.add_argument("--classifier", help="fine-tuned model: folder or Hub name (or $STRANDBERT_DEMO_CLASSIFIER)")
    parser.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
                        help="address to listen on; 0.0.0.0 lets others in, who may use listed models only "
                             "(default: %(default)s)")  # fmt: skip
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    options = parser.parse_args(arguments)
    for kind, named in (("language", options.model), ("classifier", options.classifier)):
        if named:
            os.environ[ENVIRONMENT[kind]] = named
    on_a_space = bool(os.environ.get("SPACE_ID"))
    host = "0.0.0.0" if on_a_space else options.host
    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        parser.error(f"--device {options.device}: " + str(error).partition("\n")[0])
    shared = os.environ.get("GRADIO_SHARE", "").lower() == "true" and not on_a_space
    models = Models(read_sources(), local=host in LOOPBACK and not shared, device=options.device)
    if not models.names("language"):
        sys.exit("error: no model of space/models.toml is there; name one: make demo MODEL=folder")
    try:
        for kind in ENVIRONMENT:
            if models.names(kind):
                loaded = models.get(kind)
                if loaded.encoder:
                    loaded.encoder([b"ACGT"])  # compiles it where that was not done before
    except InputError as error:
        sys.exit(f"error: {error}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that what users left is deleted then, too
    try:
        with tempfile.TemporaryDirectory(prefix="strandbert-demo-", dir=os.environ.get("GRADIO_TEMP_DIR")) as folder:
            os.environ["GRADIO_TEMP_DIR"] = folder
            keep_swept(Path(folder), FILES_CHECKED, FILES_KEPT)
            launch(build(models), shared, server_name=host, server_port=options.port)
    except (OSError, OverflowError) as error:  # a port that is taken or no port, an address of another machine
        sys.exit(f"error: {str(error).partition('. You can')[0]}")  # the rest is advice to programmers


if __name__ == "__main__":
    main()
