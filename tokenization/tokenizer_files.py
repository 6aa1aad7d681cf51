"""Tokenizer folders that load in every supported transformers: tokenizer.json and tokenizer_config.json."""

import json
import os
import tempfile
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, processors

SPECIAL_TOKENS = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")  # ids 0..4, as in DNABERT-2
LETTERS = "ACGT"  # ids 5..8
FIRST_MERGE_ID = len(SPECIAL_TOKENS) + len(LETTERS)
NO_LENGTH_LIMIT = 1_000_000  # tokens; ALiBi models have no position limit, so nothing is cut unless the user asks


def dna_normalizer() -> normalizers.Normalizer:
    """Normalizer that reads lower case as upper case and U as T, and drops white space.

    Every other character stays and becomes one [UNK] (N and IUPAC letters included). On upper-case ACGT it changes
    nothing, so a vocabulary keeps its ids.
    """
    letters = [normalizers.Replace(a, b) for a, b in zip("acgtuU", "ACGTTT", strict=True)]
    return normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), ""), *letters])


def dna_post_processor() -> processors.PostProcessor:
    """[CLS] A [SEP] for one sequence, [CLS] A [SEP] B [SEP] with token types 0 and 1 for a pair (DNABERT-2)."""
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIAL_TOKENS.index("[CLS]")), ("[SEP]", SPECIAL_TOKENS.index("[SEP]"))],
    )


def bpe_tokenizer(merges: list[tuple[str, str]]) -> Tokenizer:
    """Tokenizer of a merge list in training order.

    Ids are those of DNABERT-2: five special tokens, A C G T, then one id for each merge in order. There is no
    pre-tokenizer: white space is gone before. Decoding joins tokens without spaces.
    """
    tokens = [*SPECIAL_TOKENS, *LETTERS, *(left + right for left, right in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("the merge list makes the same token twice; ids would not follow the merges")
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="[UNK]", fuse_unk=False))
    tokenizer.normalizer = dna_normalizer()
    tokenizer.post_processor = dna_post_processor()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def write_text_atomically(path: str | Path, text: str) -> None:
    """`write_bytes_atomically` for text, as UTF-8."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: str | Path, content: bytes) -> None:
    """Write under a temporary name in the same folder, then rename: the file is whole or absent."""
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def save_tokenizer_files(
    tokenizer_or_json: Tokenizer | str | dict, folder: str | Path, model_max_length: int | None = None
) -> None:
    """Write tokenizer.json and a portable tokenizer_config.json into a folder (made when absent).

    tokenizer_or_json: a `tokenizers.Tokenizer`, its JSON as text, or that JSON as a dict.
    model_max_length: tokens at which `truncation=True` cuts; None writes 1,000,000 (no limit in practice).

    The config names PreTrainedTokenizerFast, which transformers 4 and 5 both load; merges are written as "A B"
    strings, which every tokenizers release reads. Truncation and padding, which an earlier call may have left in the
    tokenizer, are not written. Use this instead of `save_pretrained`, whose output under transformers 5 names a class
    that transformers 4 does not know. Raises ValueError when special ids differ from [UNK] 0 [CLS] 1 [SEP] 2 [PAD] 3
    [MASK] 4.
    """
    if isinstance(tokenizer_or_json, Tokenizer):
        tokenizer_or_json = tokenizer_or_json.to_str()
    content = json.loads(tokenizer_or_json) if isinstance(tokenizer_or_json, str) else dict(tokenizer_or_json)
    check_special_ids(content)
    content["truncation"] = content["padding"] = None
    model = content["model"]
    if model["type"] == "BPE":
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        content["model"] = {**model, "merges": merges}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / "tokenizer.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_text_atomically(
        folder / "tokenizer_config.json", json.dumps(tokenizer_config(model_max_length), indent=2) + "\n"
    )


def tokenizer_config(model_max_length: int | None) -> dict:
    """Content of tokenizer_config.json; every value whose default differs between transformers 4 and 5 is explicit."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": NO_LENGTH_LIMIT if model_max_length is None else int(model_max_length),
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
    }


def check_special_ids(content: dict) -> None:
    """Raise ValueError unless the special tokens of a tokenizer.json have the ids that the model expects."""
    found = {token["content"]: token["id"] for token in content["added_tokens"]}
    for index, token in enumerate(SPECIAL_TOKENS):
        if found.get(token) != index:
            raise ValueError(f"special token {token} must have id {index}, the tokenizer has {found.get(token)}")
