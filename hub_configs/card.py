"""
Model cards, made from hub_configs/models.toml, config.json and the measured rows in benchmarks/results.

    python -m hub_configs.card            write hub_configs/NAME/README.md for every model with its config.json there
    python -m hub_configs.card --check    exit code 1 when a card is not what its sources give (`make check-cards`)

Change the sources, never the card.
"""

import argparse
import csv
import json
import sys
from pathlib import Path

from tokenization.tokenizer_files import write_text_atomically

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
MODELS_FILE = ROOT / "hub_configs" / "models.toml"
NEEDED = ("title", "version", "summary", "config", "architecture", "parameters", "tokenizer", "papers", "licence")
TAGS = ("dna", "genomics", "biology", "strandbert", "custom_code")
HEADS = {
    "StrandBertForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "StrandBertForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "StrandBertForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "StrandBertModel": ("AutoModel", "feature-extraction"),
}
BIBTEX = {
    "arXiv:2306.15006": """@article{zhou2023dnabert2,
  title={{DNABERT-2}: Efficient Foundation Model and Benchmark For Multi-Species Genome},
  author={Zhou, Zhihan and Ji, Yanrong and Li, Weijian and Dutta, Pratik and Davuluri, Ramana and Liu, Han},
  journal={arXiv preprint arXiv:2306.15006}, year={2023}
}""",
    "arXiv:2409.15697": """@article{zhao2024dnagrinder,
  title={{dnaGrinder}: a lightweight and high-capacity genomic foundation model},
  author={Zhao, Qihang and Zhang, Chi and Zhang, Weixiong},
  journal={arXiv preprint arXiv:2409.15697}, year={2024}
}""",
}
EMBED = """Vectors for sequences of any length (mean over the tokens, without [CLS] and [SEP]):

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("{repository}", trust_remote_code=True)
vectors = model.embed(["ACGTTGCATTAC", "TATAAAGGC"])  # (sequences, hidden)
```"""
USE = {
    "fill-mask": """Fill a mask:

```python
from transformers import pipeline

fill = pipeline("fill-mask", "{repository}", trust_remote_code=True)
print(fill("ACGTTGCA[MASK]TTACGGATCC")[0]["token_str"])
```""",
    "text-classification": """Classify sequences:

```python
from transformers import pipeline

classify = pipeline("text-classification", "{repository}", trust_remote_code=True)
print(classify("ACGTTGCATTACGGATCC"))
```""",
    "token-classification": """Label tokens:

```python
from transformers import pipeline

label = pipeline("token-classification", "{repository}", trust_remote_code=True)
print(label("ACGTTGCATTACGGATCC"))
```""",
}


class CardError(ValueError):
    """models.toml or a CSV does not hold what a card needs; the message names the place."""


def read_models(path: Path = MODELS_FILE) -> dict[str, dict]:
    """Name -> row of models.toml. Raises CardError naming the row and what it lacks."""
    try:
        models = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CardError(f"{path}: {error}") from None
    for name, row in models.items():
        absent = [key for key in (*NEEDED, "weights", "training", "limits") if key not in row]
        if absent:
            raise CardError(f"{path}: [{name}] lacks {', '.join(absent)}")
        if not isinstance(row["parameters"], int):
            raise CardError(f"{path}: [{name}] parameters is {row['parameters']!r}; a whole number is needed")
        wrong = [paper for paper in row["papers"] if not str(paper).startswith("arXiv:")]
        if wrong:
            raise CardError(f"{path}: [{name}] papers holds {wrong[0]!r}; give it as arXiv:NUMBER")
    return models


