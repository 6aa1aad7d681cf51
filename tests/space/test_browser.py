"""The pages as people use them: type, upload, click, read; in headless Chromium."""

import threading

import pytest

from ..inference.conftest import random_sequences
from .conftest import axe_source

HOSTILE = '>"><img src=x onerror=alert(1)>name <script>alert(2)</script>\nACGTACGTTTGACCATGACCATTA\n'
SEQUENCE = random_sequences(5, [120])[0]


def open_tab(page, name):
    """Show a tab, also where a narrow window has put it into the menu; returns its panel."""
    tab = page.get_by_role("tab", name=name)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def fill(panel, label, text):
    panel.get_by_label(label).fill(text)


def press(panel, name):
    panel.get_by_role("button", name=name, exact=True).click()


def about(panel, index=0):
    """Text of a line about a result, when it is there."""
    line = panel.locator(".sb-about").nth(index)
    line.wait_for()
    return line.inner_text()


def complaint(page):
    toast = page.get_by_test_id("toast-body").first
    toast.wait_for()
    return toast.inner_text()


def test_explore_shows_tokens_and_fills_a_mask(page):
    panel = open_tab(page, "Explore")
    fill(panel, "DNA sequence", SEQUENCE)
    press(panel, "Show tokens")
    line = about(panel)
    for part in ("small", "sdpa", "cpu", "float32", "120 bp", "tokens", " s"):
        assert part in line
    tokens = panel.locator(".sb-tokens .textfield")
    assert "".join(tokens.inner_text().split()) == SEQUENCE
    fill(panel, "Base whose token is masked", "50")
    press(panel, "Mask and predict")
    assert "expected with" in about(panel, 1)
    assert panel.get_by_text("Tokens the model expects").is_visible()


def test_selecting_a_token_masks_it(page):
    panel = open_tab(page, "Explore")
    fill(panel, "DNA sequence", SEQUENCE)
    press(panel, "Show tokens")
    about(panel)
    token = panel.locator(".sb-tokens .textfield .token").nth(3)
    text = token.inner_text().strip()
    token.click()
    assert about(panel, 1).startswith(f"{text} at ")


def test_without_a_position_the_first_token_is_masked_and_its_place_is_that_of_the_name(page):
    panel = open_tab(page, "Explore")
    fill(panel, "DNA sequence", f">chr9:1001-1120\n{SEQUENCE}")
    press(panel, "Mask and predict")
    assert " at 1001-" in about(panel)


def test_a_selected_token_has_the_position_of_the_name(page):
    panel = open_tab(page, "Explore")
    fill(panel, "DNA sequence", f">chr9:1001-1120\n{SEQUENCE}")
    press(panel, "Show tokens")
    about(panel)
    panel.locator(".sb-tokens .textfield .token").nth(3).click()
    first = about(panel, 1).partition(" at ")[2].partition("-")[0]
    assert int(first) > 1001
    assert panel.get_by_label("Base whose token is masked").input_value() == first


def test_every_base_is_predicted_with_progress_and_can_be_downloaded(page):
    panel = open_tab(page, "Explore")
    fill(panel, "DNA sequence", f">chr1:201-320\n{SEQUENCE}")
    press(panel, "Predict every base")
    assert "chr1" in about(panel)
    with page.expect_download() as download:
        panel.get_by_text("Download all probabilities").click()
    lines = open(download.value.path()).read().splitlines()
    assert len(lines) == 1 + len(SEQUENCE) and lines[1].startswith("chr1\t201\t")


def test_an_example_fills_the_box(page, examples):
    panel = open_tab(page, "Explore")
    panel.get_by_role("button", name=examples[1]["title"]).click()
    box = panel.get_by_label("DNA sequence")
    page.wait_for_function("box => box.value.length > 100", arg=box.element_handle())
    assert box.input_value() == examples[1]["fasta"]


def test_embed_draws_a_map_with_labels_and_neighbours(page):
    panel = open_tab(page, "Embed")
    rows = "".join(f"s{i},{'ab'[i % 2]},{s}\n" for i, s in enumerate(random_sequences(2, [60] * 6)))
    fill(panel, "DNA sequences", "name,label,sequence\n" + rows)
    press(panel, "Embed")
    assert "6 sequences" in about(panel)
    panel.locator("svg.marks").wait_for()
    assert {"a", "b"} <= set(panel.locator("svg.marks .role-legend-label").all_text_contents())
    assert panel.get_by_role("row").filter(has_text="s5").count()
    with page.expect_download() as download:
        panel.get_by_text("Download vectors").click()
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(download.value.path())["name"].to_pylist() == [f"s{i}" for i in range(6)]


