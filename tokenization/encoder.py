"""Fast exact encoding: bases in, uint16 token ids out, equal to what `tokenizers` gives for the same tokenizer.json.

Byte Pair Encoding replays merges, yet its result can be found directly: it is the only sequence of tokens in which
every two neighbours stay apart when they are encoded together (the idea of the Rust crate `bpe`). So: take the longest
token at the current base; if it cannot stand behind the last token, or ends where nothing can follow, take the next
shorter one; if none is left, mark this base as an end where nothing can follow and give back the last token.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numba import njit, uint64
from tokenizers import Tokenizer

from tokenization.tokenizer_files import LETTERS, dna_normalizer

FIRST_BASES = 8  # looked up at once
TABLE_LIMIT = 8192  # tokens; up to here all pairs of neighbours are checked beforehand (8 MB), above when they occur
UNKNOWN, IGNORED, BOUNDARY, END = 4, 5, 6, 7  # what a character is, besides a letter 0..3
END_BYTE = b"\0"  # behind each sequence of a batch; a sequence that contains it is left to tokenizers
WHITE_SPACE = b"\t\n\v\f\r "
NORMALIZED = bytes.maketrans(b"acgtuU", b"ACGTTT")
NO_TOKEN = 65535
NO_LETTER = np.uint64(0xFCFCFCFCFCFCFCFC)  # bits that none of eight letters has
BLOCK = 1 << 12  # positions whose longest match is looked up together, so that the look-ups overlap in time


class Tables(NamedTuple):
    """What the compiled loops know of a vocabulary. Inside, tokens are numbered 0..3 for A C G T, then by merge."""

    ids: np.ndarray  # vocabulary id of each token, and of [UNK] at the end
    lengths: np.ndarray  # bases
    shorter: np.ndarray  # longest other token that a token begins with, NO_TOKEN for letters
    first: np.ndarray  # see _prefix_tables
    children: np.ndarray
    at_node: np.ndarray
    apart: np.ndarray  # bit [row of left, column of right]: the two may stand side by side; empty when not tabulated
    rows: np.ndarray
    columns: np.ndarray
    halves: np.ndarray  # (tokens, 2): what a token is merged from
    begins: np.ndarray  # merges of left token t: rights[begins[t] : begins[t + 1]] ascending, and what they become
    rights: np.ndarray
    becomes: np.ndarray


class Encoder:
    """Encoder of one tokenizer.json, special tokens not added.

    `fast` says whether the vocabulary allows the direct way; if not, `reason` says why, and `tokenizers` does the work.
    `bases` and `unknown` count the letters that were encoded and the characters that became [UNK].
    """

    def __init__(self, tokenizer: Tokenizer):
        content = json.loads(tokenizer.to_str())
        # transformers leaves the truncation and padding of its last call in the tokenizer; neither is wanted here.
        content["truncation"] = content["padding"] = None
        self.tokenizer = Tokenizer.from_str(json.dumps(content))
        self.bases = 0
        self.unknown = 0
        self.unknown_id = tokenizer.token_to_id("[UNK]")
        self._tables = None
        added = [token["content"].encode() for token in content["added_tokens"]]
        self._added = {*added, *map(self._normalized, added)}
        self._bracketed = all(b"[" in token for token in self._added)
        self.reason = _obstacle(content, self.tokenizer)
        self.fast = self.reason is None
        if self.fast:
            self._classes = _character_classes(content)
            self._tables = _build_tables(content)

    @classmethod
    def load(cls, path: str | Path) -> "Encoder":
        """Encoder of a folder with tokenizer.json, or of such a file. Raises FileNotFoundError, ValueError."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such tokenizer file")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises plain Exception
            raise ValueError(f"{path}: not a tokenizer.json that can be read: {error}") from error

    def encode(self, sequence: str | bytes) -> np.ndarray:
        """Token ids of a sequence of any length: uint16, (tokens,); uint32 for vocabularies above 65,536.

        Takes about 4 bytes per base meanwhile. Raises ValueError for bytes that are not UTF-8.
        """
        return self.encode_batch([sequence])[0]

    def encode_batch(self, sequences: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids of several sequences, end to end, and where they begin: (tokens,), int64 (sequences + 1,).

        Sequence i is ids[offsets[i] : offsets[i + 1]]. Many short sequences are faster in one call than one by one.
        """
        data = [sequence.encode() if isinstance(sequence, str) else bytes(sequence) for sequence in sequences]
        joined = END_BYTE.join([*data, b""])
        if self.fast and joined.isascii() and joined.count(END_BYTE) == len(data) and not self._has_added(joined):
            ids, offsets = self._encode_directly(np.frombuffer(joined, np.uint8), len(data))
        else:
            parts = [self._encode_slowly(sequence) for sequence in data]
            ids = np.concatenate([np.empty(0, np.uint16), *parts])
            offsets = np.cumsum([0, *map(len, parts)])
        self.bases += len(joined) - len(data)
        self.unknown += int(np.count_nonzero(ids == self.unknown_id))
        return ids, offsets

    def _normalized(self, data: bytes) -> bytes:
        """Text as the normalizer leaves it, which is none or this project's wherever `fast` is true."""
        return data.translate(NORMALIZED, WHITE_SPACE) if self.tokenizer.normalizer else data

    def _has_added(self, data: bytes) -> bool:
        """Whether ASCII text may hold an added token, as it is or normalized: `tokenizers` look for both."""
        if self._bracketed and b"[" not in data:
            return False
        normalized = self._normalized(data)
        return any(token in data or token in normalized for token in self._added)

    def warning(self) -> str | None:
        """What to tell the user about characters that became [UNK], or None when there were none."""
        if not self.unknown:
            return None
        return (
            f"{self.unknown:,} of {self.bases:,} characters ({self.unknown / self.bases:.2%}) are not A, C, G or T and "
            "became one [UNK] token each"
        )

    def _encode_directly(self, joined: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        kinds = np.empty(len(joined) + 1, np.uint8)
        kinds = kinds[: _classify(joined, self._classes, kinds)]
        ids = np.empty(len(kinds), np.uint16)
        offsets = np.zeros(number + 1, np.int64)
        used = _encode(kinds, ids, offsets, self._tables)
        return ids[:used].copy(), offsets

    def _encode_slowly(self, data: bytes) -> np.ndarray:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"byte {data[error.start]} at position {error.start + 1} is not UTF-8 text") from error
        kind = np.uint16 if self.tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, kind)


