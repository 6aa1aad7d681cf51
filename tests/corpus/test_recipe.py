"""Recipes and tables of genomes: what is read, and what is refused with which advice."""

import csv
from pathlib import Path

import pytest

import corpus
from corpus.recipe import RecipeError, read_genomes, read_recipe

RECIPES = Path(corpus.__file__).parent / "recipes"


def write_recipe(folder: Path, text: str, table: str = "species,category,path\nyeast,fungi,yeast.fa\n") -> Path:
    (folder / "genomes.csv").write_text(table)
    (folder / "yeast.fa").write_text(">chrI\nACGT\n")
    path = folder / "recipe.yaml"
    path.write_text(f"genomes: genomes.csv\n{text}\n")
    return path


@pytest.mark.parametrize("name", ["dnabert2", "dnagrinder", "small"])
def test_shipped_recipes_are_valid_and_their_tables_exist(name):
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    assert Path(recipe.genomes).is_file()
    assert recipe.tokenizer is None or (Path(recipe.tokenizer) / "tokenizer.json").is_file()


def test_the_papers_numbers_are_the_defaults_of_dnagrinder(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path, "recipe: dnagrinder"))
    assert (recipe.segment, recipe.overlap, recipe.cut, recipe.rounds) == (12_200, 100, 12_000, 1)


def test_the_species_table_holds_what_could_be_read_of_the_papers_table_7():
    with open(RECIPES / "dnabert2_species.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    bases = {row["species"]: int(row["bases"]) for row in rows}
    assert len(rows) == len(bases) == 125  # of 135
    assert sum(bases.values()) == 27_491_306_000  # of 32.49 billion
    assert bases["Human"] == 3_137_210_000 and bases["Saccharomyces Cerevisiae"] == 12_154_000
    assert {row["category"] for row in rows} == {"fungi", "protozoa", "mammalian", "other vertebrate", "bacteria"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("recipe: dnabert", "recipe is 'dnabert' .did you mean 'dnabert2'"),
        ("seed: 1", "recipe is None"),
        ("recipe: dnabert2\nwindwo: 5", "unknown key 'windwo' .did you mean 'window'"),
        ("recipe: dnabert2\nsegment: 5", "unknown key 'segment'"),
        ("recipe: dnabert2\nwindow: many", "window is 'many'; it must be a whole number"),
        ("recipe: dnabert2\nwindow: true", "window is True; it must be a whole number"),
        ("recipe: dnabert2\nwindow: 0", "window is 0; it must be 1 bp or more"),
        ("recipe: dnabert2\nshortest: 2000", "shortest is 2000; it must be 1 to window"),
        ("recipe: dnabert2\nseed: 1.5", "seed is 1.5"),
        ("recipe: dnabert2\nseed:", "seed is 'empty'"),
        ("recipe: dnabert2\nstrand: bothh", "strand is 'bothh' .did you mean 'both'"),
        ("recipe: dnabert2\nvalidation_species: 5", "validation_species is 5; it must be a list of names"),
        ("recipe: dnagrinder\ncut: 13000", "cut is 13000; it must be 1 to segment"),
        ("recipe: dnagrinder\noverlap: 12200", "overlap is 12200"),
        ("recipe: dnagrinder\nretained: 50", "retained is 50"),
        ("recipe: dnagrinder\nthreshold: 9\nretained: 0.5", "each decides the other"),
        ("recipe: [dnabert2]", "recipe is .'dnabert2'."),
        ("recipe: dnabert2\nseed: .inf", "seed is inf; it must be a whole number"),
        ("recipe: dnabert2\nwindow: .nan", "window is nan; it must be a whole number"),
        ("recipe: dnabert2\nvalidation_contigs: [1]", "a list of names .numbers in quotes"),
        ("recipe: [", "not YAML that can be read"),
    ],
)
def test_wrong_recipes_are_refused_with_file_key_and_value(tmp_path, text, message):
    with pytest.raises(RecipeError, match=rf"recipe\.yaml: .*{message}"):
        read_recipe(write_recipe(tmp_path, text))


def test_a_large_seed_is_taken_exactly(tmp_path):
    assert read_recipe(write_recipe(tmp_path, f"recipe: dnabert2\nseed: {2**53 + 1}")).seed == 2**53 + 1


def test_an_empty_tokenizer_is_not_the_same_as_none(tmp_path):
    assert Path(read_recipe(write_recipe(tmp_path, "recipe: dnabert2"), "").tokenizer) == Path.cwd()


