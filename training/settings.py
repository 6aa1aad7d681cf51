"""The settings of run_mlm.py: flags, a file, or a recipe with flags over it; and whether they make sense together."""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path

from transformers.trainer_utils import IntervalStrategy

from modeling.alibi_attention import check_backend
from training.arguments import PretrainingArguments
from training.batches import SEQUENCE_ORDERS, LengthSchedule
from training.checkpoints import CheckpointError
from training.command_line import SettingsError, check_processes, parse_settings, recipe_names
from training.storage import SETTINGS_FILE, check_writable

logger = logging.getLogger("run_mlm")

DATA_FOLDER = "data"
MIN_RUN_LENGTH = 50  # bp
GPU_BACKENDS = ("flash_attention_2", "alibi_triton")
# Settings on which the trained weights depend.
RESULT_SETTINGS = set(
    "model_name_or_path config_name tokenizer_name train_file validation_file validation_split_percentage "
    "sequence_column max_seq_length min_run_length mlm_probability mask_replace_prob random_replace_prob "
    "sequence_order sequence_length_schedule streaming max_train_samples seed global_batch_size "
    "global_batch_tokens learning_rate lr_scheduler_type warmup_ratio warmup_steps max_steps num_train_epochs "
    "optim adam_beta1 adam_beta2 adam_epsilon weight_decay max_grad_norm bf16 fp16 low_precision_layernorm "
    "lr_scheduler_kwargs optim_args label_smoothing_factor neftune_noise_alpha "
    "packing per_device_train_batch_size per_device_train_batch_tokens".split()  # dropout is drawn pass by pass
)
# Those of them that are the same when they lead to the same place.
PATH_SETTINGS = set("model_name_or_path config_name tokenizer_name train_file validation_file".split())
# Those of them on which the windows depend.
DATA_SETTINGS = set(
    "train_file validation_file validation_split_percentage sequence_column max_seq_length min_run_length "
    "streaming".split()
)


@dataclass
class ModelArguments:
    """Which model and tokenizer."""

    recipe: str | None = field(
        default=None,
        metadata={"help": f"settings to start from: {recipe_names()}, or a .yaml file; flags override them"},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "StrandBERT model (folder or Hub name) to go on from; default: from scratch"}
    )
    config_name: str | None = field(
        default=None, metadata={"help": "folder or config.json that describes the new model, when there is no model"}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "tokenizer (folder or Hub name); default: that of the model or config"}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "how attention is computed: auto, eager, sdpa, alibi_banded, flash_attention_2 or alibi_triton, "
            "with the same result. Default: auto, which takes flash_attention_2 where it is installed and the run is "
            "on a GPU in bf16 or fp16; else sdpa for sequences shorter than 1,024 tokens and alibi_banded above"
        },
    )
    low_precision_layernorm: bool = field(
        default=False,
        metadata={"help": "with --bf16 or --fp16: LayerNorm in that precision as well (DNABERT-2 section 3.2)"},
    )