def _obstacle(content: dict, tokenizer: Tokenizer) -> str | None:
    """Why a tokenizer.json cannot be encoded directly; None if it can."""
    model = content["model"]
    if model["type"] != "BPE":
        return f"the model is {model['type']}, not BPE"
    if model.get("dropout") or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return "the model has dropout, a prefix or a suffix"
    if (
        model.get("fuse_unk")
        or model.get("byte_fallback")
        or model.get("ignore_merges")
        or model["unk_token"] != "[UNK]"
    ):
        return "unknown characters are not one [UNK] each"
    if _character_classes(content) is None:
        return "the normalizer or pre-tokenizer is neither this project's nor that of DNABERT-2"
    vocabulary = model["vocab"]
    if len(vocabulary) > 1 << 16 or any(letter not in vocabulary for letter in LETTERS):
        return "the vocabulary has more than 65,536 tokens or lacks one of A, C, G, T"
    made = set(LETTERS)
    for left, right in _merges(model):
        if left not in made or right not in made or left + right in made or left + right not in vocabulary:
            return f"the merge of {left} and {right} uses a token that no merge before made, or makes one twice"
        made.add(left + right)
    if max(map(len, made)) >= 1 << 16:
        return "a token is longer than 65,535 bases"
    others = [t for t in vocabulary if t not in made and t not in {s["content"] for s in content["added_tokens"]}]
    if others:
        return f"the token {others[0]} is not made of A, C, G, T by the merges"
    longer = sorted(made)
    for token, encoding in zip(longer, tokenizer.encode_batch(longer, add_special_tokens=False), strict=True):
        if encoding.ids != [vocabulary[token]]:
            return f"the token {token} by itself is encoded as {len(encoding.ids)} tokens"
    return None


