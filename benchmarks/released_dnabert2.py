"""
The encoder of DNABERT-2 with the cost structure of the released code, as a naive twin to measure against.

Linear layers run on unpadded tokens (with unpad=False on padding too); attention pads them again, adds a dense (heads,
length, length) ALiBi bias and a mask, and materialises the probabilities. Weights are taken from one of our models, so
outputs can be compared.
"""

import math

import torch
from torch import Tensor, nn

from modeling.alibi_attention import alibi_bias, alibi_slopes


class ReleasedEncoder(nn.Module):
    """(batch, length) ids and mask -> (batch, length, hidden), by the weights of a StrandBertModel."""

    def __init__(self, model, unpad: bool = True):
        super().__init__()
        self.model, self.unpad = model, unpad

    @torch.no_grad()
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        batch_size, length = input_ids.shape
        config, embeddings = self.model.config, self.model.embeddings
        words = embeddings.word_embeddings(input_ids) + embeddings.token_type_embeddings.weight[0]
        computed = attention_mask if self.unpad else torch.ones_like(attention_mask)
        indices = computed.flatten().nonzero().flatten()
        hidden = embeddings.LayerNorm(words).flatten(0, 1)[indices]
        bias = alibi_bias(torch.tensor(alibi_slopes(config.num_attention_heads), device=words.device), length)
        bias = (bias[None] + (1.0 - attention_mask[:, None, None, :].float()) * -10000.0).to(hidden.dtype)
        for layer in self.model.encoder.layer:
            hidden = self.layer(layer, hidden, bias, indices, batch_size, length)
        output = hidden.new_zeros(batch_size * length, config.hidden_size)
        return output.index_copy(0, indices, hidden).view(batch_size, length, -1)

    def layer(self, layer, hidden, bias, indices, batch_size, length):
        attention, heads = layer.attention, self.model.config.num_attention_heads
        qkv = nn.functional.linear(hidden, attention.self.Wqkv.weight, attention.self.Wqkv.bias)
        padded = qkv.new_zeros(batch_size * length, qkv.shape[1]).index_copy(0, indices, qkv)
        query, key, value = padded.view(batch_size, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        scores = torch.matmul(query, key.transpose(2, 3)) / math.sqrt(query.shape[-1]) + bias
        context = torch.matmul(scores.softmax(dim=-1), value).transpose(1, 2).reshape(batch_size * length, -1)
        context = attention.output.dense(context[indices])
        hidden = attention.output.LayerNorm(context + hidden)
        gate, up = layer.mlp.gated_layers(hidden).chunk(2, dim=-1)
        return layer.mlp.layernorm(layer.mlp.wo(nn.functional.gelu(gate) * up) + hidden)