@dataclass
class DataArguments:
    """Which sequences, and how they are cut, ordered and masked."""

    train_file: list[str] = field(
        metadata={
            "help": "one or several files of sequences to train on; a folder stands for its Parquet files, one with "
            "the subfolders train and validation for those of train"
        }
    )
    validation_file: list[str] = field(
        default_factory=list,
        metadata={
            "help": "files to evaluate on, none of them trained on; a folder stands for its Parquet files, one with "
            "the subfolders train and validation for those of validation. Default: validation beside train in the "
            "folders of --train_file, else a part of the training files"
        },
    )
    validation_split_percentage: float = field(
        default=5.0, metadata={"help": "percent of each training file held out without --validation_file; 0 for none"}
    )
    sequence_column: str = field(default="sequence", metadata={"help": "column of CSV, TSV and Parquet files"})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "read Parquet files while training instead of tokenising them first; each process reads its own "
            "part. A row is one sequence, of which the longest run of A, C, G and T is used, however short; of one "
            "that is longer than --max_seq_length another piece is cut every epoch"
        },
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "tokens per window, [CLS] and [SEP] included; any length (ALiBi has no limit)"}
    )
    min_run_length: int = field(
        default=MIN_RUN_LENGTH,
        metadata={
            "help": "shortest run in bp to use. A run is a stretch of A, C, G and T without a break; N, any other "
            "ambiguous base, and the end of a sequence end it. Shorter runs are dropped. Not with --streaming"
        },
    )
    sequence_order: str = field(
        default="random",
        metadata={
            "help": "random; length: sequence-length warm-up as in dnaGrinder, genomes (files, or the species of "
            "Parquet files) in the given order, inside each by number of tokens; file: as the files hold them",
            "choices": list(SEQUENCE_ORDERS),
        },
    )
    sequence_length_schedule: list[str] = field(
        default_factory=list,
        metadata={"help": "longest sequence by step, as STEP:TOKENS; 0:64 5000:128 cuts to 64 tokens before step 5000"},
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "share of the tokens to predict"})
    mask_replace_prob: float = field(default=0.8, metadata={"help": "share of these that become [MASK]"})
    random_replace_prob: float = field(
        default=0.1, metadata={"help": "share of these that become a random token; the rest stays as it is"}
    )
    packing: bool = field(default=False, metadata={"help": "lay sequences end to end instead of padding them"})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "use at most this many training windows; 0 for all"}
    )
    max_eval_samples: int | None = field(
        default=2048, metadata={"help": "use at most this many evaluation windows, spread evenly; 0 for all"}
    )
    data_cache_dir: str | None = field(
        default=None, metadata={"help": f"where tokenised data are kept; default: OUTPUT_DIR/{DATA_FOLDER}"}
    )

    def __post_init__(self):
        train = [self.train_file] if isinstance(self.train_file, str) else self.train_file
        validation = [self.validation_file] if isinstance(self.validation_file, str) else self.validation_file
        self.corpora = [path for path in train if _is_corpus(path)]
        if not validation and self.validation_split_percentage:
            validation = self.corpora
        self.train_file = _parquet_of_folders(train, "train")
        self.validation_file = _parquet_of_folders(validation, "validation")
        trained_on = {Path(path).resolve() for path in self.train_file}
        both = [path for path in self.validation_file if Path(path).resolve() in trained_on]
        if both:
            raise ValueError(f"{both[0]} stands in --train_file and in --validation_file; evaluate on other sequences")


def _is_corpus(path: str) -> bool:
    """Whether a folder is divided into train and validation, as `corpus.build` writes them."""
    return all((Path(path) / split).is_dir() for split in ("train", "validation"))


def _parquet_of_folders(paths: list[str], split: str) -> list[str]:
    """The files of the paths; of a folder its Parquet files, of a divided one those of the split."""
    found = []
    for path in paths:
        folder = Path(path) / split if _is_corpus(path) else Path(path)
        inside = sorted(str(file) for file in folder.rglob("*.parquet")) if folder.is_dir() else [path]
        if not inside:
            raise ValueError(f"{folder}: a folder without Parquet files; name the files of sequences")
        found += inside
    return found


def parse_arguments(argv: list[str], description: str) -> tuple[ModelArguments, DataArguments, PretrainingArguments]:
    """
    Read flags, or one .json or .yaml file that holds all of them; a recipe comes first where one is named.

    Raises:
        SettingsError: naming the file and the wrong key or value.
    """
    types = (ModelArguments, DataArguments, PretrainingArguments)
    return parse_settings(argv, types, "run_mlm.py", description)