def test_two_sequences_are_compared(page):
    panel = open_tab(page, "Embed")
    fill(panel, "First sequence", SEQUENCE)
    fill(panel, "Second sequence", SEQUENCE.lower())
    press(panel, "Compare")
    about(panel)
    assert panel.get_by_role("gridcell", name="1.0000").first.is_visible()


def test_classify_shows_probabilities_and_the_bases_that_decide(page):
    panel = open_tab(page, "Classify")
    fill(panel, "DNA sequences", f">mine\n{SEQUENCE}")
    press(panel, "Classify")
    assert "1 sequence" in about(panel)
    assert panel.get_by_role("gridcell", name="mine").is_visible()
    press(panel, "Attribute to bases")
    letters = panel.locator(".sb-letters b")
    letters.first.wait_for()
    assert "".join(letters.all_inner_texts()) == SEQUENCE


def test_lines_are_sequences_for_both_buttons_of_classify(page):
    panel = open_tab(page, "Classify")
    fill(panel, "DNA sequences", f"{SEQUENCE}\n{SEQUENCE}")
    press(panel, "Classify")
    assert "2 sequences" in about(panel)
    press(panel, "Attribute to bases")
    assert "Attribution takes one sequence. There are several sequences" in complaint(page)


def test_a_variant_is_scored_as_typed_and_by_a_click_in_the_heat_map(page):
    panel = open_tab(page, "Variants")
    fill(panel, "Reference sequence", f">chr9:1001-1120\n{SEQUENCE}")
    ref = SEQUENCE[59]
    fill(panel, "Variant", f"chr9:1060 {ref}>{'G' if ref == 'A' else 'A'}")
    press(panel, "Score variant")
    assert about(panel).startswith(f"chr9:1060 {ref}>")
    panel.get_by_label("Width (bp)").first.fill("10")
    press(panel, "Mutate every base")
    cells = panel.locator("td[data-variant]")
    cells.first.wait_for()
    assert cells.count() == 30
    change = cells.nth(7).get_attribute("data-variant")
    cells.nth(7).click()
    page.wait_for_function("change => document.querySelector('.sb-about').innerText && "
                           "[...document.querySelectorAll('.sb-about')].some(e => e.innerText.startsWith(change))",
                           arg=change)  # fmt: skip
    assert panel.get_by_label("Variant").input_value() == change


def test_benchmarks_are_drawn_and_another_case_redraws_them(page):
    panel = open_tab(page, "Benchmarks")
    panel.locator("svg.marks").wait_for()
    assert panel.get_by_role("gridcell", name="prom/prom_core_all").count()
    panel.get_by_label("Measurement").click()
    page.get_by_role("option", name="Attention alone: seconds").click()
    panel.locator("svg.marks").get_by_text("seconds").wait_for()


# ---- what people do wrong, and what they should not be able to do


def test_empty_input_is_said(page):
    press(open_tab(page, "Explore"), "Show tokens")
    assert "There is no sequence yet" in complaint(page)


def test_a_wrong_letter_is_named_with_its_place(page):
    panel = open_tab(page, "Explore")
    fill(panel, "DNA sequence", "ACGTACGTXACGT")
    press(panel, "Show tokens")
    assert "'X' at position 9" in complaint(page)


def test_a_file_is_read_into_the_box_and_deleted(page, tmp_path, uploads):
    panel = open_tab(page, "Explore")
    file = tmp_path / "mine.fa"
    file.write_text(f">mine\n{SEQUENCE}\n")
    panel.locator("input[type=file]").first.set_input_files(file)
    box = panel.get_by_label("DNA sequence")
    page.wait_for_function("box => box.value.length > 100", arg=box.element_handle())
    assert SEQUENCE in box.input_value()
    assert not list(uploads.rglob("mine.fa"))


def test_two_million_bases_are_refused_with_the_limit(page, tmp_path, uploads):
    panel = open_tab(page, "Explore")
    file = tmp_path / "long.fa"
    file.write_text(">long\n" + "ACGTTGCA" * 250_000 + "\n")
    panel.locator("input[type=file]").first.set_input_files(file)
    assert "more than 20,000 bp, the most that this page takes" in complaint(page)
    assert not list(uploads.rglob("long.fa"))
    fill(panel, "DNA sequence", SEQUENCE)
    press(panel, "Show tokens")
    assert "120 bp" in about(panel)


def test_a_file_beyond_the_size_limit_is_refused(page, tmp_path, uploads):
    panel = open_tab(page, "Explore")
    file = tmp_path / "huge.fa"
    file.write_text(">huge\n" + "A" * 6_000_000)
    panel.locator("input[type=file]").first.set_input_files(file)
    assert "size" in complaint(page).lower()
    assert not list(uploads.rglob("huge.fa"))


