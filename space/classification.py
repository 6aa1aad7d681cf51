"""Tab Classify: probabilities of a fine-tuned model, and which bases it decided on."""

from html import escape

import gradio as gr

from space import answers
from space.inputs import InputError, read_sequences
from space.models import Models
from space.parts import LONG, QUICK, about_line, guarded, letters, sequence_box

MOST_SEQUENCES = 200
MOST_BASES = 50_000  # bp together
MOST_ATTRIBUTED = 600  # bp; some hundred passes with gradients


def build(models: Models, examples: list[dict]):
    """Components and events of the tab."""
    names = models.names("classifier")
    gr.Markdown("Predictions of a fine-tuned model, and the bases that speak for and against them.")
    none = "" if names else "None is installed here. " if models.local else "None is installed here yet."
    own = "The folder of your own can be named, as run_classification.py writes it." if models.local else ""
    model = gr.Dropdown(names, value=next(iter(names), None), label="Fine-tuned model", allow_custom_value=models.local,
                        info=f"{none}{own}" or None)  # fmt: skip
    box = sequence_box(
        "DNA sequences",
        f"FASTA, CSV with a column sequence, or one per line. Up to {MOST_SEQUENCES} sequences and {MOST_BASES:,} bp.",
        lambda text: read_sequences(text, MOST_SEQUENCES, MOST_BASES),
        [[e["title"], e["fasta"]] for e in examples],
    )
    classify = gr.Button("Classify", variant="primary")
    about = gr.HTML()
    table = gr.Dataframe(visible=False, interactive=False, datatype="str", label="Predictions", max_height=420)
    gr.Markdown(
        f"Which bases decide? Integrated gradients, one sequence of up to {MOST_ATTRIBUTED} bp, both strands averaged. "
        "Some seconds."
    )
    with gr.Row():
        explain = gr.Button("Attribute to bases")
        cancel = gr.Button("Cancel", scale=0)
    explain_about = gr.HTML()
    shown = gr.HTML()

    @guarded
    def on_classify(text, name):
        found = answers.classify(models.get("classifier", name), read_sequences(text, MOST_SEQUENCES, MOST_BASES))
        headers = [title for title in found["rows"][0] if title != "record"]
        rows = [[f"{row[h]:.4f}" if isinstance(row[h], float) else str(row[h])[:80] for h in headers]
                for row in found["rows"]]  # fmt: skip
        titles = [header.replace("probability_", "probability of ") for header in headers]
        count = f"{len(rows):,} sequence{'s' * (len(rows) > 1)}"
        return about_line(found["about"], count), gr.Dataframe({"headers": titles, "data": rows}, visible=True)

    @guarded
    def on_explain(text, name, progress=gr.Progress()):  # noqa: B008 gradio finds it in the signature
        loaded = models.get("classifier", name)
        try:
            (record,) = read_sequences(text, 1, MOST_ATTRIBUTED)  # lines are sequences, as for "Classify"
        except InputError as error:
            raise InputError(f"Attribution takes one sequence. {error}") from None
        for found in answers.attribution(loaded, record):
            if isinstance(found, int):
                progress((found, None), desc="Following the gradients", unit="passes")
                yield gr.skip()
        line = escape(
            f"For {found['label']}: logit {found['score']:+.2f}, of the masked sequence {found['baseline']:+.2f}; the "
            f"bases add up to the difference within {found['gap']:.3f}"
        )
        legend = (
            '<p class="sb-about">Blue: speaks for this class; vermillion: against. Point at a base for its number.</p>'
        )
        line = f'<p class="sb-about">{line}.</p>'
        drawn = letters(record.sequence.decode(), found["bases"])
        yield about_line(found["about"], record.name), line + legend + drawn

    private = {"api_visibility": "private"}
    classify.click(on_classify, [box, model], [about, table], **private, **QUICK)
    work = explain.click(on_explain, [box, model], [explain_about, shown], **private, **LONG)
    cancel.click(None, cancels=[work], **private)