def card(name: str, row: dict, published: dict | None = None, repository: str | None = None) -> str:
    """
    The model card of one row of models.toml, Markdown with YAML front matter.

    published: config.json of the folder that the card goes into, with weights; None for the card in hub_configs/.
    repository: the Hub name in the examples (default: the model's own name).

    Raises CardError for a result file that is absent or lacks a column.
    """
    config = published or json.loads((ROOT / row["config"]).read_text())
    weights = "shipped" if published else row["weights"]
    parts = [
        front_matter(row, HEADS[config["architectures"][0]][1]),
        f"# {row['title']}\n\n{line(row['summary'])}\n\nVersion {row['version']}. {weights_note(name, row, weights)}",
        sizes(row),
        use(name, row, weights, config["architectures"][0], repository or (name if published else _folder(name, row))),
        "## Intended use and limits\n\nResearch on DNA sequences: embeddings, fine-tuning, scoring of variants. Not "
        f"for decisions about patients.\n\n{line(row['limits'])} It says nothing about a species or a region that is "
        "unlike its training data; check results against held-out data of your own.",
        f"## Training\n\n{line(row['training'])}",
        measured(name, row),
        citation(row),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def line(text: str) -> str:
    """A text of several source lines as one paragraph."""
    return " ".join(text.split())


def front_matter(row: dict, task: str) -> str:
    """YAML that the Hub reads: licence, library, task, tags, data sets, metrics, base model."""
    fields = {
        "license": row["licence"].lower(),
        "library_name": "transformers",
        "pipeline_tag": task,
        "tags": list(TAGS),
        "datasets": row.get("datasets"),
        "metrics": row.get("metrics"),
        "base_model": row.get("base_model"),
    }
    lines = []
    for key, value in fields.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"- {item}" for item in value)]
        elif value:
            lines.append(f"{key}: {value}")
    return "\n".join(["---", *lines, "---"])


def weights_note(name: str, row: dict, weights: str) -> str:
    """Where the weights are."""
    if weights == "convert":
        return (
            "Weights are made on your machine from the published checkpoint: `python -m hub_configs.convert "
            f"{row['original']} {name}`."
        )
    return "Weights are in `model.safetensors`." if weights == "shipped" else "There are no weights to load."


def _folder(name: str, row: dict) -> str:
    """From where a model without a repository is loaded."""
    # "./": from another folder it is an error, not the name of somebody's repository on the Hub
    return f"./{Path(row['config']).parent}" if row["weights"] == "shipped" else name


def use(name: str, row: dict, weights: str, architecture: str, repository: str) -> str:
    """Code that loads the model; for a recipe without weights, the command that trains it."""
    if weights == "none":
        folder = row["config"].removesuffix("/config.json")
        return (
            f"## Use\n\nTrain it with `accelerate launch run_mlm.py --config_name {folder} --tokenizer_name "
            f"my_tokenizer --train_file genome.fa.gz --output_dir {name}`."
        )
    auto_class, task = HEADS[architecture]
    others = "the other Auto classes load them too, with a new head where they have one."
    if "Classification" in architecture:
        others = "`AutoModel` loads the encoder alone."
    examples = "\n\n".join(text.format(repository=repository) for text in (USE.get(task, ""), EMBED) if text)
    return (
        f"## Use\n\nNothing but `torch` and `transformers` (4.57 to 5.x) is needed. The weights are those of "
        f"`{auto_class}`; {others}\n\n{examples}"
    )


def sizes(row: dict) -> str:
    """Table of what the model is."""
    papers = ", ".join(f"[{p}](https://arxiv.org/abs/{p.removeprefix('arXiv:')})" for p in row["papers"]) or "none"
    rows = [
        ("architecture", row["architecture"]),
        ("parameters", f"{row['parameters']:,}"),
        ("tokenizer", row["tokenizer"]),
        ("papers", papers),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows)


def measured(name: str, row: dict) -> str:
    """Speed and GUE tables from the CSV files that the row names; empty when it names none."""
    parts = []
    if row.get("speed"):
        parts.append(speed_table(row["speed"]))
    if row.get("gue"):
        parts.append(gue_table(row["gue"], name))
    return "## Measured\n\n" + "\n\n".join(parts) if parts else ""


