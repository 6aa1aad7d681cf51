"""corpus.describe: the numbers of a corpus, as text and as a picture."""

import numpy as np
import pytest
from matplotlib import image

from corpus.build import build
from corpus.describe import describe, main
from corpus.recipe import read_genomes, read_recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of windows of 10 bp: species a is 60 % GC and half soft-masked, b is held out and has no GC."""
    folder = tmp_path_factory.mktemp("describe")
    (folder / "a.fa").write_text(">a\n" + "GGCAAgcgtt" * 30 + "NNNN\n")
    (folder / "b.fa").write_text(">b\n" + "ATATATATAT" * 10 + "\n")
    (folder / "table.csv").write_text("species,category,path\na,plant,a.fa\nb,virus,b.fa\n")
    (folder / "recipe.yaml").write_text("recipe: dnabert2\ngenomes: table.csv\nwindow: 10\nvalidation_species: b\n")
    recipe = read_recipe(folder / "recipe.yaml")
    build(recipe, read_genomes(recipe), folder / "out")
    return folder / "out"


def test_numbers_are_counted_by_split_and_species(folder):
    splits = describe(folder)
    assert list(splits) == ["train", "validation"]
    train, validation = splits["train"], splits["validation"]
    assert np.concatenate(train.lengths).tolist() == [10] * 30
    assert (dict(train.bases), dict(train.gc), dict(train.n)) == ({"a": 300}, {"a": 180}, {"a": 0})
    assert train.soft_masked["a"] == pytest.approx(150)
    assert (dict(validation.bases), dict(validation.gc)) == ({"b": 100}, {"b": 0})
    assert validation.gc_histogram["virus"][0] == 10


def test_the_command_prints_them_and_draws_a_picture(folder, capsys):
    main([str(folder)])
    out = capsys.readouterr().out
    assert "GC                     60.00%" in out and "soft-masked            50.00%" in out
    picture = image.imread(folder / "description.png")
    assert picture.shape[0] > 500 and picture.std() > 0.1


def test_a_folder_that_is_no_finished_corpus_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="has no manifest.json; corpus.build makes such folders"):
        main([str(tmp_path)])
    (tmp_path / ".build").mkdir()
    with pytest.raises(SystemExit, match="again to finish it"):
        main([str(tmp_path)])


def test_a_shard_that_is_cut_off_is_named(folder):
    shard = next((folder / "validation").iterdir())
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:-10])
        with pytest.raises(ValueError, match=f"{shard.name}: missing, or not of"):
            describe(folder)
    finally:
        shard.write_bytes(content)
