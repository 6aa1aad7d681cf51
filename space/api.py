"""
Named endpoints for programs: `Client(url).predict("ACGT...", api_name="/tokens")`. Each gives the dictionary of the
function of that name in `space.answers`; sequences are given as on the pages, and "" as model means the first of the
list.
"""

import collections

import gradio as gr

from space import answers, benchmarks, classification, embedding, explore, variants
from space.inputs import InputError, parse_variant, place_of, read_sequence, read_sequences
from space.models import Models
from space.parts import LONG, QUICK, guarded


def last(steps):
    """The answer of long work: what its generator yields at last."""
    (found,) = collections.deque(steps, maxlen=1)
    return found


def whole(value, what: str) -> int:
    """A number that a program gave. Raises InputError."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{what} is {str(value)[:60]!r}; give a whole number.") from None


def add_endpoints(models: Models):
    """Register the endpoints in the open Blocks."""

    def tokens(sequence: str, model: str = "") -> dict:
        """Tokens of one sequence, and the interval in bp that each covers."""
        return answers.tokens(models.get("language", model), read_sequence(sequence, explore.MOST_BASES))

    def fill_mask(sequence: str, position: int, model: str = "") -> dict:
        """What the model expects in place of the token over a base; position counts as the name says, else from 1."""
        record = read_sequence(sequence, explore.MOST_BASES)
        index = whole(position, "position") - place_of(record)[1]
        return answers.fill_mask(models.get("language", model), record, index)

    def base_probabilities(sequence: str, model: str = "") -> dict:
        """Probabilities of A, C, G, T at every base."""
        return last(
            answers.base_probabilities(models.get("language", model), read_sequence(sequence, explore.MOST_PROFILE))
        )

    def embed(sequences: str, model: str = "") -> dict:
        """Vectors, map, nearest neighbours and similarities of sequences."""
        records = read_sequences(sequences, embedding.MOST_SEQUENCES, embedding.MOST_BASES)
        found = last(answers.embed(models.get("language", model), records))
        table = found.pop("table")
        return {"names": table["name"].to_pylist(), "vectors": table["embedding"].to_pylist(), **found}

    def similarity(first: str, second: str, model: str = "") -> dict:
        """Cosines of the vectors of two sequences, and of their strands."""
        return embedding.similarity(models, first, second, model)

    def classify(sequences: str, model: str = "") -> dict:
        """Labels and probabilities by a fine-tuned model."""
        records = read_sequences(sequences, classification.MOST_SEQUENCES, classification.MOST_BASES)
        return answers.classify(models.get("classifier", model), records)

    def attribution(sequence: str, model: str = "") -> dict:
        """What each base adds to the logit of the predicted class."""
        record = read_sequence(sequence, classification.MOST_ATTRIBUTED)
        return last(answers.attribution(models.get("classifier", model), record))

    def mutagenesis(sequence: str, first: int, last_position: int, model: str = "") -> dict:
        """Scores of every single-base change between two positions, both included."""
        record = read_sequence(sequence, variants.MOST_BASES)
        start = whole(first, "first") - place_of(record)[1]
        end = whole(last_position, "last_position") - place_of(record)[1] + 1
        if end - start > variants.MOST_MUTATED:
            raise InputError(f"The stretch has {end - start:,} bp; at most {variants.MOST_MUTATED} are taken.")
        return last(answers.mutate(models.get("language", model), record, start, end))

    def variant(sequence: str, change: str, model: str = "") -> dict:
        """Scores of one variant, written as chr:pos ref>alt."""
        record = read_sequence(sequence, variants.MOST_BASES)
        return answers.score_variant(models.get("language", model), record, *parse_variant(change, record))

    def benchmark(file: str) -> list:
        """Rows of a result file: encoder.csv, attention.csv, ..., or gue for the table of GUE scores."""
        if file == "gue":
            headers, rows = benchmarks.gue_table()
            return [dict(zip(headers, row, strict=True)) for row in rows]
        return benchmarks.speed_rows(file)

    for function in (tokens, fill_mask, similarity, classify, variant, benchmark):
        gr.api(guarded(function, rendered=False), api_name=function.__name__, **QUICK)
    for function in (base_probabilities, embed, attribution, mutagenesis):
        gr.api(guarded(function, rendered=False), api_name=function.__name__, **LONG)
