"""Recipes (YAML) and tables of genomes (CSV): what a corpus is made of, checked before any work begins."""

import csv
import difflib
import glob
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import yaml

STRANDS = ("forward", "random", "both")
REPEATS = ("keep", "filter")
REQUIRED_COLUMNS = ("species", "category", "path")
OPTIONAL_COLUMNS = {"dnabert2": ("accession", "bases"), "dnagrinder": ("accession", "repeats", "vcf")}


class RecipeError(ValueError):
    """A recipe or table that cannot be used; the message names the file, the line or key, and the value."""


@dataclass(frozen=True)
class Genome:
    """One row of the table of genomes."""

    species: str
    category: str
    path: Path
    source: str  # the path as the table has it
    bases: int | None = None  # bp to sample (dnabert2); None: all
    repeats: str = "keep"  # keep or filter (dnagrinder)
    vcf: str | None = None  # path of phased variants of many individuals (dnagrinder); {contig} stands for the name
    vcf_source: str | None = None  # the same as the table has it

    @property
    def size(self) -> int:
        """Bytes of the genome's and the variants' files, by which a changed one is noticed."""
        return sum(path.stat().st_size for path in (self.path, *self.vcf_files))

    @property
    def vcf_files(self) -> list[Path]:
        """The files of variants that there are, in the order of their names."""
        if self.vcf is None:
            return []
        return sorted(map(Path, glob.glob(glob.escape(self.vcf).replace("{contig}", "*"))))

    @property
    def vcf_folder(self) -> Path:
        """The folder that the files of variants share; their paths below it differ."""
        return Path(self.vcf.partition("{contig}")[0] + "_").parent


@dataclass(frozen=True)
class Recipe:
    """What both recipes share."""

    recipe: str  # dnabert2 or dnagrinder
    genomes: str  # CSV table, relative to the recipe
    seed: int = 0
    validation_species: tuple[str, ...] = ()
    validation_contigs: tuple[str, ...] = ()
    strand: str = "forward"  # forward, random (each sequence with equal chance), both
    tokenizer: str | None = None  # folder with tokenizer.json, relative to the recipe: adds token ids
    shard_bases: int = 200_000_000  # bp per Parquet file


@dataclass(frozen=True)
class Dnabert2Recipe(Recipe):
    """DNABERT-2, section 4.1: windows without N from many species."""

    window: int = 1000  # bp
    shortest: int | None = None  # bp; shorter ends of runs are dropped; default: window, every sequence is as long

    def __post_init__(self):
        _require(self.window > 0, "window", self.window, "1 bp or more")
        _require(self.shortest is None or 0 < self.shortest <= self.window, "shortest", self.shortest, "1 to window")


@dataclass(frozen=True)
class DnagrinderRecipe(Recipe):
    """dnaGrinder, sections 2.1.2 and 3.3: overlapping segments, random cuts, repeat filter, variants."""

    segment: int = 12_200  # bp
    overlap: int = 100  # bp shared with the segment before and after
    cut: int = 12_000  # bp taken out of each segment
    rounds: int = 1  # cuts per segment
    threshold: int | None = None  # bp; shorter non-repetitive stretches are ignored; default: chosen per contig
    retained: float | None = None  # share of a contig to keep; default: its share of non-repetitive bases

    def __post_init__(self):
        _require(self.segment > 0, "segment", self.segment, "1 bp or more")
        _require(0 <= self.overlap < self.segment, "overlap", self.overlap, "0 to below segment")
        _require(0 < self.cut <= self.segment, "cut", self.cut, "1 to segment")
        _require(self.rounds > 0, "rounds", self.rounds, "1 or more")
        _require(self.threshold is None or self.threshold > 0, "threshold", self.threshold, "1 bp or more")
        _require(self.retained is None or 0 < self.retained <= 1, "retained", self.retained, "above 0, at most 1")
        if self.threshold and self.retained:
            raise RecipeError("threshold and retained are both given; each decides the other, leave one out")


RECIPES = {"dnabert2": Dnabert2Recipe, "dnagrinder": DnagrinderRecipe}


def read_recipe(path: str | Path, tokenizer: str | None = None) -> Recipe:
    """
    Read a recipe; `tokenizer` replaces the one in the file.

    Raises:
        RecipeError: missing file, no YAML mapping, unknown or missing key (with the nearest known one), wrong value.
    """
    path = Path(path)
    content = _read_yaml(path)
    try:
        kind = content.get("recipe")
        _require(isinstance(kind, str) and kind in RECIPES, "recipe", kind, " or ".join(RECIPES), near=RECIPES)
        known = {field.name: field for field in fields(RECIPES[kind])}
        for key in content:
            if key not in known:
                raise RecipeError(f"unknown key {key!r}{_near(key, known)}; known are {', '.join(known)}")
        for name, field in known.items():
            if field.default is MISSING and name not in content:
                raise RecipeError(f"key {name!r} is missing")
        values = {name: _value(known[name], value) for name, value in content.items()}
        if tokenizer is not None:
            values["tokenizer"] = str(Path(tokenizer).absolute())
        elif values.get("tokenizer"):
            values["tokenizer"] = str(path.parent.absolute() / values["tokenizer"])
        values["genomes"] = str(path.parent.absolute() / values["genomes"])
        recipe = RECIPES[kind](**values)
        _require(recipe.strand in STRANDS, "strand", recipe.strand, ", ".join(STRANDS), near=STRANDS)
        _require(recipe.seed >= 0, "seed", recipe.seed, "0 or more")
        _require(recipe.shard_bases > 0, "shard_bases", recipe.shard_bases, "a number of bp")
        return recipe
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None