def _merges(model: dict) -> list[tuple[str, str]]:
    return [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]


def _character_classes(content: dict) -> np.ndarray | None:
    """Class of each ASCII character: letter 0..3, UNKNOWN, IGNORED or BOUNDARY; None for other tokenizers."""
    classes = np.full(128, UNKNOWN, np.uint8)
    classes[END_BYTE[0]] = END
    upper = np.frombuffer(LETTERS.encode(), np.uint8)
    classes[upper] = np.arange(4)
    normalizer, splitter = content["normalizer"], content["pre_tokenizer"]
    if normalizer is None and splitter == {"type": "Whitespace"}:
        classes[list(WHITE_SPACE)] = BOUNDARY
        return classes
    if splitter is None and normalizer == json.loads(dna_normalizer().__getstate__()):
        classes[upper + 32] = np.arange(4)
        classes[list(b"Uu")] = LETTERS.index("T")
        classes[list(WHITE_SPACE)] = IGNORED
        return classes
    return None


def _build_tables(content: dict) -> Tables:
    """Arrays for `_encode`. Tokens inside are numbered 0..3 for the letters, then in order of the merges."""
    vocabulary, merges = content["model"]["vocab"], _merges(content["model"])
    tokens = [*LETTERS, *(left + right for left, right in merges)]
    number = {token: index for index, token in enumerate(tokens)}
    ids = np.array([*(vocabulary[token] for token in tokens), vocabulary["[UNK]"]], np.uint16)
    lengths = np.array([len(token) for token in tokens], np.uint16)  # small arrays stay in the cache
    halves = np.array([[i, i] for i in range(4)] + [[number[a], number[b]] for a, b in merges], np.int64)
    shorter = np.full(len(tokens), NO_TOKEN, np.uint16)  # longest token that begins this one
    for index, token in enumerate(tokens):
        shorter[index] = next(
            (number[token[:n]] for n in range(len(token) - 1, 0, -1) if token[:n] in number), NO_TOKEN
        )
    order = np.lexsort((halves[4:, 1], halves[4:, 0]))
    begins = np.searchsorted(halves[4:, 0][order], np.arange(len(tokens) + 1))
    rights, becomes = halves[4:, 1][order], order + 4
    first, children, at_node = _prefix_tables(tokens)
    apart, rows, columns = np.zeros((0, 0), np.uint8), np.zeros(0, np.uint16), np.zeros(0, np.uint16)
    if len(tokens) <= TABLE_LIMIT:
        # Most tokens behave alike on one side; one row and column for each kind keeps the table in the cache.
        apart, rows = np.unique(_all_neighbours(halves, begins, rights, becomes), axis=0, return_inverse=True)
        apart = np.unpackbits(apart, axis=1, count=len(tokens), bitorder="little")
        apart, columns = np.unique(apart, axis=1, return_inverse=True)
        apart = np.packbits(apart, axis=1, bitorder="little")
        rows, columns = rows.ravel().astype(np.uint16), columns.ravel().astype(np.uint16)
    return Tables(
        ids, lengths, shorter, first, children, at_node, apart, rows, columns, halves, begins, rights, becomes
    )


