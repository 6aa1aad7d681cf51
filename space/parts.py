"""What all tabs share: the look, input with upload, the line about a result, errors, and letters drawn as HTML."""

import functools
import inspect
import math
from collections.abc import Callable
from html import escape

import gradio as gr

from corpus.vcf_files import VariantError
from inference.jobs import USER_ERRORS
from space.inputs import UPLOAD_SUFFIXES, InputError, read_upload

# The colours of Okabe and Ito, which colour-blind people can tell apart
BLUE, VERMILLION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
BASE_COLOURS = {"A": GREEN, "C": BLUE, "G": ORANGE, "T": VERMILLION}
SERIES = [BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", VERMILLION, "#F0E442", "#999999"]
# Groups of events that share the processor: short answers do not wait for long work.
QUICK = {"concurrency_id": "quick", "concurrency_limit": 2}
LONG = {"concurrency_id": "long", "concurrency_limit": 1}
UNDER_TEXT = 0.6  # opacity of the strongest tint below letters, which stay readable on it, light and dark

THEME = gr.themes.Default(
    primary_hue="blue",
    neutral_hue="slate",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
).set(  # contrast of at least 4.5 to 1
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
)
CSS = """
.sb-about { color: var(--body-text-color-subdued); font-size: var(--text-sm); overflow-wrap: anywhere; margin: 0; }
.sb-scroll { overflow-x: auto; padding-bottom: 4px; }
.sb-heat { border-collapse: separate; border-spacing: 1px; font: var(--text-sm) var(--font-mono); margin: 0;
  width: auto; border: 0 !important; }
.sb-heat th, .sb-heat td { border: 0; padding: 0; text-align: center; min-width: 18px; height: 22px; font-weight: 400;
  color: var(--body-text-color); }
.sb-heat .sb-position { font-size: var(--text-xs); text-align: left; white-space: nowrap; }
.sb-heat tbody th { position: sticky; left: 0; background: var(--body-background-fill); padding: 0 6px; }
.sb-heat td[data-variant] { cursor: pointer; }
.sb-heat td[data-variant]:hover { outline: 2px solid var(--body-text-color); }
.sb-heat td.sb-own { color: var(--body-text-color-subdued); }
.sb-letters, .sb-letters b { font-family: var(--font-mono); line-height: 1.8; }
.sb-letters .sb-ten { display: inline-block; white-space: nowrap; margin-right: 12px; }
.sb-letters .sb-count { color: var(--body-text-color-subdued); font-size: var(--text-xs); margin-right: 4px; }
.sb-letters b { font-weight: 400; padding: 1px 0; }
.sb-mono textarea { font-family: var(--font-mono); }
.dark .sb-tokens button, .dark .sb-tokens .textfield span { color: var(--body-text-color) !important; }
.sb-tokens .textfield { font-family: var(--font-mono); line-height: 2; }
"""


def guarded(function: Callable, rendered: bool = True) -> Callable:
    """
    The handler, whose errors about the input are shown as text.

    rendered: a page renders them as HTML, so user text in them is escaped; programs get them as they are.
    """

    def shown(error: Exception) -> gr.Error:
        return gr.Error(escape(str(error)) if rendered else str(error), print_exception=False)

    known = (InputError, VariantError, *USER_ERRORS)
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def handler(*arguments, **options):
            try:
                yield from function(*arguments, **options)
            except known as error:
                raise shown(error) from None
    else:

        @functools.wraps(function)
        def handler(*arguments, **options):
            try:
                return function(*arguments, **options)
            except known as error:
                raise shown(error) from None

    return handler


def about_line(about: dict, name: str = "") -> str:
    """One line: what was computed, by which model, backend, device and dtype, how much, how long."""
    parts = [about["model"], about["backend"], about["device"], about["dtype"], f"{about['bp']:,} bp"]
    parts += [] if about["tokens"] is None else [f"{about['tokens']:,} tokens"]
    parts.append(f"{about['seconds']:.2f} s")
    return f'<p class="sb-about">{escape(" · ".join([name[:80], *parts] if name else parts))}</p>'


def sequence_box(
    label: str, limits: str, check: Callable[[str], object], examples: list[list], extra: list = ()
) -> gr.Textbox:
    """
    A text box with upload, stated limits and examples.

    check: raises InputError for an uploaded text that the tab cannot use. extra: components that an example fills, too.
    """
    box = gr.Textbox(label=label, info=limits, lines=5, max_lines=12, elem_classes="sb-mono",
                     placeholder=">name\nACGT...")  # fmt: skip
    upload = gr.UploadButton("Upload a file", size="sm", file_types=UPLOAD_SUFFIXES, type="filepath")

    @guarded
    def on_upload(path):
        text = read_upload(path)
        check(text)
        return text

    upload.upload(on_upload, upload, box, api_visibility="private", **QUICK)
    gr.Examples([values for _, *values in examples], [box, *extra], example_labels=[title for title, *_ in examples],
                label="Examples", api_visibility="private")  # fmt: skip
    return box


def tint(share: float, strongest: float) -> str:
    """Background of a value -1 .. 1: vermillion below 0, blue above; farther from 0 more opaque, up to `strongest`."""
    red, green, blue = (213, 94, 0) if share < 0 else (0, 114, 178)
    return f"rgba({red},{green},{blue},{strongest * min(1.0, abs(share)):.3f})"


def heat_map(sequence: str, first: int, contig: str, rows: list[list[float | None]]) -> str:
    """
    Table of positions by bases; a cell's `data-variant` says the change. sequence: letters ACGTN of the positions.

    rows: scores (positions, 4) in the order A, C, G, T.
    """
    limit = max((abs(value) for row in rows for value in row if value), default=1.0)
    place = escape(contig, quote=True)
    marks, heads, lines = [], [], {base: [] for base in "ACGT"}
    for offset, (letter, row) in enumerate(zip(sequence, rows, strict=True)):
        position = first + offset
        if offset % 10 == 0:
            marks.append(f'<td class="sb-position" colspan="{min(10, len(sequence) - offset)}">{position}</td>')
        heads.append(f'<th scope="col">{letter}</th>')
        for base, value in zip("ACGT", row, strict=True):
            if value is None or base == letter:
                lines[base].append('<td class="sb-own">·</td>' if base == letter else "<td></td>")
                continue
            change = f"{place}:{position} {letter}&gt;{base}"
            lines[base].append(
                f'<td data-variant="{change}" title="{change}: {value:+.2f} nats" '
                f'style="background:{tint(value / limit, 1.0)}"></td>'
            )
    body = "".join(f'<tr><th scope="row">{base}</th>{"".join(cells)}</tr>' for base, cells in lines.items())
    return (
        f'<p class="sb-about">Vermillion: less likely than the base that is there (down to {-limit:.1f} nats); blue: '
        "more likely. Select a cell to score that variant in full.</p>"
        '<div class="sb-scroll" role="region" aria-label="Heat map, positions by bases" tabindex="0">'
        f'<table class="sb-heat"><thead><tr><td></td>{"".join(marks)}</tr>'
        f"<tr><td></td>{''.join(heads)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def letters(sequence: str, values: list[float]) -> str:
    """A sequence in groups of ten, each base tinted by its value; blue for, vermillion against."""
    limit = sorted(map(abs, values))[int(0.98 * len(values))] or 1.0  # a few bases at the ends may dwarf all others
    groups = []
    for low in range(0, len(sequence), 10):
        part = zip(sequence[low : low + 10], values[low : low + 10], range(low + 1, low + 11), strict=False)
        shown = "".join(
            f'<b style="background:{tint(value / limit, UNDER_TEXT)}" '
            f'title="{letter} {place}: {value:+.3f}">{letter}</b>'
            for letter, value, place in part
        )
        count = f'<span class="sb-count">{low + 1:>{1 + int(math.log10(len(sequence)))}}</span>'
        groups.append(f'<span class="sb-ten">{count}{shown}</span> ')
    return f'<div class="sb-letters">{"".join(groups)}</div>'
