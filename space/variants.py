"""Tab Variants: every single-base change of a stretch as a heat map, and full scores of one variant."""

import gradio as gr

from space import answers
from space.files import write_text
from space.inputs import parse_variant, place_of, read_sequence
from space.models import Models
from space.parts import LONG, QUICK, about_line, guarded, heat_map, sequence_box

MOST_BASES = 50_000  # bp of the sequence, which gives the flanks
MOST_MUTATED = 100  # bp of the stretch
# A click in the table, whose cells say the change in data-variant, becomes an event of the component.
ON_CLICK = """element.addEventListener('click', (event) => {
  const cell = event.target.closest('[data-variant]');
  if (cell) trigger('select', {index: 0, value: cell.dataset.variant});
});"""


def build(models: Models, model: gr.Dropdown, examples: list[dict]):
    """Components and events of the tab."""
    gr.Markdown("How does the model rate changes of a sequence? Negative: less likely than what is there.")
    variant = gr.Textbox(label="Variant", info="chr:pos ref>alt, for example chr1:159204893 T>C; or 120 A>G",
                         max_length=500, render=False)  # fmt: skip
    box = sequence_box(
        "Reference sequence",
        f"One sequence of up to {MOST_BASES:,} bp. A FASTA name such as chr1:1001-2000 says where it lies; without "
        "one, positions count from 1.",
        lambda text: read_sequence(text, MOST_BASES),
        [[e["title"], e["fasta"], e["variant"]] for e in examples],
        [variant],
    )
    variant.render()
    score = gr.Button("Score variant", variant="primary")
    about = gr.HTML()
    table = gr.Dataframe(visible=False, interactive=False, datatype="str", wrap=True, label="Scores",
                         column_widths=["220px", "100px", "380px"])  # fmt: skip
    gr.Markdown(f"Every change at every position of a stretch of up to {MOST_MUTATED} bp: in-silico mutagenesis.")
    with gr.Row():
        centre = gr.Textbox(label="Centre", info="Position; if empty, where the change above is", max_length=20)
        width = gr.Slider(10, MOST_MUTATED, 40, step=10, label="Width (bp)")
    with gr.Row():
        run = gr.Button("Mutate every base")
        cancel = gr.Button("Cancel", scale=0)
    map_about = gr.HTML()
    chart = gr.HTML(js_on_load=ON_CLICK)
    download = gr.DownloadButton("Download scores (TSV)", size="sm", visible=False)

    @guarded
    def on_score(sequence, text, name):
        record = read_sequence(sequence, MOST_BASES)
        found = answers.score_variant(models.get("language", name), record, *parse_variant(text, record))
        rows = [
            ["log-likelihood ratio (nats)", f"{found['llr']:+.3f}", "negative: ALT is less likely given its flanks"],
            ["pseudo-log-likelihood (nats)", f"{found['pll']:+.3f}", "also what the change does to its neighbours"],
            ["cosine distance", f"{found['distance']:.5f}", "of the vectors of both windows; 0: none"],
        ]
        shown = gr.Dataframe({"headers": ["score", "value", "what it says"], "data": rows}, visible=True)
        return about_line(found["about"], found["variant"]), shown

    @guarded
    def on_select(sequence, name, event: gr.SelectData):
        return str(event.value)[:500], *on_score(sequence, str(event.value)[:500], name)

    @guarded
    def on_run(sequence, text, name, middle, size, progress=gr.Progress()):  # noqa: B008 gradio finds it in the signature
        record = read_sequence(sequence, MOST_BASES)
        contig, first = place_of(record)
        start, end = stretch(record, text, middle, size)
        for found in answers.mutate(models.get("language", name), record, start, end):
            if isinstance(found, float):
                progress(found, desc="Mutating every base")
                yield gr.skip()
        part = record.sequence[start:end].decode()
        scores = write_text("mutagenesis.tsv", tsv(part, first + start, found["llr"]))
        yield (
            about_line(found["about"], f"{contig}:{first + start}-{first + end - 1}"),
            heat_map(part, first + start, contig, found["llr"]),
            gr.DownloadButton(value=scores, visible=True),
        )

    private = {"api_visibility": "private"}
    score.click(on_score, [box, variant, model], [about, table], **private, **QUICK)
    variant.submit(on_score, [box, variant, model], [about, table], **private, **QUICK)
    chart.select(on_select, [box, model], [variant, about, table], **private, **QUICK)
    work = run.click(on_run, [box, variant, model, centre, width], [map_about, chart, download], **private, **LONG)
    cancel.click(None, cancels=[work], **private)


def stretch(record, variant: str, centre: str, width: float) -> tuple[int, int]:
    """[start, end) in bp from 0 around the centre, else around the variant, else around the middle of the sequence."""
    _, first = place_of(record)
    size, length = max(1, min(int(width), MOST_MUTATED)), len(record.sequence)
    if centre.strip():
        digits = centre.strip().rpartition(":")[2].replace(",", "")
        middle = int(digits) - first if digits.isdecimal() else -1
    elif variant.strip():
        middle = parse_variant(variant, record)[0]
    else:
        middle = length // 2
    if not 0 <= middle < length:
        return -1, -1  # the answer says which positions there are
    start = max(0, min(middle - size // 2, length - size))
    return start, min(start + size, length)


def tsv(sequence: str, first: int, rows: list[list[float | None]]) -> str:
    """Scores as tab-separated text, as `inference.mutagenesis` writes them."""
    lines = ["\t".join(["position", "base", *"ACGT"])]
    for position, base, row in zip(range(first, first + len(rows)), sequence, rows, strict=True):
        lines.append("\t".join([str(position), base, *("." if value is None else f"{value:.6g}" for value in row)]))
    return "\n".join(lines) + "\n"