def read_genomes(recipe: Recipe, folder: str | Path | None = None) -> list[Genome]:
    """
    Read the table of a recipe. Paths in it are relative to `folder`, or without one to the table.

    Raises:
        RecipeError: missing table or file, unknown or missing column, wrong value, a row that occurs twice, a
            species to hold out that is not in the table; names the line.
    """
    table = Path(recipe.genomes)
    if not table.is_file():
        raise RecipeError(f"genomes: {table}: no such file; it must be a CSV table with {', '.join(REQUIRED_COLUMNS)}")
    folder = table.parent if folder is None else Path(folder)
    if not folder.is_dir():
        raise RecipeError(f"--genomes {folder}: no such folder")
    try:
        lines = _read_rows(table, recipe.recipe, folder)
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecipeError(f"{table}: not a CSV table that can be read: {error}") from None
    if not lines:
        raise RecipeError(f"{table}: no genomes below the header")
    species = {genome.species for genome in lines}
    for name in recipe.validation_species:
        if name not in species:
            raise RecipeError(f"validation_species: {name!r} is not a species of {table}{_near(name, species)}")
    if set(recipe.validation_species) == species:
        raise RecipeError(f"validation_species holds out every species of {table}; nothing is left to train on")
    return list(lines)


def _read_rows(table: Path, kind: str, folder: Path) -> dict[Genome, int]:
    """The genomes, and the line of each."""
    lines: dict[Genome, int] = {}
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="", restval="")
        _check_columns(table, reader.fieldnames or [], kind)
        for row in reader:
            try:
                genome = _genome(row, folder)
                if genome in lines:
                    raise RecipeError(f"the same as line {lines[genome]}; remove one")
                lines[genome] = reader.line_num
            except RecipeError as error:
                raise RecipeError(f"{table}, line {reader.line_num}: {error}") from None
    return lines


def _read_yaml(path: Path) -> dict:
    if not path.is_file():
        raise RecipeError(f"{path}: no such recipe file")
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML that can be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{path}: expected lines 'key: value', such as 'recipe: dnabert2'")
    return content


def _value(field, value):
    """The value of a key as its field's type; numbers may have exponents and underscores, as 2e8 in YAML is text."""
    if value is None:
        _require(field.default is None, field.name, "empty", "given, or the line left out")
        return None
    kind = field.type
    if kind == tuple[str, ...]:
        value = [value] if isinstance(value, str) else value
        _require(
            isinstance(value, list) and all(isinstance(v, str) for v in value),
            field.name,
            value,
            "a list of names (numbers in quotes)",
        )
        return tuple(value)
    if kind in (str, str | None):
        _require(isinstance(value, str), field.name, value, "text")
        return value
    whole = kind in (int, int | None)
    try:
        number = value if isinstance(value, int) else float(value)
        fits = not isinstance(value, bool) and (number == int(number) or not whole)
    except (TypeError, ValueError, OverflowError):  # OverflowError: infinity
        fits = False
    _require(fits, field.name, value, "a whole number" if whole else "a number")
    return int(number) if whole else float(number)


def _check_columns(table: Path, columns: list[str], kind: str):
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS[kind])
    for column in columns:
        if column not in known:
            raise RecipeError(
                f"{table}, line 1: unknown column {column!r}{_near(column, known)}; for {kind} known are "
                + ", ".join(known)
            )
        if columns.count(column) > 1:
            raise RecipeError(f"{table}, line 1: column {column!r} is there twice")
    for column in REQUIRED_COLUMNS:
        if column not in columns:
            raise RecipeError(f"{table}, line 1: column {column!r} is missing")


def _genome(row: dict[str, str], folder: Path) -> Genome:
    if row.get(""):
        raise RecipeError("more fields than the header has; put fields with commas into quotes")
    for column in REQUIRED_COLUMNS:
        advice = "text" if column != "path" else "the file of the genome; download it, or remove the row"
        _require(row[column].strip(), column, row[column], advice)
    bases = row.get("bases", "").strip().replace("_", "")
    try:
        bases = int(float(bases)) if bases else None
    except (ValueError, OverflowError):
        raise RecipeError(f"bases is {bases!r}; it must be a number of bp, or empty for all") from None
    _require(bases is None or bases > 0, "bases", bases, "above 0, or empty for all")
    repeats = row.get("repeats", "").strip() or "keep"
    _require(repeats in REPEATS, "repeats", repeats, " or ".join(REPEATS), near=REPEATS)
    vcf = row.get("vcf", "").strip()
    genome = Genome(
        row["species"].strip(),
        row["category"].strip(),
        folder / row["path"].strip(),
        row["path"].strip(),
        bases,
        repeats,
        str(folder / vcf) if vcf else None,
        vcf or None,
    )
    if not genome.path.is_file():
        raise _missing(genome.path)
    if genome.vcf and not genome.vcf_files:
        raise _missing(Path(genome.vcf))
    return genome


def _missing(path: Path) -> RecipeError:
    siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    problem = "is a folder, not a file" if path.is_dir() else f"no such file{_near(path.name, siblings)}"
    return RecipeError(f"{path}: {problem}; paths are relative to --genomes, or else to the table")


def _near(name: str, known) -> str:
    matches = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _require(condition, name: str, value, expected: str, near=()):
    if not condition:
        raise RecipeError(f"{name} is {value!r}{_near(value, near)}; it must be {expected}")
