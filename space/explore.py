"""Tab Explore: a sequence as tokens, what the model expects under a mask, and how well it predicts every base."""

import gradio as gr
import pandas

from space import answers
from space.files import write_text
from space.inputs import place_of, read_sequence
from space.models import Models
from space.parts import BASE_COLOURS, BLUE, LONG, ORANGE, QUICK, SERIES, about_line, guarded, sequence_box

MOST_BASES = 20_000  # bp to show and to mask one token of
MOST_PROFILE = 2_000  # bp to predict every base of; the cost grows with the square
LENGTHS = {"1": "#999999", "2-3": "#56B4E9", "4-5": BLUE, "6-7": "#009E73", "8-10": ORANGE, "11 or more": SERIES[3]}


def length_class(length: int) -> str:
    """Key of LENGTHS for a token of so many bp."""
    for name in LENGTHS:
        low, _, high = name.partition("-")
        if length <= int(high or low.split()[0]) or "more" in name:
            return name
    raise AssertionError


def build(models: Models, model: gr.Dropdown, examples: list[dict]):
    """Components and events of the tab."""
    gr.Markdown("See a sequence as the model reads it. Mask a token, and the model says what it expects there.")
    box = sequence_box(
        "DNA sequence",
        f"Plain letters, FASTA, or GenBank lines; one sequence of up to {MOST_BASES:,} bp.",
        lambda text: read_sequence(text, MOST_BASES),
        [[e["title"], e["fasta"]] for e in examples],
    )
    show = gr.Button("Show tokens", variant="primary")
    about = gr.HTML()
    view = gr.HighlightedText(
        label="Tokens, coloured by length in bp; select one to mask it", color_map=LENGTHS, show_legend=True,
        elem_classes="sb-tokens", visible=False,
    )  # fmt: skip
    position = gr.Number(label="Base whose token is masked", precision=0,
                         info="Position, from 1 or as a FASTA name such as chr1:1001-2000 says; 0 or empty: "
                              "the first")  # fmt: skip
    fill = gr.Button("Mask and predict")
    fill_about = gr.HTML()
    with gr.Row():
        predictions = gr.Dataframe(label="Tokens the model expects", interactive=False, datatype="str", visible=False)
        bases = gr.BarPlot(
            x="base", y="probability", color="letter", color_map=BASE_COLOURS, visible=False, sort=None,
            y_lim=[0, 1], x_title="bases of the masked token", y_title="probability", color_title="expected",
            label="Bases under the mask, as the model expects them from the rest of the sequence",
        )  # fmt: skip
    gr.Markdown(f"How well does the model predict each base? Every token is masked in turn, up to {MOST_PROFILE:,} bp.")
    with gr.Row():
        profile = gr.Button("Predict every base")
        cancel = gr.Button("Cancel", scale=0)
    profile_about = gr.HTML()
    plot = gr.LinePlot(x="position", y="probability", y_lim=[0, 1], visible=False, height=260,
                       x_title="position", y_title="probability of the base that is there")  # fmt: skip
    table = gr.DownloadButton("Download all probabilities (TSV)", size="sm", visible=False)

    @guarded
    def on_show(text, name):
        found = answers.tokens(models.get("language", name), read_sequence(text, MOST_BASES))
        pieces = [(token["text"], length_class(len(token["text"]))) for token in found["tokens"]]
        return gr.HighlightedText(pieces, visible=True), about_line(found["about"], found["name"])

    @guarded
    def on_fill(text, name, base):
        record = read_sequence(text, MOST_BASES)
        return masked(name, record, int(base) - place_of(record)[1] if base else 0)

    @guarded
    def on_select(text, name, event: gr.SelectData):
        loaded, record = models.get("language", name), read_sequence(text, MOST_BASES)
        pieces = answers.tokens(loaded, record)["tokens"]
        index = event.index[0] if isinstance(event.index, list | tuple) else event.index
        start = pieces[min(int(index), len(pieces) - 1)]["start"]
        return place_of(record)[1] + start, *masked(name, record, start)

    def masked(name, record, index):
        found = answers.fill_mask(models.get("language", name), record, index)
        first = place_of(record)[1] + found["start"]
        last = first + len(found["token"]) - 1
        rows = [
            {"base": f"{first + i} {found['token'][i]}", "letter": letter, "probability": value}
            for i, row in enumerate(found["given_context"])
            for letter, value in zip("ACGT", row, strict=True)
        ]
        line = f"{found['token']} at {first}-{last}, expected with {found['probability']:.1%}"
        shares = [[row["token"], f"{row['probability']:.2%}"] for row in found["predictions"]]
        return (
            about_line(found["about"], line),
            gr.Dataframe({"headers": ["token", "probability"], "data": shares}, visible=True),
            gr.BarPlot(pandas.DataFrame(rows), visible=True),
        )

    @guarded
    def on_profile(text, name, progress=gr.Progress()):  # noqa: B008 gradio finds it in the signature
        record = read_sequence(text, MOST_PROFILE)
        for found in answers.base_probabilities(models.get("language", name), record):
            if isinstance(found, float):
                progress(found, desc="Predicting every base")
                yield gr.skip()
        contig, first = place_of(record)
        own = [row["ACGT".index(base)] if base in "ACGT" else None
               for base, row in zip(record.sequence.decode(), found["given_context"], strict=True)]  # fmt: skip
        data = pandas.DataFrame({"position": range(first, first + len(own)), "probability": own}).dropna()
        title = f"Mean {data['probability'].mean():.1%}; a quarter would be chance"
        text = answers.probability_table(record, found["given_rest"], found["given_context"])
        yield (
            gr.LinePlot(data, visible=True, label=title),
            about_line(found["about"], contig),
            gr.DownloadButton(value=write_text("base_probabilities.tsv", text), visible=True),
        )

    private = {"api_visibility": "private"}
    show.click(on_show, [box, model], [view, about], **private, **QUICK)
    fill.click(on_fill, [box, model, position], [fill_about, predictions, bases], **private, **QUICK)
    view.select(on_select, [box, model], [position, fill_about, predictions, bases], **private, **QUICK)
    work = profile.click(on_profile, [box, model], [plot, profile_about, table], **private, **LONG)
    cancel.click(None, cancels=[work], **private)
