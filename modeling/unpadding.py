"""
The one form in which the encoder sees a batch: the tokens of all sequences laid end to end, without padding.

Padded batches are unpadded on entry and padded again on exit; packed batches pass through. While a graph is traced
(torch.compile, torch.export) shapes must not depend on values, so a padded batch then stays a grid with a key mask.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SequenceLayout:
    """
    Where each sequence lies among the tokens laid end to end.

    Attributes:
        batch_size, length: shape of the batch as the caller gave it; a packed batch is (1, total_tokens).
        cu_seqlens: int32 (num_sequences + 1,), first token of each sequence, then total_tokens.
        max_seqlen: tokens of the longest sequence.
        indices: int64 (total_tokens,), position of each token in the flattened (batch_size * length) grid; None when
            every grid position is a token.
        grid_mask: bool (batch_size, length), only while tracing a padded batch: the tokens then are the whole grid and
            keys where the mask is False must not be read.
        packed: True when the caller gave cu_seqlens.
    """

    batch_size: int
    length: int
    cu_seqlens: Tensor
    max_seqlen: int
    indices: Tensor | None = None
    grid_mask: Tensor | None = None
    packed: bool = False

    def __post_init__(self):
        self._boundaries = None
        self._by_length = {}

    @property
    def uniform(self) -> bool:
        """True when the tokens are a full (batch_size, length) grid: every sequence is equally long."""
        return self.indices is None and not self.packed

    def boundaries(self) -> list[tuple[int, int]]:
        """Half-open token interval of each sequence, as Python integers."""
        if self._boundaries is None:
            starts = self.cu_seqlens.tolist()
            self._boundaries = list(zip(starts[:-1], starts[1:], strict=True))
        return self._boundaries

    def by_length(self, padded_to: int = 0) -> "LengthGroups":
        """
        Sequences that are not empty, grouped by length; those of at most `padded_to` tokens are grouped with others of
        nearly their length, and their last token fills the rows up to the longest of the group.
        """
        if padded_to not in self._by_length:
            self._by_length[padded_to] = _group_by_length(self.boundaries(), padded_to, self.cu_seqlens.device)
        return self._by_length[padded_to]

    def groups(self, tokens: int) -> list[tuple[int, int, "SequenceLayout"]]:
        """
        Runs of whole sequences of at least `tokens` tokens, the last one perhaps of fewer: first token, end, and the
        layout of these sequences alone, whose tokens are all that `pad` would see.
        """
        cuts = [0]
        for sequence, (_, end) in enumerate(self.boundaries(), start=1):
            if end - self.boundaries()[cuts[-1]][0] >= tokens or sequence == len(self.boundaries()):
                cuts.append(sequence)
        groups = []
        for low, high in zip(cuts[:-1], cuts[1:], strict=True):
            start, end = self.boundaries()[low][0], self.boundaries()[high - 1][1]
            cu_seqlens = self.cu_seqlens[low : high + 1] - start
            if self.uniform:
                group = SequenceLayout(high - low, self.length, cu_seqlens, self.length)
            else:
                longest = int(cu_seqlens.diff().max())
                group = SequenceLayout(1, end - start, cu_seqlens, longest, packed=True)
            groups.append((start, end, group))
        return groups

    def filled(self, tokens: Tensor) -> tuple[Tensor, "SequenceLayout"]:
        """`tokens` (total_tokens, ...) with copies of the last row up to the next usual size, and a layout in which
        these rows are more sequences, none longer than the others. The first total_tokens rows stand as before."""
        total = usual_size(len(tokens))
        if total == len(tokens):
            return tokens, self
        ends = [*range(len(tokens) + self.max_seqlen, total, self.max_seqlen), total]
        cu_seqlens = torch.cat([self.cu_seqlens, self.cu_seqlens.new_tensor(ends)])
        return filled(tokens), SequenceLayout(1, total, cu_seqlens, self.max_seqlen, packed=True)

    def sequence_grid(self) -> tuple[Tensor, Tensor]:
        """
        Token of each place when every sequence stands in a row of its own, at the left: int64 and bool
        (num_sequences, max_seqlen); places beyond a sequence's end hold token 0 and False.
        """
        starts, ends = self.cu_seqlens[:-1, None].long(), self.cu_seqlens[1:, None].long()
        positions = starts + torch.arange(self.max_seqlen, device=starts.device)
        is_token = positions < ends
        return positions.masked_fill(~is_token, 0), is_token

    def unpad(self, grid: Tensor) -> Tensor:
        """(batch_size, length, ...) -> (total_tokens, ...)."""
        flat = grid.reshape(self.batch_size * self.length, *grid.shape[2:])
        return flat if self.indices is None else flat[self.indices]

    def unpad_labels(self, labels: Tensor) -> Tensor:
        """
        Labels (batch_size, length) -> (total_tokens,); what stands on padding never counts.

        Raises:
            ValueError: labels of another shape.
        """
        if labels.shape != (self.batch_size, self.length):
            raise ValueError(f"labels have shape {tuple(labels.shape)}, the tokens {(self.batch_size, self.length)}")
        targets = self.unpad(labels)
        return targets if self.grid_mask is None else targets.masked_fill(~self.grid_mask.flatten(), -100)

    def pad(self, tokens: Tensor) -> Tensor:
        """(total_tokens, ...) -> (batch_size, length, ...), exact zeros where there was padding."""
        if self.grid_mask is not None:
            mask = self.grid_mask.reshape(-1, *[1] * (tokens.dim() - 1))
            tokens = tokens.masked_fill(~mask, 0)
        elif self.indices is not None:
            grid = tokens.new_zeros(self.batch_size * self.length, *tokens.shape[1:])
            tokens = grid.index_copy(0, self.indices, tokens)
        return tokens.reshape(self.batch_size, self.length, *tokens.shape[1:])

    def first_tokens(self, tokens: Tensor) -> Tensor:
        """(total_tokens, hidden) -> (num_sequences, hidden): first token of each sequence, zeros for an empty one."""
        if self.grid_mask is not None:
            first = self.grid_mask.int().argmax(dim=1)
            grid = tokens.reshape(self.batch_size, self.length, -1)
            rows = grid[torch.arange(self.batch_size, device=tokens.device), first]
            return rows.masked_fill(~self.grid_mask.any(dim=1, keepdim=True), 0)
        if self.uniform:
            return tokens.reshape(self.batch_size, self.length, -1)[:, 0]
        starts = self.cu_seqlens[:-1].long()
        empty = self.cu_seqlens[1:] == self.cu_seqlens[:-1]
        if tokens.shape[0] == 0:
            return tokens.new_zeros(len(starts), tokens.shape[1])
        rows = tokens[starts.clamp(max=tokens.shape[0] - 1)]
        return rows.masked_fill(empty.unsqueeze(1), 0)

    def mean_tokens(self, tokens: Tensor) -> Tensor:
        """
        (total_tokens, hidden) -> (num_sequences, hidden): mean of each sequence's tokens, zeros for an empty one. fp16
        and bf16 are summed in fp32.
        """
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        if self.grid_mask is not None or self.uniform:
            grid = tokens.reshape(self.batch_size, self.length, -1)
            if self.grid_mask is None:
                return grid.mean(dim=1)
            sums = (grid * self.grid_mask.unsqueeze(2)).sum(dim=1, dtype=dtype)
            return (sums / self.grid_mask.sum(dim=1, keepdim=True).clamp(min=1)).to(tokens.dtype)
        lengths = self.cu_seqlens.diff().long()
        sequence = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), lengths)
        sums = tokens.new_zeros(len(lengths), tokens.shape[1], dtype=dtype).index_add(0, sequence, tokens.to(dtype))
        return (sums / lengths.clamp(min=1).unsqueeze(1)).to(tokens.dtype)

    def max_tokens(self, tokens: Tensor) -> Tensor:
        """
        (total_tokens, hidden) -> (num_sequences, hidden): largest value of each feature in a sequence, zeros for an
        empty one. Tokens that share the largest value share its gradient.
        """
        if self.grid_mask is not None or self.uniform:
            grid = tokens.reshape(self.batch_size, self.length, -1)
            if self.grid_mask is None:
                return grid.amax(dim=1)
            largest = grid.masked_fill(~self.grid_mask.unsqueeze(2), float("-inf")).amax(dim=1)
            return largest.masked_fill(~self.grid_mask.any(dim=1, keepdim=True), 0)
        lengths = self.cu_seqlens.diff().long()
        sequence = torch.repeat_interleave(torch.arange(len(lengths), device=tokens.device), lengths)
        lowest = tokens.new_full((len(lengths), tokens.shape[1]), float("-inf"))
        largest = lowest.scatter_reduce(0, sequence.unsqueeze(1).expand_as(tokens), tokens, "amax")
        return largest.masked_fill((lengths == 0).unsqueeze(1), 0)


@dataclass
class LengthGroups:
    """
    Attributes:
        shapes: (sequences, rows, lengths) of each group; lengths is int64 (sequences,), None when all are `rows` long.
        places: int64, the token in each row of each group; None when the tokens already lie so.
        back: int64 (total_tokens,), the row in which each token stands.
    """

    shapes: list[tuple[int, int, Tensor | None]]
    places: Tensor | None
    back: Tensor | None


def _group_by_length(boundaries: list[tuple[int, int]], padded_to: int, device) -> LengthGroups:
    members = {}
    for start, end in boundaries:
        length = end - start
        if length:
            step = 1 << max(0, length.bit_length() - 3) if length <= padded_to else 1
            members.setdefault(-(-length // step) * step, []).append((start, length))
    shapes, places, back = [], [], torch.empty(boundaries[-1][1], dtype=torch.int64)
    rows_before = 0
    for group in members.values():
        starts, lengths = torch.tensor(group).unbind(1)
        rows = int(lengths.max())
        column = torch.arange(rows)
        is_token = column < lengths[:, None]
        tokens = starts[:, None] + torch.minimum(column, lengths[:, None] - 1)
        back[tokens[is_token]] = rows_before + torch.arange(tokens.numel()).view(tokens.shape)[is_token]
        shapes.append((len(group), rows, None if bool(is_token.all()) else lengths))
        places.append(tokens.flatten())
        rows_before += tokens.numel()
    places = torch.cat(places)
    if len(places) == len(back) and bool((places.diff() == 1).all()):
        return LengthGroups(shapes, None, None)
    return LengthGroups(shapes, places.to(device), back.to(device))


def usual_size(rows: int) -> int:
    """
    `rows` rounded up to 6 significant bits, at most 3 % more.

    oneDNN keeps some 0.5 MB for every shape of a matrix product it has met: with any number of tokens that adds up to
    gigabytes.
    """
    step = 1 << max(0, rows.bit_length() - 6)
    return -(-rows // step) * step


def filled(tokens: Tensor) -> Tensor:
    """(rows, ...) -> (`usual_size(rows)`, ...) by copies of the last row; on a CPU only, and not while tracing.

    Rows of zeros would give LayerNorm a variance of 0, whose root's reciprocal is infinite in fp16.
    """
    if tokens.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return tokens
    missing = usual_size(len(tokens)) - len(tokens)
    return torch.cat([tokens, tokens[-1:].detach().expand(missing, *tokens.shape[1:])]) if missing else tokens


def layout_from_mask(batch_size: int, length: int, attention_mask: Tensor | None, device) -> SequenceLayout:
    """
    Layout of a padded batch.

    Args:
        attention_mask: (batch_size, length) of 0 and 1 in any dtype, or None when nothing is padded. Padding may stand
            left, right or anywhere; positions count real tokens only.

    Raises:
        ValueError: a mask of another shape (4-D and additive masks are not understood).
    """
    if attention_mask is not None and attention_mask.shape != (batch_size, length):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; it must be (batch, length) = "
            f"({batch_size}, {length}) with 1 for tokens and 0 for padding"
        )
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if attention_mask is not None and attention_mask.is_floating_point() and not tracing:
        if bool((attention_mask < 0).any()):
            raise ValueError(
                "attention_mask holds negative values: additive masks are not read, give 1 for tokens, 0 for padding"
            )
    mask = None if attention_mask is None else attention_mask.to(device=device, dtype=torch.bool)
    if tracing:
        return SequenceLayout(
            batch_size, length, _regular_cu_seqlens(batch_size, length, device), length, grid_mask=mask
        )
    if mask is None or bool(mask.all()):
        return SequenceLayout(batch_size, length, _regular_cu_seqlens(batch_size, length, device), length)
    lengths = mask.sum(dim=1, dtype=torch.int32)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    indices = mask.flatten().nonzero().flatten()
    return SequenceLayout(batch_size, length, cu_seqlens, int(lengths.max()), indices=indices)


def layout_from_cu_seqlens(
    batch_size: int, length: int, cu_seqlens: Tensor, max_seqlen: int | None, device
) -> SequenceLayout:
    """
    Layout of a packed batch: one row (1, total_tokens) holding sequences end to end.

    Raises:
        ValueError: more than one row, or boundaries that do not rise from 0 to total_tokens.
    """
    if batch_size != 1:
        raise ValueError(f"packed input must be one row (1, total_tokens); got a batch of {batch_size} rows")
    cu_seqlens = cu_seqlens.to(device=device, dtype=torch.int32)
    starts = cu_seqlens.tolist()
    rising = all(a <= b for a, b in zip(starts[:-1], starts[1:], strict=True))
    if cu_seqlens.dim() != 1 or len(starts) < 2 or starts[0] != 0 or starts[-1] != length or not rising:
        raise ValueError(
            f"cu_seqlens must rise from 0 to the number of tokens, {length}; got {starts[:8]} ... {starts[-1:]}"
        )
    longest = max(b - a for a, b in zip(starts[:-1], starts[1:], strict=True))
    if max_seqlen is not None and int(max_seqlen) < longest:
        raise ValueError(f"max_seqlen is {int(max_seqlen)} but the longest packed sequence has {longest} tokens")
    return SequenceLayout(1, length, cu_seqlens, longest, packed=True)


def cu_seqlens_from_position_ids(position_ids: Tensor) -> Tensor:
    """
    Boundaries of the sequences of a packed row whose position_ids restart at 0, as DataCollatorWithFlattening gives.

    Args:
        position_ids: (1, total_tokens).

    Returns:
        int32 (num_sequences + 1,).

    Raises:
        ValueError: several rows, or positions that are not 0, 1, 2, ... within each sequence (ALiBi knows no others).
    """
    if position_ids.shape[0] != 1:
        rows = torch.arange(position_ids.shape[1], device=position_ids.device)
        if bool((position_ids == rows).all()):
            raise ValueError("position_ids are 0, 1, 2, ... in every row: leave them out, ALiBi needs none")
        raise ValueError("position_ids are only read for packed input, one row (1, total_tokens)")
    row = position_ids[0]
    starts = (row == 0).nonzero().flatten()
    ends = torch.tensor([row.shape[0]], device=row.device)
    boundaries = torch.cat([starts, ends])
    expected = torch.arange(row.shape[0], device=row.device)
    expected = expected - torch.repeat_interleave(starts, boundaries.diff()) if len(starts) else expected
    if len(starts) == 0 or int(starts[0]) != 0 or not bool((expected == row).all()):
        raise ValueError("position_ids must count 0, 1, 2, ... within each packed sequence")
    return boundaries.to(torch.int32)


def _regular_cu_seqlens(batch_size: int, length: int, device) -> Tensor:
    return torch.arange(batch_size + 1, device=device, dtype=torch.int32) * length
