"""The models that the demo offers, each loaded once: a list (models.toml), and what a local user names."""

import logging
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError

from inference.loading import SequenceEncoder, load_masked_lm, load_predictor
from inference.masked_scores import BaseProbabilities
from inference.predict import Predictor
from modeling.alibi_attention import choose_backend
from space.inputs import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
MOST_LOADED = 3  # models of one kind kept in memory
ENVIRONMENT = {"language": "STRANDBERT_DEMO_MODEL", "classifier": "STRANDBERT_DEMO_CLASSIFIER"}
log = logging.getLogger("strandbert.demo")


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode and what it needs: `bases` of language models, `predictor` of classifiers."""

    name: str
    model: torch.nn.Module
    encoder: SequenceEncoder | None
    bases: BaseProbabilities | None = None
    predictor: Predictor | None = None

    def about(self, bases: int, tokens: int | None, longest: int, seconds: float) -> dict:
        """
        What every result says of how it was made.

        Args:
            bases, tokens: of the input; None where tokens are not counted.
            longest: tokens of the longest sequence, on which the backend depends.
        """
        backend = getattr(self.model.config, "_attn_implementation", "auto")
        if backend == "auto":
            backend = choose_backend(self.model.device, self.model.dtype, longest)
        return {
            "model": self.name,
            "backend": backend,
            "device": self.model.device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "bp": bases,
            "tokens": tokens,
            "seconds": round(seconds, 3),
        }


@dataclass
class Models:
    """
    Args:
        sources: kind ("language" or "classifier") -> name -> folder or Hub name; the names may be asked for by anyone.
        local: the user sits at this machine and may name any other folder or Hub name.
    """

    sources: dict[str, dict[str, str]]
    local: bool
    device: str = "cpu"
    _loaded: dict[tuple[str, str], Loaded] = field(default_factory=dict)
    _used: dict[tuple[str, str], float] = field(default_factory=dict)  # when each was last asked for
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def names(self, kind: str) -> list[str]:
        """Names on the list."""
        return list(self.sources[kind])

    def get(self, kind: str, name: str | None = None) -> Loaded:
        """
        The model of that name, loaded when it is first asked for; the first of the list by default.

        Raises:
            InputError: not on the list, or not to be loaded.
        """
        name = (name or "").strip() or next(iter(self.sources[kind]), "")
        if not name:
            raise InputError("No classifier is installed here. Fine-tune one with run_classification.py.")
        source = self.sources[kind].get(name)
        if source is None and not self.local:
            raise InputError(f"{name[:80]!r} is not on the list of models: {', '.join(self.sources[kind]) or 'none'}.")
        if (found := self._loaded.get((kind, name))) is None:  # does not wait while another model is loaded
            with self._lock:
                if (found := self._loaded.get((kind, name))) is None:
                    found = self._load(kind, name, source or name)
                    others = [key for key in self._loaded if key[0] == kind]
                    if len(others) >= MOST_LOADED:
                        del self._loaded[min(others, key=lambda key: self._used.get(key, 0.0))]
                    self._loaded[kind, name] = found
        self._used[kind, name] = time.monotonic()
        return found

    def _load(self, kind: str, name: str, source: str) -> Loaded:
        try:
            if kind == "language":
                model = load_masked_lm(source).to(self.device)
                encoder = SequenceEncoder(source, model.config)
                return Loaded(name, model, encoder, bases=BaseProbabilities(model, encoder))
            return _classifier(name, source, self.device)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            if self.local:
                raise InputError(f"{name} cannot be loaded: {error}") from None
            log.error("%s cannot be loaded: %s", source, error)
            raise InputError(f"The model {name} cannot be loaded here.") from None


def _classifier(name: str, source: str, device: str) -> Loaded:
    classifier = load_predictor(source)
    if getattr(classifier.model.config, "reads_pairs", None):
        raise ValueError("it was fine-tuned on pairs of sequences; the demo reads single ones")
    if hasattr(classifier.model, "merge_and_unload"):  # an adapter; attribution needs the model itself
        classifier.model = classifier.model.merge_and_unload()
    classifier.model.to(device)
    model = classifier.model
    encoder = SequenceEncoder(source, model.config) if model.config.model_type == "strandbert" else None
    return Loaded(name, model, encoder, predictor=Predictor(classifier))


def read_sources() -> dict[str, dict[str, str]]:
    """Models of models.toml that are there, and first those of the environment variables."""
    content = tomllib.loads((ROOT / "space" / "models.toml").read_text(encoding="utf-8"))
    sources: dict[str, dict[str, str]] = {}
    for kind, variable in ENVIRONMENT.items():
        sources[kind] = {}
        if named := os.environ.get(variable, "").strip():
            sources[kind][Path(named).absolute().name if Path(named).is_dir() else named] = named
        for row in content.get(kind, []):
            folder = ROOT / row["source"]
            if not folder.is_dir():
                sources[kind].setdefault(row["name"], row["source"])
            elif any(folder.glob("*.safetensors")):
                sources[kind].setdefault(row["name"], str(folder))
    return sources