def test_one_file_of_variants_per_contig_may_lie_in_folders_of_their_own(tmp_path):
    table = "species,category,path,vcf\nyeast,fungi,yeast.fa,{contig}/all.vcf\n"
    path = write_recipe(tmp_path, "recipe: dnagrinder", table)
    files = [tmp_path / name / "all.vcf" for name in ("chrI", "chrII")]
    for file in files:
        file.parent.mkdir()
        file.touch()
    (genome,) = read_genomes(read_recipe(path))
    assert genome.vcf_files == files


def test_numbers_may_be_written_with_exponent_or_underscores(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path, "recipe: dnabert2\nshard_bases: 2e8\nwindow: 1_000"))
    assert (recipe.shard_bases, recipe.window) == (200_000_000, 1000)


@pytest.mark.parametrize(
    "table, message",
    [
        ("species,category,path\nyeast,fungi,yaest.fa\n", r"line 2: .*yaest.fa: no such file .did you mean 'yeast.fa'"),
        ("species,category,path\nyeast,fungi,\n", "line 2: path is ''; it must be the file of the genome; download it"),
        ("species,category,path\nyeast,fungi,.\n", "line 2: .*: is a folder, not a file; paths are relative"),
        ("species,category,path,path\nyeast,fungi,a,b\n", "line 1: column 'path' is there twice"),
        ("species,path\nyeast,yeast.fa\n", "line 1: column 'category' is missing"),
        ("species,category,path,base\nyeast,fungi,yeast.fa,1\n", "unknown column 'base' .did you mean 'bases'"),
        ("species,category,path,vcf\nyeast,fungi,yeast.fa,1\n", "unknown column 'vcf'"),
        ("species,category,path,bases\nyeast,fungi,yeast.fa,1Gb\n", "line 2: bases is '1Gb'"),
        ("species,category,path\nyeast,fungi,yeast.fa,more\n", "line 2: more fields than the header has"),
        ("species,category,path\nyeast,fungi,yeast.fa\nyeast,fungi,yeast.fa\n", "line 3: the same as line 2"),
        ("species,category,path\n", "no genomes below the header"),
        ("", "line 1: column 'species' is missing"),
    ],
)
def test_wrong_tables_are_refused_with_file_line_and_value(tmp_path, table, message):
    with pytest.raises(RecipeError, match=f"genomes.csv.*{message}"):
        read_genomes(read_recipe(write_recipe(tmp_path, "recipe: dnabert2", table)))


def test_a_table_that_is_no_text_is_refused(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path, "recipe: dnabert2"))
    (tmp_path / "genomes.csv").write_bytes(b"species,category,path\n\xff\xfe,fungi,yeast.fa\n")
    with pytest.raises(RecipeError, match="genomes.csv: not a CSV table that can be read"):
        read_genomes(recipe)


def test_a_species_to_hold_out_must_be_in_the_table(tmp_path):
    with pytest.raises(RecipeError, match="'yaest' is not a species .*did you mean 'yeast'"):
        read_genomes(read_recipe(write_recipe(tmp_path, "recipe: dnabert2\nvalidation_species: yaest")))


def test_holding_out_every_species_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="nothing is left to train on"):
        read_genomes(read_recipe(write_recipe(tmp_path, "recipe: dnabert2\nvalidation_species: yeast")))


def test_paths_are_relative_to_the_table_or_to_a_folder(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path, "recipe: dnabert2"))
    assert read_genomes(recipe)[0].path == tmp_path / "yeast.fa"
    other = tmp_path / "other"
    other.mkdir()
    (other / "yeast.fa").write_text(">chrI\nACGT\n")
    assert read_genomes(recipe, other)[0].path == other / "yeast.fa"


def test_a_vcf_may_be_one_file_or_one_per_contig(tmp_path):
    table = "species,category,path,vcf\nyeast,fungi,yeast.fa,v/{contig}.vcf\n"
    recipe = read_recipe(write_recipe(tmp_path, "recipe: dnagrinder", table))
    with pytest.raises(RecipeError, match=r"v/\{contig\}.vcf: no such file"):
        read_genomes(recipe)
    (tmp_path / "v").mkdir()
    for name in ("chrI", "chrII"):
        (tmp_path / "v" / f"{name}.vcf").touch()
    assert [path.name for path in read_genomes(recipe)[0].vcf_files] == ["chrI.vcf", "chrII.vcf"]
