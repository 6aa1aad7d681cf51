"""Tab Embed: many sequences as a map, their nearest neighbours, and how like two sequences or two strands are."""

import gradio as gr
import pandas

from space import answers
from space.files import write_parquet
from space.inputs import InputError, read_labels, read_sequence, read_sequences
from space.models import Models
from space.parts import LONG, QUICK, SERIES, about_line, guarded, sequence_box

MOST_SEQUENCES = 500
MOST_BASES = 200_000  # bp together
MOST_LABELS = len(SERIES)
UNLABELLED = "sequence"
HEADERS = ["name", "label", "bp", "own other strand", "nearest (cosine)"]
WIDTHS = ["190px", "110px", "80px", "110px", "440px"]


def build(models: Models, model: gr.Dropdown, table_text: str, pair_text: str, source: str):
    """Components and events of the tab."""
    gr.Markdown("Vectors of many sequences: which are alike? The map shows their first two principal components.")
    box = sequence_box(
        "DNA sequences",
        f"FASTA, one sequence per line, or a CSV with the columns sequence, label and name. Up to {MOST_SEQUENCES} "
        f"sequences and {MOST_BASES:,} bp together. Labels colour the map.",
        lambda text: read_sequences(text, MOST_SEQUENCES, MOST_BASES),
        [[source, table_text], ["Two sequences: lac and GAL promoters", pair_text]],
    )
    with gr.Row():
        run = gr.Button("Embed", variant="primary")
        cancel = gr.Button("Cancel", scale=0)
    about = gr.HTML()
    chart = gr.ScatterPlot(x="PC1", y="PC2", color="label", tooltip=["name", "label"], visible=False, height=420,
                           show_label=False)  # fmt: skip
    table = gr.Dataframe(visible=False, interactive=False, wrap=True, label="Sequences and their nearest neighbours",
                         datatype="str", max_height=420, column_widths=WIDTHS)  # fmt: skip
    download = gr.DownloadButton("Download vectors (Parquet)", size="sm", visible=False)
    gr.Markdown("How alike are two sequences, and is a sequence like its own reverse complement?")
    with gr.Row():
        first = gr.Textbox(label="First sequence", lines=2, min_width=300, max_lines=4, elem_classes="sb-mono")
        second = gr.Textbox(label="Second sequence", lines=2, min_width=300, max_lines=4, elem_classes="sb-mono")
    compare = gr.Button("Compare")
    likeness = gr.Dataframe(visible=False, interactive=False, datatype="str", label="Cosine similarity of the vectors")
    likeness_about = gr.HTML()

    @guarded
    def on_run(text, name, progress=gr.Progress()):  # noqa: B008 gradio finds it in the signature
        records = read_sequences(text, MOST_SEQUENCES, MOST_BASES)
        labels = read_labels(text) or [UNLABELLED] * len(records)
        if len(set(labels)) > MOST_LABELS:
            kept = set(pandas.Series(labels).value_counts().index[: MOST_LABELS - 1])
            labels = [label if label in kept else "other" for label in labels]
        for found in answers.embed(models.get("language", name), records):
            if isinstance(found, float):
                progress(found, desc="Embedding")
                yield gr.skip()
        data = pandas.DataFrame(found["map"], columns=["PC1", "PC2"])
        data["name"], data["label"] = [record.name[:60] for record in records], [label[:40] for label in labels]
        colours = dict(zip(sorted(set(data["label"])), SERIES, strict=False))
        axes = [f"PC{i} ({share:.0%} of the variance)" for i, share in enumerate(found["explained"], 1)]
        rows = [
            [record.name[:60], label[:40], f"{len(record.sequence):,}", f"{strand:.3f}",
             ", ".join(f"{records[j].name[:60]} ({cosine:.3f})" for j, cosine in near)]
            for record, label, strand, near in zip(records, labels, found["strands"], found["neighbours"], strict=True)
        ]  # fmt: skip
        yield (
            about_line(found["about"], f"{len(records):,} sequences"),
            gr.ScatterPlot(
                data,
                visible=len(records) > 1,
                color_map=colours,
                x_title=axes[0],
                y_title=axes[1],
                x_lim=limits(data["PC1"]),
                y_lim=limits(data["PC2"]),
            ),  # fmt: skip
            gr.Dataframe({"headers": HEADERS, "data": rows}, visible=True),
            gr.DownloadButton(value=write_parquet("embeddings.parquet", found["table"]), visible=True),
        )

    @guarded
    def on_compare(one, other, name):
        found = similarity(models, one, other, name)
        rows = [[what, f"{found[key]:.4f}"] for what, key in (
            ("first and second", "similarity"),
            ("first and reverse complement of second", "similarity_other_strand"),
            ("first and its own reverse complement", "first_strands"),
            ("second and its own reverse complement", "second_strands"),
        )]  # fmt: skip
        shown = gr.Dataframe({"headers": ["compared", "cosine"], "data": rows}, visible=True)
        return shown, about_line(found["about"])

    private = {"api_visibility": "private"}
    work = run.click(on_run, [box, model], [about, chart, table, download], **private, **LONG)
    cancel.click(None, cancels=[work], **private)
    compare.click(on_compare, [first, second, model], [likeness, likeness_about], **private, **QUICK)


def limits(values: pandas.Series) -> list[float]:
    """Range of an axis with room for the points at its ends."""
    room = 0.05 * (values.max() - values.min()) or 1.0
    return [values.min() - room, values.max() + room]


def similarity(models: Models, one: str, other: str, name: str) -> dict:
    """
    Cosines of the vectors of two sequences, of the first with the other strand of the second, and of each with its own.

    Raises:
        InputError: a sequence that cannot be used; says which.
    """
    records = []
    for which, text in (("first", one), ("second", other)):
        try:
            records.append(read_sequence(text, MOST_BASES // 4))
        except InputError as error:
            raise InputError(f"The {which} sequence: {error}") from None
    return answers.compare(models.get("language", name), *records)
