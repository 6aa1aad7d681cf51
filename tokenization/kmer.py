"""k-mer baselines as Hugging Face tokenizer folders.

    python -m tokenization.kmer --k 6 --output 6-mer                 non-overlapping (Nucleotide Transformer)
    python -m tokenization.kmer --k 6 --overlapping --output 6-mer   overlapping (DNABERT; k 3 to 6 in its paper)

Non-overlapping: k letters at a time from the left of each run of A, C, G, T; the letters that are left over at its end
are one token each. This is a plain tokenizer.json. Overlapping: one k-mer for every position; tokenizers cannot say
that, so the folder carries a Python class and loads with trust_remote_code=True.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from tokenization.tokenizer_files import (
    LETTERS,
    SPECIAL_TOKENS,
    dna_normalizer,
    dna_post_processor,
    save_tokenizer_files,
    tokenizer_config,
    write_text_atomically,
)

LARGEST_K = 8  # 65,536 k-mers


def non_overlapping_kmer_tokenizer(k: int) -> Tokenizer:
    """Five special tokens (ids 0..4), A C G T, then all k-mers in alphabetical order. Raises ValueError for k."""
    _check(k)
    kmers = ["".join(letters) for letters in itertools.product(LETTERS, repeat=k)]
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *LETTERS, *kmers])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = dna_normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"[{LETTERS}]{{{k}}}|."), behavior="isolated")
    tokenizer.post_processor = dna_post_processor()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def save_overlapping_kmer_tokenizer(k: int, folder: str | Path) -> None:
    """Folder of an OverlappingKmerTokenizer with its code. Raises ValueError for k."""
    _check(k)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = tokenizer_config(None)
    config["tokenizer_class"] = "OverlappingKmerTokenizer"
    config["auto_map"] = {"AutoTokenizer": ["overlapping_kmer.OverlappingKmerTokenizer", None]}
    code = Path(__file__).with_name("overlapping_kmer.py").read_text(encoding="utf-8")
    write_text_atomically(folder / "overlapping_kmer.py", code)
    write_text_atomically(folder / "kmer.json", json.dumps({"k": k}) + "\n")
    write_text_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=2) + "\n")


def _check(k: int) -> None:
    if not 2 <= k <= LARGEST_K:
        raise ValueError(f"k must be from 2 to {LARGEST_K}, got {k}")


def main(words: list[str] | None = None) -> int:
    """Command line entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tokenization.kmer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--k", type=int, required=True, help=f"letters in a token, 2 to {LARGEST_K}")
    parser.add_argument("--overlapping", action="store_true")
    parser.add_argument("--output", required=True, help="folder to write")
    arguments = parser.parse_args(words)
    try:
        if arguments.overlapping:
            save_overlapping_kmer_tokenizer(arguments.k, arguments.output)
        else:
            save_tokenizer_files(non_overlapping_kmer_tokenizer(arguments.k), arguments.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.output}: {'overlapping' if arguments.overlapping else 'non-overlapping'} {arguments.k}-mers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
