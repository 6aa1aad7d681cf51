"""Configuration of StrandBERT: DNABERT-2 and dnaGrinder are two settings of one architecture."""

from transformers import PretrainedConfig

GLU_ACTIVATIONS = ("gelu", "silu")
CLASSIFIER_HEADS = ("pooler", "mlp")
CLASSIFIER_POOLINGS = ("first", "mean", "max")

AUTO_MAP = {
    "AutoConfig": "configuration_strandbert.StrandBertConfig",
    "AutoModel": "modeling_strandbert.StrandBertModel",
    "AutoModelForMaskedLM": "modeling_strandbert.StrandBertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_strandbert.StrandBertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_strandbert.StrandBertForTokenClassification",
}


class StrandBertConfig(PretrainedConfig):
    """
    Sizes and options of a StrandBERT encoder. The defaults are DNABERT-2 (117 M parameters); dnaGrinder is
    `glu_activation="silu", intermediate_size=1152, hidden_dropout_prob=0.0, classifier_head="mlp"`.

    Args:
        vocab_size: number of token ids the embedding holds.
        hidden_size: width of a token's vector.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: heads per layer; must divide `hidden_size`. Each head has its own ALiBi slope.
        intermediate_size: width of the gated feed-forward layer (after the gate).
        glu_activation: activation of the gate, "gelu" (GEGLU, DNABERT-2) or "silu" (SwiGLU, dnaGrinder).
        hidden_dropout_prob: dropout of embeddings, attention output and feed-forward layer.
        attention_probs_dropout_prob: dropout of attention probabilities.
        layer_norm_eps: epsilon of every LayerNorm.
        type_vocab_size: number of segments that `token_type_ids` can name (pairs: 2).
        initializer_range: standard deviation of newly initialised weights.
        classifier_head: "pooler" (dense, tanh, dropout, linear; DNABERT-2) or "mlp" (linear, LayerNorm, GELU,
            dropout, linear; dnaGrinder).
        classifier_pooling: what the classifier reads: the "first" token ([CLS]; both papers), the "mean" over all, or
            of each feature the largest value ("max"), which shows whether something is anywhere in the sequence.
        classifier_dropout: dropout before the last linear layer of the classifier; None takes `hidden_dropout_prob`.
        unk_token_id, cls_token_id, sep_token_id, pad_token_id, mask_token_id: ids of the special tokens; they must
            agree with the tokenizer.
        skip_eps: probability mass that long-range attention may skip per query; None takes the rounding of the dtype,
            0 skips nothing.
        max_position_embeddings: not a limit (ALiBi reads any length); the length in tokens that the weights were
            trained on, kept for tools that ask.

    Raises:
        ValueError: an unknown activation or head, or a hidden size that the heads do not divide.
    """

    model_type = "strandbert"

    def __init__(
        self,
        vocab_size=4096,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        glu_activation="gelu",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-12,
        type_vocab_size=2,
        initializer_range=0.02,
        classifier_head="pooler",
        classifier_pooling="first",
        classifier_dropout=None,
        unk_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        pad_token_id=3,
        mask_token_id=4,
        max_position_embeddings=512,
        skip_eps=None,
        tie_word_embeddings=True,
        **kwargs,
    ):
        if glu_activation not in GLU_ACTIVATIONS:
            raise ValueError(f"glu_activation is {glu_activation!r}; it must be one of {GLU_ACTIVATIONS}")
        if classifier_head not in CLASSIFIER_HEADS:
            raise ValueError(f"classifier_head is {classifier_head!r}; it must be one of {CLASSIFIER_HEADS}")
        if classifier_pooling not in CLASSIFIER_POOLINGS:
            raise ValueError(f"classifier_pooling is {classifier_pooling!r}; it must be one of {CLASSIFIER_POOLINGS}")
        if num_attention_heads < 1 or hidden_size % num_attention_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_attention_heads {num_attention_heads}")
        for name, size in (
            ("vocab_size", vocab_size), ("hidden_size", hidden_size), ("intermediate_size", intermediate_size)
        ):  # fmt: skip
            if size < 1:
                raise ValueError(f"{name} is {size}; it must be 1 or more")
        for name, share in (
            ("hidden_dropout_prob", hidden_dropout_prob),
            ("attention_probs_dropout_prob", attention_probs_dropout_prob),
            ("classifier_dropout", classifier_dropout or 0),
        ):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; it must lie from 0 to 1")
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        # Names no activation of transformers, so that stock BERT classes refuse these weights instead of ignoring them.
        kwargs["hidden_act"] = {"gelu": "geglu", "silu": "swiglu"}[glu_activation]
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.glu_activation = glu_activation
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.layer_norm_eps = layer_norm_eps
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.classifier_head = classifier_head
        self.classifier_pooling = classifier_pooling
        self.classifier_dropout = classifier_dropout
        self.max_position_embeddings = max_position_embeddings
        self.unk_token_id = unk_token_id
        self.cls_token_id = cls_token_id
        self.sep_token_id = sep_token_id
        self.pad_token_id = pad_token_id
        self.mask_token_id = mask_token_id
        self.skip_eps = skip_eps
        self.tie_word_embeddings = tie_word_embeddings

    @property
    def output_attentions(self):
        """
        Whether every call returns attention probabilities, which only the eager backend can: "auto" becomes "eager" and
        stays so until `set_attn_implementation`.
        """
        return self._output_attentions

    @output_attentions.setter
    def output_attentions(self, value: bool):
        if value and self._attn_implementation == "auto":
            self._attn_implementation = "eager"
        PretrainedConfig.output_attentions.fset(self, value)
