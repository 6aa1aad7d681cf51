"""Train a DNA vocabulary: `python -m tokenization.train FASTA... --vocab-size 4096 --output DIR`."""

import argparse
import json

from tokenizers import Tokenizer, models, trainers
from tqdm import tqdm

from tokenization.tokenizer_files import LETTERS, SPECIAL_TOKENS, bpe_tokenizer, save_tokenizer_files
from tokenization.words import DEFAULT_WORD_LENGTH, SEPARATOR, read_codes


def words_of(paths, word_length, both_strands):
    """Words of all files as text."""
    table = bytes(LETTERS.encode()) + bytes(251) + b" "
    for path in paths:
        for codes, _ in read_codes(path, word_length, both_strands):
            yield from codes.tobytes().translate(table).decode().split()


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", metavar="FASTA")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--output", required=True)
    parser.add_argument("--word-length", type=int, default=DEFAULT_WORD_LENGTH)
    parser.add_argument("--both-strands", action="store_true")
    arguments = parser.parse_args()
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    trainer = trainers.BpeTrainer(
        vocab_size=arguments.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=list(LETTERS),
        show_progress=False,
    )
    words = words_of(arguments.files, arguments.word_length, arguments.both_strands)
    tokenizer.train_from_iterator(tqdm(words, unit=" words"), trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    save_tokenizer_files(bpe_tokenizer(merges), arguments.output)


if __name__ == "__main__":
    main()