@pytest.mark.parametrize("tab, box, button", [
    ("Explore", "DNA sequence", "Show tokens"),
    ("Embed", "DNA sequences", "Embed"),
    ("Classify", "DNA sequences", "Classify"),
    ("Variants", "Reference sequence", "Mutate every base"),
])  # fmt: skip
def test_html_in_a_header_stays_text(page, tab, box, button):
    panel = open_tab(page, tab)
    fill(panel, box, HOSTILE)
    if tab == "Variants":
        panel.get_by_label("Width (bp)").first.fill("10")
    press(panel, button)
    about(panel)
    page.wait_for_timeout(300)
    assert page.locator("img[src=x]").count() == 0  # the fixture fails the test if a dialog has opened


def test_html_in_an_error_stays_text(page):
    panel = open_tab(page, "Variants")
    fill(panel, "Reference sequence", SEQUENCE)
    fill(panel, "Variant", "<img/src=x/onerror=alert(1)>:5 A>G")
    press(panel, "Score variant")
    assert "The variant is on <img/src=x/onerror=alert(1)>" in complaint(page)
    fill(panel, "Reference sequence", ">a<img src=x onerror=alert(1)>\nACGTX")
    press(panel, "Score variant")
    page.wait_for_timeout(500)
    assert page.locator("img[src=x]").count() == 0


def test_the_page_asks_no_other_server(browser, server):
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server)
    page.get_by_role("button", name="Show tokens").wait_for()
    page.wait_for_timeout(500)
    context.close()
    assert asked and [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []


def test_two_visitors_see_their_own_results(page, browser, server):
    other = browser.new_context().new_page()
    other.goto(server)
    other.get_by_role("button", name="Show tokens").wait_for()
    for visitor, letters in ((page, SEQUENCE), (other, SEQUENCE[:50])):
        panel = open_tab(visitor, "Explore")
        fill(panel, "DNA sequence", letters)
        press(panel, "Show tokens")
    for visitor, letters in ((page, SEQUENCE), (other, SEQUENCE[:50])):
        panel = visitor.get_by_role("tabpanel").filter(visible=True)
        assert f"{len(letters)} bp" in about(panel)
        assert "".join(panel.locator(".sb-tokens .textfield").inner_text().split()) == letters
    other.context.close()


def test_cancelled_work_stops_and_frees_the_place(page, models):
    panel = open_tab(page, "Variants")
    fill(panel, "Reference sequence", SEQUENCE * 4)
    panel.get_by_label("Width (bp)").first.fill("100")
    press(panel, "Mutate every base")
    panel.get_by_text("Mutating every base").first.wait_for()
    press(panel, "Cancel")
    panel = open_tab(page, "Explore")
    fill(panel, "DNA sequence", SEQUENCE[:30])
    press(panel, "Predict every base")
    about(panel)
    assert not open_tab(page, "Variants").locator(".sb-heat").count()


def test_keyboard_alone_scores_a_sequence(page):
    panel = open_tab(page, "Explore")
    panel.get_by_label("DNA sequence").focus()
    page.keyboard.insert_text(SEQUENCE)
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText.trim()") == "Show tokens":
            break
    page.keyboard.press("Enter")
    assert "120 bp" in about(panel)


@pytest.mark.parametrize("theme, width", [("light", 1200), ("dark", 390)])
def test_no_serious_accessibility_violation(browser, server, theme, width):
    axe = axe_source()
    if axe is None:
        pytest.skip("axe-core is not there: npm install --no-save --prefix build axe-core, or set $STRANDBERT_AXE")
    context = browser.new_context(viewport={"width": width, "height": 900}, bypass_csp=True)
    page = context.new_page()
    page.goto(f"{server}?__theme={theme}")
    page.get_by_role("button", name="Show tokens").wait_for()
    page.evaluate(axe)
    for tab in ("Explore", "Embed", "Classify", "Variants", "Benchmarks"):
        panel = open_tab(page, tab)
        if tab == "Explore":
            fill(panel, "DNA sequence", SEQUENCE)
            press(panel, "Show tokens")
            about(panel)
        page.wait_for_timeout(300)
        violations = page.evaluate("async () => (await axe.run(document)).violations")
        serious = [v for v in violations if v["impact"] in ("serious", "critical")]
        assert serious == [], [(v["id"], v["nodes"][0]["html"][:200]) for v in serious]
        # nothing sticks out of a narrow window
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()


def test_two_threads_of_one_visitor_do_not_mix(client):
    found = {}

    def ask(sequence):
        found[sequence] = client.predict(sequence, api_name="/tokens")["sequence"]

    threads = [threading.Thread(target=ask, args=(sequence,)) for sequence in random_sequences(9, range(40, 52))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 12 and all(key == value for key, value in found.items())