def _prefix_tables(tokens: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Longest-match tables.

    first (4^8,): for the next 8 bases, the first of them in the lowest bits, the longest token within them, or
    its highest bit + node when longer ones begin so. children (nodes, 4): node for each further letter, 0 for none.
    at_node: the longest token that the letters up to a node begin with.
    """
    nodes_at_most = 2 + sum(max(0, len(token) - FIRST_BASES + 1) for token in tokens)
    first = np.zeros(4**FIRST_BASES, np.uint16 if max(len(tokens), nodes_at_most) < 1 << 15 else np.uint32)
    goes_on = 1 << (8 * first.itemsize - 1)
    children, at_node, nodes = [[0] * 4], [NO_TOKEN], {}
    codes = {letter: index for index, letter in enumerate(LETTERS)}
    for index in np.argsort([len(token) for token in tokens], kind="stable").tolist():  # longer ones win
        token = tokens[index]
        start = sum(codes[letter] << 2 * place for place, letter in enumerate(token[:FIRST_BASES]))
        if len(token) <= FIRST_BASES:
            first[start :: 4 ** len(token)] = index
            continue
        if start not in nodes:
            nodes[start] = len(children)
            children.append([0] * 4)
            at_node.append(int(first[start]))
            first[start] = goes_on | nodes[start]
        node = nodes[start]
        for letter in token[FIRST_BASES:]:
            if children[node][codes[letter]] == 0:
                children[node][codes[letter]] = len(children)
                children.append([0] * 4)
                at_node.append(NO_TOKEN)
            node = children[node][codes[letter]]
        at_node[node] = index
    return first, np.array(children, np.uint32), np.array(at_node, np.uint16)


@njit(cache=True)
def _stay_apart(left, right, halves, begins, rights, becomes):
    """Whether two tokens are the encoding of their letters: no merge across their border comes before theirs.

    Undo the later of the two merges at a time; a merge across the border that is earlier than the undone one wins.
    Of equal ones the left one is done first.
    """
    limit = np.int64(1) << 40
    while True:
        low, end = begins[left], begins[left + 1]
        high = end
        while low < high:
            middle = (low + high) >> 1
            if rights[middle] < right:
                low = middle + 1
            else:
                high = middle
        if low < end and rights[low] == right and becomes[low] < limit:
            return False
        if left > right:
            limit = left
            left = halves[left, 1]
            if left == limit:
                limit = right + 1
                right = halves[right, 0]
                if right + 1 == limit:
                    return True
        else:
            limit = right + 1
            right = halves[right, 0]
            if right + 1 == limit:
                limit = left
                left = halves[left, 1]
                if left == limit:
                    return True


@njit(cache=True)
def _all_neighbours(halves, begins, rights, becomes):
    """Bit table (tokens, tokens / 8): whether the column's token may stand behind the row's."""
    size = len(halves)
    apart = np.zeros((size, (size + 7) // 8), np.uint8)
    for left in range(size):
        for right in range(size):
            if _stay_apart(left, right, halves, begins, rights, becomes):
                apart[left, right >> 3] |= np.uint8(1 << (right & 7))
    return apart


@njit(cache=True)
def _classify(data, classes, kinds):
    """Write the class of each ASCII character that is not IGNORED to `kinds`; returns how many."""
    used = uint64(0)
    for index in range(uint64(len(data))):
        kind = classes[data[index]]
        kinds[used] = kind
        used += uint64(kind != IGNORED)
    return np.int64(used)


@njit(cache=True)
def _encode(kinds, out, offsets, tables):
    """Encode classified characters, runs of letters one after the other; returns the number of ids in `out`.

    offsets[1:] gets the number of ids at each END.
    """
    longest = np.empty(BLOCK, tables.first.dtype)
    dead = np.zeros(len(kinds) // 64 + 1, np.uint64)
    eights = kinds[: len(kinds) // 8 * 8].view(np.uint64)
    used = 0
    end = 0
    sequence = 0
    block = -BLOCK  # longest[i] belongs to position block + i
    while end < len(kinds):
        begin = end
        while end < len(kinds) and kinds[end] < UNKNOWN:
            if end & 7 == 0 and end >> 3 < len(eights) and eights[uint64(end >> 3)] & NO_LETTER == 0:
                end += 8
            else:
                end += 1
        if end > begin:
            used, block = _encode_run(kinds, begin, end, longest, block, dead, out, used, tables)
        if end < len(kinds):
            if kinds[end] == UNKNOWN:
                out[used] = len(tables.lengths)
                used += 1
            elif kinds[end] == END:
                sequence += 1
                offsets[sequence] = used
            end += 1
    for index in range(uint64(used)):
        out[index] = tables.ids[out[index]]
    return used


@njit(cache=True)
def _encode_run(kinds, begin, end, longest, block, dead, out, used, tables):
    """Encode the letters kinds[begin:end] behind out[:used], in inner token numbers; returns (used, block)."""
    lengths, shorter, apart, rows, columns = tables.lengths, tables.shorter, tables.apart, tables.rows, tables.columns
    goes_on = np.int64(1) << (8 * tables.first.itemsize - 1)
    bottom = used
    position = begin
    token = NO_TOKEN
    search = True
    while position < end:
        if search:
            if position >= block + BLOCK:
                block = position
                _find_longest(kinds, block, longest, tables.first)
            if position >= block:
                token = np.int64(longest[uint64(position - block)])
            else:
                token = _longest_at(kinds, position, tables.first)
            if token & goes_on:
                token = _longest_beyond(kinds, position, token & (goes_on - 1), tables.children, tables.at_node)
        while token != NO_TOKEN:
            after = position + np.int64(lengths[uint64(token)])
            if after <= end and not (dead[uint64(after) >> uint64(6)] >> (uint64(after) & uint64(63))) & uint64(1):
                if used == bottom:
                    break
                last = uint64(out[uint64(used - 1)])
                if len(apart) > 0:
                    column = uint64(columns[uint64(token)])
                    if (apart[uint64(rows[last]), column >> uint64(3)] >> (column & uint64(7))) & 1:
                        break
                elif _stay_apart(np.int64(last), token, tables.halves, tables.begins, tables.rights, tables.becomes):
                    break
            token = np.int64(shorter[uint64(token)])
        search = token != NO_TOKEN
        if search:
            out[uint64(used)] = token
            used += 1
            position += np.int64(lengths[uint64(token)])
        else:
            dead[uint64(position) >> uint64(6)] |= uint64(1) << (uint64(position) & uint64(63))
            used -= 1
            token = np.int64(out[uint64(used)])
            position -= np.int64(lengths[uint64(token)])
            token = np.int64(shorter[uint64(token)])
    return used, block


@njit(cache=True)
def _find_longest(kinds, block, longest, first):
    """Longest token of at most FIRST_BASES letters at each position of a block, as if a run went on behind its end."""
    window = uint64(0)
    stop = min(block + len(longest) + FIRST_BASES - 1, len(kinds))
    for step in range(stop - block):
        index = uint64(stop - 1 - step)
        window = ((window << uint64(2)) | uint64(kinds[index] & 3)) & uint64(4**FIRST_BASES - 1)
        if index < uint64(block + len(longest)):
            longest[index - uint64(block)] = first[window]


@njit(cache=True)
def _longest_at(kinds, position, first):
    """The same for a single position."""
    window = 0
    for index in range(position, min(position + FIRST_BASES, len(kinds))):
        window |= (kinds[index] & 3) << 2 * (index - position)
    return np.int64(first[window])


@njit(cache=True)
def _longest_beyond(kinds, position, node, children, at_node):
    """Longest token at a position whose first letters lead to a node of the prefix tree."""
    token = NO_TOKEN
    ahead = position + FIRST_BASES
    while node != 0:
        if at_node[node] != NO_TOKEN:
            token = np.int64(at_node[node])
        if ahead >= len(kinds):
            break
        node = np.int64(children[node, kinds[ahead] & 3])
        ahead += 1
    return token
