"""StrandBERT for people who do not want remote code: importing this package registers the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_strandbert import StrandBertConfig
from .modeling_strandbert import (
    StrandBertForMaskedLM,
    StrandBertForSequenceClassification,
    StrandBertForTokenClassification,
    StrandBertModel,
    StrandBertPreTrainedModel,
)

AutoConfig.register("strandbert", StrandBertConfig, exist_ok=True)
AutoModel.register(StrandBertConfig, StrandBertModel, exist_ok=True)
AutoModelForMaskedLM.register(StrandBertConfig, StrandBertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(StrandBertConfig, StrandBertForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(StrandBertConfig, StrandBertForTokenClassification, exist_ok=True)

__all__ = [
    "StrandBertConfig",
    "StrandBertForMaskedLM",
    "StrandBertForSequenceClassification",
    "StrandBertForTokenClassification",
    "StrandBertModel",
    "StrandBertPreTrainedModel",
]
