"""Overlapping k-mer tokenizer (DNABERT): one token for every base but the last k - 1. Self-contained, for the Hub."""

import itertools
import json
import os

from transformers import PreTrainedTokenizer

SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")


class OverlappingKmerTokenizer(PreTrainedTokenizer):
    """Tokens: the five special ones (ids 0..4), then all k-mers in alphabetical order.

    Lower case reads as upper case, U as T, white space is dropped; a k-mer with any other letter is [UNK]. A sequence
    of L bases gives L - k + 1 tokens, none if it is shorter than k.
    """

    vocab_files_names = {"vocab_file": "kmer.json"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file: str | None = None, k: int | None = None, **kwargs):
        if k is None:
            with open(vocab_file, encoding="utf-8") as file:
                k = json.load(file)["k"]
        self.k = k
        self.tokens = [*SPECIAL_TOKENS, *("".join(letters) for letters in itertools.product("ACGT", repeat=k))]
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        for token in SPECIAL_TOKENS:
            kwargs.setdefault(f"{token[1:-1].lower()}_token", token)
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def get_vocab(self) -> dict[str, int]:
        return {**self.ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str) -> list[str]:
        sequence = "".join(text.split()).upper().replace("U", "T")
        return [sequence[start : start + self.k] for start in range(len(sequence) - self.k + 1)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.ids.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return self.tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Bases of a row of k-mers: the first one, then the last base of each further one (N for [UNK])."""
        kmers = [token if token in self.ids and token not in SPECIAL_TOKENS else "N" * self.k for token in tokens]
        return "".join([kmers[0], *(kmer[-1] for kmer in kmers[1:])]) if kmers else ""

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        first = [self.cls_token_id, *token_ids_0, self.sep_token_id]
        return first if token_ids_1 is None else [*first, *token_ids_1, self.sep_token_id]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        first = [0] * (len(token_ids_0) + 2)
        return first if token_ids_1 is None else first + [1] * (len(token_ids_1) + 1)

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        if already_has_special_tokens:
            return [int(index < len(SPECIAL_TOKENS)) for index in token_ids_0]
        second = [] if token_ids_1 is None else [0] * len(token_ids_1) + [1]
        return [1, *[0] * len(token_ids_0), 1, *second]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        path = os.path.join(save_directory, (f"{filename_prefix}-" if filename_prefix else "") + "kmer.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"k": self.k}, file)
        return (path,)