def speed_table(file: str) -> str:
    """
    Tokens per second of the rows "strandbert", beside the released architecture measured in the same run.

    The last run of a case counts. Rows of one long sequence are left out: they have no rival.
    """
    key = ("case", "dtype", "device", "machine", "threads")
    rows = read_rows(file, (*key, "model", "tokens_per_s", "strandbert_is_faster_by"))
    rival = {tuple(r[k] for k in key): r for r in rows if r["model"] == "dnabert2_released"}
    lines = [
        "| sequences x tokens | device | precision | tokens/s | times the released architecture |",
        "|---|---|---|---|---|",
    ]
    ours = {tuple(r[k] for k in key): r for r in rows if r["model"] == "strandbert" and r["case"] != "one sequence"}
    for place, row in ours.items():
        other = rival.get(place)
        faster = f"{float(other['strandbert_is_faster_by']):.2f}" if other else "not measured"
        where = f"{row['machine']}, {row['threads']} threads" if row["device"] == "cpu" else row["machine"]
        lines.append(f"| {row['case']} | {where} | {row['dtype']} | {float(row['tokens_per_s']):,.0f} | {faster} |")
    return f"Encoder, random weights of these sizes (`{file}`):\n\n" + "\n".join(lines)


def gue_table(file: str, name: str) -> str:
    """Mean and deviation over seeds of every GUE task that gue.run has fine-tuned this model on."""
    from gue.report import measured_scores
    from gue.results import read_results
    from gue.tasks import TASKS

    try:
        scores = measured_scores(read_results(ROOT / file)).get(name)
    except ValueError as error:
        raise CardError(f"{ROOT / file}: {error}") from None
    if not scores:
        raise CardError(f"{ROOT / file} has no row of {name}")
    lines = ["| GUE task | metric | score x 100 | seeds |", "|---|---|---|---|"]
    for task in (task for task in TASKS.values() if task.name in scores):
        cell = scores[task.name]
        lines.append(f"| {task.name} | {task.metric} | {cell.text(task.metric)} | {len(cell.seeds)} |")
    return f"Fine-tuned on GUE (`{file}`):\n\n" + "\n".join(lines)


def read_rows(file: str, columns: tuple[str, ...]) -> list[dict]:
    """Rows of a result file. Raises CardError when it is absent or lacks a column."""
    path = ROOT / file
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise CardError(f"{path}: {error.strerror}") from None
    absent = [column for column in columns if not rows or column not in rows[0]]
    if absent:
        raise CardError(f"{path} lacks the columns {', '.join(absent)}")
    return rows


def citation(row: dict) -> str:
    """How to cite: the papers of the row, one that is not in BIBTEX by its number alone; empty when it names none."""
    entries = [BIBTEX.get(paper) or numbered_entry(paper.removeprefix("arXiv:")) for paper in row["papers"]]
    return "## Citation\n\n```bibtex\n" + "\n".join(entries) + "\n```" if entries else ""


def numbered_entry(number: str) -> str:
    """BibTeX of an arXiv paper of which only the number is known."""
    return (
        f"@misc{{arxiv{number}, eprint={{{number}}}, archivePrefix={{arXiv}}, url={{https://arxiv.org/abs/{number}}}}}"
    )


def is_here(name: str, row: dict) -> bool:
    """Whether a model's config.json is in hub_configs/NAME; the README.md beside any other is not ours to write."""
    return row["config"] == f"hub_configs/{name}/config.json"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hub_configs.card", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare only; write nothing")
    options = parser.parse_args(arguments)
    try:
        cards = {ROOT / "hub_configs" / n / "README.md": card(n, r) for n, r in read_models().items() if is_here(n, r)}
        stale = [path for path, text in cards.items() if not path.is_file() or path.read_text() != text]
        if options.check and stale:
            names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
            print(f"not what its sources give: {names}; run `python -m hub_configs.card`", file=sys.stderr)
            return 1
        for path in stale:
            write_text_atomically(path, cards[path])
            print(f"wrote {path.relative_to(ROOT)}")
    except (CardError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(cards)} cards agree with their sources")
    return 0


if __name__ == "__main__":
    sys.exit(main())