def check_settings(model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments):
    """
    Find what would stop the run later; without data to evaluate on, turn evaluation off.

    Raises:
        SettingsError: settings that contradict each other, or ask for what this machine does not have.
        StorageError: an output folder that cannot be written to.
    """
    check_processes(args)
    if model_args.model_name_or_path and model_args.config_name:
        raise SettingsError(
            "--model_name_or_path goes on from a model with its own configuration, --config_name describes a new one; "
            "give one of the two"
        )
    check_writable(args.output_dir, "--output_dir")
    backend = model_args.attn_implementation
    try:
        check_backend(backend)
        LengthSchedule(data_args.sequence_length_schedule)
    except (ValueError, ImportError) as error:
        raise SettingsError(str(error)) from None
    for name in ("max_train_samples", "max_eval_samples"):
        if (getattr(data_args, name) or 0) < 0:
            raise SettingsError(f"--{name} {getattr(data_args, name)} must not be negative; 0 takes all")
    half = args.bf16 or args.fp16
    if backend in GPU_BACKENDS and args.device.type != "cuda":
        raise SettingsError(f"--attn_implementation {backend} runs on CUDA only, this run is on {args.device.type}")
    if backend == "flash_attention_2" and not half:
        raise SettingsError(f"--attn_implementation {backend} computes in half precision; add --bf16 or --fp16")
    if model_args.low_precision_layernorm and not half:
        raise SettingsError("--low_precision_layernorm follows the precision of training; add --bf16 or --fp16")
    if args.global_batch_tokens and not data_args.packing:
        raise SettingsError("--global_batch_tokens counts tokens without padding; add --packing")
    if data_args.packing and args.n_gpu > 1:
        raise SettingsError("--packing needs one process per GPU; start with accelerate launch or torchrun")
    for folder in data_args.corpora:
        logger.info("%s: only %s is trained on, not validation beside it", folder, Path(folder) / "train")
    if data_args.streaming:
        _check_streaming(data_args, args)
    if data_args.validation_file or data_args.validation_split_percentage:
        return
    if args.load_best_model_at_end or args.save_strategy == "best":
        raise SettingsError(
            "the best model is found by evaluating, and nothing is held out for that: leave out "
            "--load_best_model_at_end and --save_strategy best, or give --validation_file or a "
            "--validation_split_percentage above 0"
        )
    args.eval_strategy, args.do_eval, args.eval_on_start = IntervalStrategy.NO, False, False


def _check_streaming(data_args: DataArguments, args: PretrainingArguments):
    other = [path for path in data_args.train_file if not path.endswith(".parquet")]
    if other:
        raise SettingsError(f"--streaming reads Parquet files; {other[0]} is none (python -m corpus.build makes them)")
    if data_args.validation_split_percentage and not data_args.validation_file:
        raise SettingsError(
            "--streaming holds nothing out of the training files: give --validation_file, or "
            "--validation_split_percentage 0 for no evaluation"
        )
    if data_args.min_run_length != MIN_RUN_LENGTH:
        raise SettingsError(
            "--streaming takes the longest run of every row, however short: leave out --min_run_length, and drop short "
            "sequences when the files are built"
        )
    if data_args.sequence_order == "length" or args.global_batch_tokens or data_args.max_train_samples:
        raise SettingsError(
            "--streaming knows no lengths before it reads: leave out --global_batch_tokens and --max_train_samples; "
            "for sequence-length warm-up order the files when they are built and take --sequence_order file"
        )


def run_settings(
    model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments, sha256: dict[str, str]
) -> dict:
    """Everything that the run was asked for, saved with every checkpoint, and the SHA-256 of the data by split."""
    asked = {"model": asdict(model_args), "data": asdict(data_args), "training": json.loads(args.to_json_string())}
    return asked | {"sha256": sha256}


def check_changed_settings(checkpoint: str, settings: dict):
    """
    Log each setting that differs from the checkpoint's and makes the continuation differ from one long run.

    Raises:
        CheckpointError: the data have another content, and no setting says so.
    """
    path = Path(checkpoint) / SETTINGS_FILE
    before = json.loads(path.read_text()) if path.is_file() else {}
    changed = set()
    for group in ("model", "data", "training"):
        values = settings[group]
        for name in sorted(RESULT_SETTINGS & values.keys()):
            old = before.get(group, {}).get(name, values[name])
            same = _places(old) == _places(values[name]) if name in PATH_SETTINGS else old == values[name]
            if not same:
                logger.warning("Resuming with --%s %s, but %s was saved with %s", name, values[name], checkpoint, old)
                changed.add(name)
    if "model_name_or_path" in changed:
        logger.warning(
            "The weights are those of %s; for those of another model choose another --output_dir", checkpoint
        )
    if before.get("sha256", settings["sha256"]) != settings["sha256"] and not changed & DATA_SETTINGS:
        raise CheckpointError(
            f"{checkpoint} was saved with other sequences: the content of the data has changed; give the same data to "
            "go on, choose another --output_dir, or start over with --overwrite_output_dir"
        )


def _places(paths: str | list[str] | None) -> list[Path | None]:
    """Where the values of a setting lead: files and folders however they are spelled; names of the Hub unchanged."""
    found = [Path(path) if path else None for path in (paths if isinstance(paths, list) else [paths])]
    return [path.resolve() if path and path.exists() else path for path in found]
