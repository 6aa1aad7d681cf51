"""
Pictures of the running demo, to be looked at: every tab with a result, wide and narrow, light and dark.

    make demo CLASSIFIER=my_head
    python -m tests.space.pictures http://127.0.0.1:7860 --output pictures

demo_explore.png and demo_variants.png of docs/images are explore_wide_light.png and variants_wide_dark.png.
"""

import argparse
import re
from pathlib import Path

from playwright.sync_api import sync_playwright

from .conftest import CHROMIUM
from .test_browser import about, open_tab, press

SIZES = {"wide": (1000, 1060), "narrow": (390, 844)}
SECONDS = 120  # for one result
ACTIONS = {
    "Explore": ("Show tokens", "Mask and predict"),
    "Embed": ("Embed",),
    "Classify": ("Classify", "Attribute to bases"),
    "Variants": ("Score variant", "Mutate every base"),
    "Benchmarks": (),
}


def take(page, output: Path, suffix: str) -> None:
    """One picture of every tab: what stands below the first result, or the tab itself where there is none."""
    for tab, buttons in ACTIONS.items():
        panel = open_tab(page, tab)
        if buttons:
            examples = panel.get_by_role("button", name=re.compile(r" bp( each)?$"))
            (examples.nth(1) if tab == "Classify" else examples.first).click()  # the first is too long to attribute
            page.wait_for_function("text => text.value", arg=panel.locator("textarea").first.element_handle())
        for number, button in enumerate(buttons):
            press(panel, button)
            about(panel, number)
        page.wait_for_timeout(1000)  # charts are drawn after their data have arrived
        shown = panel.locator(".sb-about").first if buttons else panel
        shown.evaluate("element => element.scrollIntoView({block: 'start'})")
        page.screenshot(path=output / f"{tab.lower()}_{suffix}.png", full_page=suffix.startswith("narrow"))
        page.evaluate("window.scrollTo(0, 0)")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for size, (width, height) in SIZES.items():
            for theme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": height})
                page.set_default_timeout(1000 * SECONDS)
                page.goto(f"{options.url}?__theme={theme}")
                page.get_by_role("button", name="Show tokens").wait_for()
                take(page, options.output, f"{size}_{theme}")
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
