"""Cards say what a user of a task must know, and the page is the one that the data gives."""

from pathlib import Path

import pytest

from gue.cards import card, main, page
from gue.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]


def test_page_is_what_the_data_gives():
    assert (ROOT / "docs/gue_tasks.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("name", TASKS)
def test_every_card_says_labels_source_licence_settings_and_defects(name):
    text = card(TASKS[name])
    assert all(f"\n- {field}: " in text for field in ("Labels", "Source", "Licence", "Settings", "Published"))
    assert all(known.sha256 in text and f"{known.rows:,}" in text for known in TASKS[name].splits)


def test_card_tells_of_leakage(capsys):
    assert main(["tf/4"]) == 0
    assert "dev in train: of 1,000 rows 358 exact, 435 share 32 bp or more." in capsys.readouterr().out


def test_card_tells_of_overlaps_without_repeats():
    text = card(TASKS["mouse/2"])
    assert "test in train: of 328 rows 96 share 32 bp or more, 1 of these only with other labels." in text
    assert "exact" not in text
    assert "no repeated sequence, on either strand (train, dev, test)." in text


def test_covid_card_has_both_sizes():
    text = card(TASKS["virus/covid"])
    assert "| train | 77,669 |" in text and "| train | 73,335 |" in text
