"""
The code of a checkpoint in the manner of HyenaDNA, as its Hub folder would hold it: an encoder without attention and
without attention_mask, one token per base, padding at the left, classified on the last token.
"""

import json

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizer
from transformers.modeling_outputs import SequenceClassifierOutput


class HyenaLikeConfig(PretrainedConfig):
    model_type = "hyenadna-like"

    def __init__(self, vocab_size=12, d_model=16, n_layer=2, filter_length=64, pad_token_id=4, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.d_model, self.n_layer = vocab_size, d_model, n_layer
        self.filter_length, self.pad_token_id = filter_length, pad_token_id


class HyenaOperator(nn.Module):
    """Order-2 Hyena: gates around an implicit causal convolution, computed by FFT."""

    def __init__(self, config):
        super().__init__()
        self.in_proj = nn.Linear(config.d_model, 3 * config.d_model)
        self.out_proj = nn.Linear(config.d_model, config.d_model)
        self.filter = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, config.d_model))

    def forward(self, hidden):
        length = hidden.shape[1]
        time = torch.linspace(0, 1, length, device=hidden.device)[:, None]
        kernel = self.filter(torch.cat([time, torch.sin(6.28 * time), torch.cos(6.28 * time)], 1)) * torch.exp(
            -4 * time
        )
        gate, key, value = self.in_proj(hidden).chunk(3, dim=-1)
        spectrum = torch.fft.rfft(key * value, 2 * length, dim=1) * torch.fft.rfft(kernel, 2 * length, dim=0)
        return self.out_proj(gate * torch.fft.irfft(spectrum, 2 * length, dim=1)[:, :length])


class HyenaLikeForSequenceClassification(PreTrainedModel):
    config_class = HyenaLikeConfig
    base_model_prefix = "hyena"

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList([HyenaOperator(config) for _ in range(config.n_layer)])
        self.norms = nn.ModuleList([nn.LayerNorm(config.d_model) for _ in range(config.n_layer)])
        self.score = nn.Linear(config.d_model, config.num_labels, bias=False)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.2)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def forward(self, input_ids=None, labels=None, return_dict=None):
        hidden = self.embeddings(input_ids)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = hidden + layer(norm(hidden))
        return SequenceClassifierOutput(logits=self.score(hidden[:, -1]))


class CharacterTokenizer(PreTrainedTokenizer):
    """One token per base; [SEP] at the end, padding at the left."""

    model_input_names = ["input_ids"]
    vocab_files_names = {"vocab_file": "characters.json"}

    def __init__(self, vocab_file=None, **kwargs):
        with open(vocab_file, encoding="utf-8") as file:
            self.ids = json.load(file)
        self.names = {index: token for token, index in self.ids.items()}
        kwargs["padding_side"] = "left"
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self.ids)

    def get_vocab(self):
        return dict(self.ids)

    def _tokenize(self, text):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.ids.get(token, self.ids["[UNK]"])

    def _convert_id_to_token(self, index):
        return self.names[index]

    def build_inputs_with_special_tokens(self, token_ids_0, token_ids_1=None):
        return [*token_ids_0, self.ids["[SEP]"]]

    def save_vocabulary(self, save_directory, filename_prefix=None):
        path = f"{save_directory}/characters.json"
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.ids, file)
        return (path,)
