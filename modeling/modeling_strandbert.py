"""
StrandBERT: a BERT encoder for DNA with symmetric ALiBi and gated feed-forward layers (DNABERT-2, dnaGrinder).

What is notable:
- parameter names are those of the released DNABERT-2, so its checkpoint loads unchanged;
- inside, the tokens of all sequences lie end to end: no arithmetic is spent on padding (`unpadding.py`);
- attention runs on one of several equal backends (`alibi_attention.py`); memory is linear in the length;
- the LM head runs on labelled tokens only while training;
- a checkpoint that lacks a backbone weight, or has one too many, raises: no weight is ever silently random.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple

from .alibi_attention import alibi_attention, alibi_slopes, attentions_on_grid, check_backend, eager_attention
from .configuration_strandbert import StrandBertConfig
from .embedding import embed
from .fused_linear import gated_linear, linear
from .key_ranges import key_ranges  # noqa: F401  transformers 4 copies to its cache only files that this one imports
from .memory import must_fit  # noqa: F401
from .nucleotides import token_lengths  # noqa: F401
from .short_attention import short_attention  # noqa: F401
from .triton_attention import triton_attention  # noqa: F401
from .unpadding import SequenceLayout, cu_seqlens_from_position_ids, filled, layout_from_cu_seqlens, layout_from_mask

logger = logging.get_logger(__name__)

FEED_FORWARD_CHUNK = {
    "cpu": 512,
    "cuda": 16384,
}  # tokens per pass where no gradient is needed: bounds memory, fits cache

CPU_GROUP = 2048  # tokens of whole sequences that go through all layers together: their activations stay in cache


@dataclass
class StrandBertUnpaddedOutput(BaseModelOutputWithPooling):
    """What heads get from the encoder: last_hidden_state (total_tokens, hidden) and where its tokens belong."""

    layout: SequenceLayout | None = None


def is_traced() -> bool:
    """Whether a graph is being recorded, whose shapes must not depend on values."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def uses_fused(config: StrandBertConfig) -> bool:
    """The eager backend is the reference down to its matrix products: they equal the released code's bit by bit."""
    return config._attn_implementation != "eager"


class StrandBertEmbeddings(nn.Module):
    """Word and segment embeddings, LayerNorm, dropout. ALiBi needs no position embedding."""

    def __init__(self, config: StrandBertConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, token_type_ids: Tensor | None) -> Tensor:
        """input_ids (total_tokens,) or inputs_embeds (total_tokens, hidden) -> (total_tokens, hidden)."""
        words = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            segments = self.token_type_embeddings.weight[0]
        else:
            segments = self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(words + segments))


class StrandBertUnpadSelfAttention(nn.Module):
    """Query, key and value by one linear layer, then attention on the chosen backend."""

    def __init__(self, config: StrandBertConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(
        self, hidden_states: Tensor, layout: SequenceLayout, slopes: Tensor, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        qkv = linear(self.Wqkv, hidden_states, fused=uses_fused(self.config))
        qkv = qkv.view(-1, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.unbind(dim=1)
        dropout_p = self.config.attention_probs_dropout_prob if self.training else 0.0
        if output_attentions:
            context, probabilities = eager_attention(query, key, value, slopes, layout, dropout_p)
        else:
            context = alibi_attention(
                query,
                key,
                value,
                slopes,
                layout,
                backend=self.config._attn_implementation,
                dropout_p=dropout_p,
                skip_eps=self.config.skip_eps,
            )
            probabilities = None
        return context.reshape(hidden_states.shape), probabilities


class StrandBertSelfOutput(nn.Module):
    """Output projection of attention, dropout, residual, LayerNorm."""

    def __init__(self, config: StrandBertConfig):
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, context: Tensor, residual: Tensor) -> Tensor:
        fused = uses_fused(self.config)
        if self.training and self.dropout.p > 0:
            return self.LayerNorm(self.dropout(linear(self.dense, context, fused=fused)) + residual)
        return self.LayerNorm(linear(self.dense, context, plus=residual, fused=fused))


class StrandBertAttention(nn.Module):
    """Self-attention with its output block; the submodule is called `self` in the released checkpoint."""

    def __init__(self, config: StrandBertConfig):
        super().__init__()
        self.self = StrandBertUnpadSelfAttention(config)
        self.output = StrandBertSelfOutput(config)

    def forward(
        self, hidden_states: Tensor, layout: SequenceLayout, slopes: Tensor, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        context, probabilities = self.self(hidden_states, layout, slopes, output_attentions)
        return self.output(context, hidden_states), probabilities


class StrandBertGatedMLP(nn.Module):
    """GEGLU (gelu) or SwiGLU (silu): wo(dropout(act(gate) * up)), residual, LayerNorm; gate and up in one matrix."""

    def __init__(self, config: StrandBertConfig):
        super().__init__()
        self.config = config
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden_states: Tensor) -> Tensor:
        chunk = FEED_FORWARD_CHUNK.get(hidden_states.device.type)
        # Reentrant checkpointing trains without gradients first: dropout must see the same shape when it computes anew.
        whole = chunk is None or is_traced() or torch.is_grad_enabled() or self.training
        if whole or len(hidden_states) <= chunk:
            return self.feed_forward(hidden_states)
        return torch.cat([self.feed_forward(tokens) for tokens in hidden_states.split(chunk)])

    def feed_forward(self, hidden_states: Tensor) -> Tensor:
        fused = uses_fused(self.config)
        gated = gated_linear(self.gated_layers, hidden_states, self.config.glu_activation, fused)
        return self.layernorm(linear(self.wo, self.dropout(gated), plus=hidden_states, fused=fused))


class StrandBertLayer(GradientCheckpointingLayer):
    """Attention, then gated MLP; (total_tokens, hidden) in and out."""

    def __init__(self, config: StrandBertConfig):
        super().__init__()
        self.attention = StrandBertAttention(config)
        self.mlp = StrandBertGatedMLP(config)

    def forward(
        self, hidden_states: Tensor, layout: SequenceLayout, slopes: Tensor, output_attentions: bool
    ) -> tuple[Tensor, Tensor | None]:
        hidden_states, probabilities = self.attention(hidden_states, layout, slopes, output_attentions)
        return self.mlp(hidden_states), probabilities


class StrandBertEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: StrandBertConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.layer = nn.ModuleList([StrandBertLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self,
        hidden_states: Tensor,
        layout: SequenceLayout,
        output_hidden_states: bool,
        output_attentions: bool,
        num_layers: int | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None, tuple[Tensor, ...] | None]:
        """Last hidden state (total_tokens, hidden); hidden states and attentions already on the caller's grid."""
        plain = output_hidden_states or output_attentions or is_traced() or not uses_fused(self.config)
        if plain or hidden_states.device.type != "cpu":
            return self.run_layers(hidden_states, layout, output_hidden_states, output_attentions, num_layers)
        groups = [(0, len(hidden_states), layout)] if torch.is_grad_enabled() else layout.groups(CPU_GROUP)
        last = []
        for start, end, group in groups:
            tokens, group = group.filled(hidden_states[start:end])
            last.append(self.run_layers(tokens, group, False, False, num_layers)[0][: end - start])
        return (last[0] if len(last) == 1 else torch.cat(last)), None, None

    def run_layers(self, hidden_states, layout, output_hidden_states, output_attentions, num_layers):
        """What `forward` promises, for all tokens at once."""
        # Computed here, from the config alone: a buffer would be left uninitialised by loading on the meta device.
        slopes = torch.tensor(alibi_slopes(self.num_heads), dtype=torch.float32, device=hidden_states.device)
        all_hidden_states = [layout.pad(hidden_states)] if output_hidden_states else []
        all_attentions = []
        for layer in self.layer[:num_layers]:
            hidden_states, probabilities = layer(hidden_states, layout, slopes, output_attentions)
            if output_hidden_states:
                all_hidden_states.append(layout.pad(hidden_states))
            if output_attentions:
                all_attentions.append(attentions_on_grid(probabilities, layout))
        return (
            hidden_states,
            tuple(all_hidden_states) if output_hidden_states else None,
            tuple(all_attentions) if output_attentions else None,
        )


class StrandBertPooler(nn.Module):
    """tanh(dense(first token)) of each sequence; named pooler.dense as in the released fine-tunes."""

    def __init__(self, config: StrandBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, first_tokens: Tensor) -> Tensor:
        return torch.tanh(self.dense(first_tokens))


class StrandBertPredictionHeadTransform(nn.Module):
    """dense, activation, LayerNorm before the vocabulary projection."""

    def __init__(self, config: StrandBertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=1e-12)  # fixed in the released code

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.LayerNorm(nn.functional.gelu(self.dense(hidden_states)))


class StrandBertLMPredictionHead(nn.Module):
    """(tokens, hidden) -> (tokens, vocab_size); decoder.weight is tied to the word embeddings."""

    def __init__(self, config: StrandBertConfig):
        super().__init__()
        self.transform = StrandBertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.decoder(self.transform(hidden_states))


class StrandBertOnlyMLMHead(nn.Module):
    """Holds `predictions`, as the released checkpoint names it."""

    def __init__(self, config: StrandBertConfig):
        super().__init__()
        self.predictions = StrandBertLMPredictionHead(config)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.predictions(hidden_states)


class StrandBertMLPClassifier(nn.Sequential):
    """dnaGrinder's classifier (section 2.2): linear, LayerNorm, GELU, dropout, linear."""

    def __init__(self, config: StrandBertConfig, dropout: float):
        super().__init__(
            nn.Linear(config.hidden_size, config.hidden_size),
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(config.hidden_size, config.num_labels),
        )


class StrandBertPreTrainedModel(PreTrainedModel):
    """Loading, initialisation and backend choice, shared by all heads."""

    config_class = StrandBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _no_split_modules = ["StrandBertEmbeddings", "StrandBertLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = False
    _supports_attention_backend = False
    _keys_to_ignore_on_load_unexpected = [r"position_ids$", r"token_type_ids$"]

    embed = embed  # vectors for sequences, see embedding.py

    def _init_weights(self, module: nn.Module):
        # torch.nn.init leaves weights alone that were loaded from a checkpoint; in-place calls on .data would not.
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def _loss(self, logits: Tensor, labels: Tensor, *args, **kwargs) -> Tensor:
        """transformers' loss of this head; 0, not NaN, when no label counts."""
        if not labels.is_floating_point() and not is_traced() and not bool((labels != -100).any()):
            return (logits * 0).sum()
        if self.loss_type == "ForSequenceClassification":
            return self.loss_function(labels, logits, *args, **kwargs)
        return self.loss_function(logits, labels, *args, **kwargs)

    def _check_and_adjust_attn_implementation(self, attn_implementation, is_init_check=False, **kwargs) -> str:
        return check_backend(attn_implementation)

    def get_correct_attn_implementation(self, requested_attention, is_init_check=False) -> str:
        return check_backend(requested_attention)

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        As `PreTrainedModel.from_pretrained`, but a backbone weight that is missing, left over or of another shape
        raises. Only heads may be new (a classifier on a pre-trained encoder).

        Raises:
            RuntimeError: naming the weights that do not fit.
        """
        output_loading_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        cls._check_loaded_weights(pretrained_model_name_or_path, model, info)
        return (model, info) if output_loading_info else model

    @classmethod
    def _check_loaded_weights(cls, source, model, info):
        missing = [key for key in info["missing_keys"] if cls._is_backbone(key)]
        unexpected = [key for key in info["unexpected_keys"] if cls._is_backbone(key, of_checkpoint=True)]
        # transformers 4 lists names, transformers 5 tuples of name and both shapes
        names = [entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]]
        mismatched = [key for key in names if cls._is_backbone(key)]
        new_head = [key for key in info["missing_keys"] if not cls._is_backbone(key)]
        head = [key for key in model.state_dict() if not cls._is_backbone(key)]
        tied = set(getattr(cls, "_tied_weights_keys", None) or ())
        half_head = new_head if set(head) - tied - set(new_head) - set(names) else []
        if set(new_head) == {key for key in head if key.startswith("classifier.")}:
            half_head = []  # a new classifier on a pooler that was trained before
        problems = [
            f"{what}: {', '.join(sorted(keys))}"
            for what, keys in (
                ("missing from the checkpoint", missing),
                ("missing from a head of which the checkpoint holds the rest", half_head),
                ("in the checkpoint but not in the model", unexpected),
                ("of another shape in the checkpoint", mismatched),
            )
            if keys
        ]
        if problems:
            raise RuntimeError(
                f"{source} does not fit {cls.__name__}; it would run with random or lost weights. "
                + "; ".join(problems)
                + ". Check that config.json belongs to these weights."
            )

    @classmethod
    def _is_backbone(cls, key: str, of_checkpoint: bool = False) -> bool:
        """Backbone weights may never be random. A pooler counts as a head in the classifiers, which train it."""
        key = key.removeprefix(cls.base_model_prefix + ".")
        if key.startswith("pooler."):
            return cls is StrandBertModel and not of_checkpoint
        return key.startswith(("embeddings.", "encoder."))


class StrandBertModel(StrandBertPreTrainedModel):
    """
    The encoder: token ids in, one vector per token out.

    Args:
        add_pooling_layer: also build the pooler (needs a checkpoint that holds one; released DNABERT-2 has none).
    """

    _keys_to_ignore_on_load_unexpected = [
        r"position_ids$",
        r"token_type_ids$",
        r"^cls\.",
        r"^classifier\.",
        r"pooler\.",
    ]

    def __init__(self, config: StrandBertConfig, add_pooling_layer: bool = False):
        super().__init__(config)
        self.embeddings = StrandBertEmbeddings(config)
        self.encoder = StrandBertEncoder(config)
        self.pooler = StrandBertPooler(config) if add_pooling_layer else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.embeddings.word_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        unpadded_output: bool = False,
        num_layers: int | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            input_ids: (batch, length) token ids; packed: (1, total_tokens).
            attention_mask: (batch, length), 1 for tokens and 0 for padding; None when nothing is padded.
            token_type_ids: (batch, length), 0 for the first and 1 for the second sequence of a pair.
            position_ids: only for packed input without cu_seqlens: (1, total_tokens), restarting at 0.
            inputs_embeds: (batch, length, hidden) in place of input_ids.
            cu_seqlens: int32 (num_sequences + 1,), boundaries of packed sequences; transformers' collators call it
                `cu_seq_lens_q`, which is read too.
            max_seqlen: longest packed sequence, or `max_length_q`.
            unpadded_output: return last_hidden_state as (total_tokens, hidden) with its `layout`; what the heads use.
            num_layers: run only so many layers; None runs all.

        Returns:
            last_hidden_state (batch, length, hidden), exact zeros on padding; pooler_output (num_sequences, hidden) or
            None; hidden_states, embeddings first, then one per layer; attentions (batch, heads, length, length) per
            layer, always from the eager backend.

        Raises:
            ValueError: inputs that contradict each other or lie outside the vocabulary.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions:
            self._announce_eager()
        self._check_shapes(input_ids, inputs_embeds, token_type_ids)
        layout = self._layout(
            input_ids if inputs_embeds is None else inputs_embeds,
            attention_mask,
            position_ids,
            kwargs.get("cu_seq_lens_q") if cu_seqlens is None else cu_seqlens,
            kwargs.get("max_length_q") if max_seqlen is None else max_seqlen,
        )
        tokens = self.embeddings(
            None if input_ids is None else self._checked_ids(layout.unpad(input_ids)),
            None if inputs_embeds is None else layout.unpad(inputs_embeds),
            None if token_type_ids is None else layout.unpad(token_type_ids.expand(layout.batch_size, layout.length)),
        )
        tokens, hidden_states, attentions = self.encoder(
            tokens, layout, output_hidden_states, output_attentions, num_layers
        )
        pooled = None if self.pooler is None else self.pooler(layout.first_tokens(tokens))
        if unpadded_output:
            return StrandBertUnpaddedOutput(tokens, pooled, hidden_states, attentions, layout=layout)
        return BaseModelOutputWithPooling(layout.pad(tokens), pooled, hidden_states, attentions)

    def _check_shapes(self, input_ids, inputs_embeds, token_type_ids):
        hidden_size = self.config.hidden_size
        if inputs_embeds is not None and (inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != hidden_size):
            raise ValueError(f"inputs_embeds must be (batch, length, {hidden_size}), got {tuple(inputs_embeds.shape)}")
        shape = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        if token_type_ids is not None and token_type_ids.shape[-1] != shape[-1]:
            raise ValueError(f"token_type_ids have shape {tuple(token_type_ids.shape)}, the tokens {tuple(shape)}")

    def _layout(self, inputs, attention_mask, position_ids, cu_seqlens, max_seqlen) -> SequenceLayout:
        if inputs.dim() < 2:
            raise ValueError(f"input must have a batch dimension, (batch, length); got shape {tuple(inputs.shape)}")
        batch_size, length = inputs.shape[:2]
        if batch_size * length == 0:
            raise ValueError(f"nothing to encode: the input has shape {tuple(inputs.shape)}")
        if cu_seqlens is None and position_ids is not None:
            cu_seqlens = cu_seqlens_from_position_ids(position_ids)
        if cu_seqlens is None:
            return layout_from_mask(batch_size, length, attention_mask, inputs.device)
        if attention_mask is not None and not bool(attention_mask.bool().all()):
            raise ValueError(
                "packed input (cu_seqlens, or position_ids that restart) has no padding, but attention_mask holds zeros"
            )
        return layout_from_cu_seqlens(batch_size, length, cu_seqlens, max_seqlen, inputs.device)

    def _checked_ids(self, input_ids: Tensor) -> Tensor:
        if input_ids.device.type == "cpu" and input_ids.numel() and not is_traced():
            low, high = int(input_ids.min()), int(input_ids.max())
            if low < 0 or high >= self.embeddings.word_embeddings.num_embeddings:
                raise ValueError(
                    f"token id {low if low < 0 else high} lies outside the vocabulary of "
                    f"{self.embeddings.word_embeddings.num_embeddings}: tokenizer and model do not belong together"
                )
        return input_ids

    def _announce_eager(self):
        if is_traced():
            raise ValueError("output_attentions=True cannot be compiled or exported; call the model without compiling")
        if self.config._attn_implementation not in ("eager", "auto"):
            logger.warning_once(
                f"output_attentions=True: only the eager backend returns attention probabilities; it runs for this "
                f"call in place of {self.config._attn_implementation!r}"
            )


class StrandBertForMaskedLM(StrandBertPreTrainedModel):
    """The encoder with the masked-language-model head of DNABERT-2."""

    _tied_weights_keys = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}
    _keys_to_ignore_on_load_unexpected = [r"position_ids$", r"token_type_ids$", r"^classifier\.", r"pooler\."]

    def __init__(self, config: StrandBertConfig):
        super().__init__(config)
        self.bert = StrandBertModel(config)
        self.cls = StrandBertOnlyMLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear):
        self.cls.predictions.decoder = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """
        Arguments as in `StrandBertModel.forward`, and

        Args:
            labels: as input_ids; -100 where nothing is to be predicted. A batch without any label has loss 0.

        Returns:
            loss; logits (batch, length, vocab). While training with labels, logits are computed at labelled positions
            only: (num_labelled_tokens, vocab), in the order of the tokens.
        """
        encoded = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            unpadded_output=True,
            return_dict=True,
            **kwargs,
        )
        tokens, layout = encoded.last_hidden_state, encoded.layout
        targets = None if labels is None else layout.unpad_labels(labels)
        if targets is None or is_traced() or not self.training:
            predictions = self.cls(tokens)
            logits = layout.pad(predictions)
        else:
            labelled = (targets != -100).nonzero().flatten()
            targets = targets[labelled]
            logits = predictions = self.cls(filled(tokens[labelled]))[: len(labelled)]
        loss = None if targets is None else self._loss(predictions, targets, self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


class StrandBertForSequenceClassification(StrandBertPreTrainedModel):
    """
    The encoder with a classifier on the first token, or on the mean or maximum of all (`config.classifier_pooling`):
    single-label, multi-label or regression (`config.problem_type`).

    `config.classifier_head` chooses DNABERT-2's head ("pooler": dense, tanh, dropout, linear) or dnaGrinder's ("mlp").
    """

    _keys_to_ignore_on_load_unexpected = [r"position_ids$", r"token_type_ids$", r"^cls\."]
    accepts_loss_kwargs = False  # transformers averages only single-label losses over accumulated batches

    def __init__(self, config: StrandBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = StrandBertModel(config, add_pooling_layer=config.classifier_head == "pooler")
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        if config.classifier_head == "mlp":
            self.classifier = StrandBertMLPClassifier(config, dropout)
        else:
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """
        Arguments as in `StrandBertModel.forward`, and

        Args:
            labels: (num_sequences,) class ids; (num_sequences, num_labels) of 0 and 1 for multi-label; numbers for
                regression. `config.problem_type` decides; when unset it is read off the labels' dtype.

        Returns:
            loss, logits (num_sequences, num_labels).

        Raises:
            ValueError: a class id outside 0 .. num_labels - 1, or labels whose shape or dtype does not fit.
        """
        encoded = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            unpadded_output=True,
            return_dict=True,
            **kwargs,
        )
        tokens, layout = encoded.last_hidden_state, encoded.layout
        if self.config.classifier_pooling == "first":
            features = layout.first_tokens(tokens) if self.bert.pooler is None else encoded.pooler_output
        else:
            pool = layout.mean_tokens if self.config.classifier_pooling == "mean" else layout.max_tokens
            features = pool(tokens) if self.bert.pooler is None else self.bert.pooler(pool(tokens))
        logits = self.classifier(self.dropout(features) if self.config.classifier_head == "pooler" else features)
        loss = None
        if labels is not None:
            self._settle_problem_type(labels, len(logits))
            outputs = logits
            if self.config.problem_type == "regression":  # half precision would round the labels
                outputs = logits if logits.dtype == torch.float64 else logits.float()
                labels = labels.reshape(logits.shape if self.num_labels > 1 else -1)
            if self.config.problem_type != "single_label_classification":
                labels = labels.to(outputs.dtype)
            loss = self._loss(outputs, labels, self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )

    def _settle_problem_type(self, labels: Tensor, num_sequences: int):
        """Set config.problem_type from the labels where it is unset, and check labels against it."""
        integers = not labels.is_floating_point() and labels.dtype != torch.bool
        if self.config.problem_type is None:
            if self.num_labels == 1:
                self.config.problem_type = "regression"
            elif labels.dim() == 1 and integers:
                self.config.problem_type = "single_label_classification"
            else:
                self.config.problem_type = "multi_label_classification"
        if self.config.problem_type == "single_label_classification":
            if not integers or labels.dim() != 1:
                raise ValueError(
                    f"single-label classification needs integer labels (num_sequences,), got {labels.dtype} of shape "
                    f"{tuple(labels.shape)}; set config.problem_type to 'regression' or 'multi_label_classification'"
                )
            if labels.device.type == "cpu" and not is_traced():
                outside = labels[((labels < 0) | (labels >= self.num_labels)) & (labels != -100)]
                if len(outside):
                    raise ValueError(f"label {int(outside[0])} lies outside 0 .. {self.num_labels - 1} (num_labels)")
        elif self.config.problem_type == "regression":
            if labels.numel() % self.num_labels or labels.numel() // self.num_labels != num_sequences:
                raise ValueError(
                    f"regression needs labels ({num_sequences}, {self.num_labels}), got {tuple(labels.shape)}"
                )
        elif self.config.problem_type == "multi_label_classification":
            if labels.dim() != 2 or labels.shape[1] != self.num_labels:
                raise ValueError(
                    f"multi-label classification needs labels (num_sequences, {self.num_labels}), got "
                    f"{tuple(labels.shape)}"
                )


class StrandBertForTokenClassification(StrandBertPreTrainedModel):
    """The encoder with a linear classifier on every token."""

    _keys_to_ignore_on_load_unexpected = [r"position_ids$", r"token_type_ids$", r"^cls\.", r"pooler\."]

    def __init__(self, config: StrandBertConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = StrandBertModel(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """
        Arguments as in `StrandBertModel.forward`, and

        Args:
            labels: as input_ids; -100 where there is none.

        Returns:
            loss, logits (batch, length, num_labels), exact zeros on padding.
        """
        encoded = self.bert(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            cu_seqlens=cu_seqlens,
            max_seqlen=max_seqlen,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            unpadded_output=True,
            return_dict=True,
            **kwargs,
        )
        tokens, layout = encoded.last_hidden_state, encoded.layout
        predictions = self.classifier(self.dropout(tokens))
        logits = layout.pad(predictions)
        loss = None
        if labels is not None:
            loss = self._loss(predictions, layout.unpad_labels(labels), self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


for _model_class, _auto_class in (
    (StrandBertModel, "AutoModel"),
    (StrandBertForMaskedLM, "AutoModelForMaskedLM"),
    (StrandBertForSequenceClassification, "AutoModelForSequenceClassification"),
    (StrandBertForTokenClassification, "AutoModelForTokenClassification"),
):
    _model_class.register_for_auto_class(_auto_class)
StrandBertConfig.register_for_auto_class()
