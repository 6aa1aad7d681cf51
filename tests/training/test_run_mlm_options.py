"""run_mlm.py: recipes, what stops a run, what it reports, ways to compute layers, errors that were tracebacks."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

import run_mlm
from modeling import StrandBertForSequenceClassification
from tests.training.conftest import random_dna
from tests.training.runs import (
    ROOT,
    WARM_UP,
    assert_same_curve,
    assert_same_weights,
    error_of,
    flags,
    going_on_from,
    losses,
    results,
    run,
    weights,
    without_batch_size,
)
from training.command_line import RECIPES, SettingsError
from training.layers import LowPrecisionLayerNorm, compile_feed_forward, use_low_precision_layernorm
from training.loading import load_config, load_model
from training.speed import PEAK_MATRIX, matmul_peak
from training.stopping import StepGuard
from training.storage import alone_in
from training.trainer import MlmTrainer

CONFIGS = RECIPES.parent / "accelerate_configs"

pytestmark = pytest.mark.usefixtures("without_pictures")


# -- recipes -------------------------------------------------------------------------------------------------------


def parsed(*argv: str):
    return run_mlm.parse_arguments(["--train_file", "a.fa", "--output_dir", "out", "--use_cpu", *argv], "")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_is_understood_and_needs_only_data_and_a_place(path):
    model_args, data_args, args = parsed("--recipe", path.stem)
    assert model_args.recipe == path.stem and data_args.packing and args.max_steps > 0
    if model_args.config_name:
        assert (Path(model_args.config_name) / "config.json").is_file()
        assert (Path(model_args.tokenizer_name) / "tokenizer.json").is_file()


def test_recipes_hold_the_numbers_of_the_papers():
    _, data, args = parsed("--recipe", "dnabert2")
    assert (args.global_batch_size, data.max_seq_length, args.max_steps) == (4096, 128, 500_000)
    assert (args.learning_rate, args.lr_scheduler_type, args.get_warmup_steps(args.max_steps)) == (
        5e-4,
        "linear",
        30_000,
    )
    _, data, args = parsed("--recipe", "dnagrinder")
    assert (args.global_batch_size, data.max_seq_length, args.max_steps) == (256, 2314, 119_000)
    assert (args.learning_rate, args.lr_scheduler_type, args.get_warmup_steps(args.max_steps)) == (
        4e-4,
        "cosine",
        16_000,
    )
    assert data.sequence_order == "length" and data.mlm_probability == 0.15
    _, data, args = parsed("--recipe", "further-gue")
    assert (args.global_batch_size, data.max_seq_length, args.max_steps, args.learning_rate) == (32, 128, 100_000, 5e-5)
    _, data, args = parsed("--recipe", "further-gue-dnagrinder")
    assert (args.global_batch_size, data.max_seq_length, args.max_steps, args.learning_rate) == (32, 2241, 31_000, 5e-5)


def test_flags_override_a_recipe():
    model_args, data_args, args = parsed("--recipe", "dnabert2", "--max_seq_length", "64", "--packing", "false")
    assert data_args.max_seq_length == 64 and not data_args.packing and args.global_batch_size == 4096


@pytest.mark.parametrize("flag", ["--model_name_or_path", "--model-name-or-path"])
def test_a_model_to_go_on_from_keeps_its_own_tokenizer_under_a_recipe(tmp_path, flag):
    model_args, _, args = parsed("--recipe", "tiny-gpu", flag, "dnabert2")
    assert model_args.config_name is None and model_args.tokenizer_name is None and args.max_steps == 10_000
    model_args, _, _ = parsed("--recipe", "tiny-gpu", flag, "dnabert2", "--tokenizer_name", "mine")
    assert model_args.tokenizer_name == "mine"
    content = {"recipe": "tiny-cpu", flag[2:]: "dnabert2", "train_file": "x.fa", "output_dir": "out"}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(content))
    model_args, _, _ = run_mlm.parse_arguments([str(tmp_path / "settings.yaml")], "")
    assert model_args.config_name is None and model_args.tokenizer_name is None


def test_the_beginning_of_a_flag_is_not_taken_for_it():
    with pytest.raises(SettingsError, match="'--model_name'"):
        parsed("--recipe", "tiny-gpu", "--model_name", "dnabert2")


def test_a_file_may_take_a_setting_of_its_recipe_back(tmp_path):
    content = {"recipe": "tiny-cpu", "global_batch_tokens": None, "global_batch_size": 32, "train_file": "x.fa"}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(content | {"output_dir": "out"}))
    _, _, args = run_mlm.parse_arguments([str(tmp_path / "settings.yaml")], "")
    assert args.global_batch_tokens is None and args.global_batch_size == 32


def test_a_wrong_choice_in_a_file_is_refused(settings, tmp_path):
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings | {"sequence_order": "lenght"}))
    with pytest.raises(SystemExit, match=r"settings\.yaml: argument --sequence_order.*invalid choice: 'lenght'"):
        run_mlm.main([str(tmp_path / "settings.yaml")])


def test_a_recipe_can_be_a_file_and_be_named_in_a_file(tmp_path, settings):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"max_steps": 2, "learning_rate": 1e-4}))
    content = settings | {"recipe": str(tmp_path / "mine.yaml")}
    del content["max_steps"]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(content))
    _, _, args = run_mlm.parse_arguments([str(tmp_path / "settings.yaml")], "")
    assert args.max_steps == 2 and args.learning_rate == settings["learning_rate"]


def test_an_unknown_recipe_is_refused_with_the_known_ones():
    with pytest.raises(SettingsError, match="no recipe 'dnabert3'; there are dnabert2, dnagrinder"):
        parsed("--recipe", "dnabert3")


def test_the_global_batch_of_a_recipe_is_kept_for_any_number_of_processes(monkeypatch):
    for processes in (1, 4, 8, 32):
        monkeypatch.setattr(run_mlm.PretrainingArguments, "world_size", processes)
        _, _, args = parsed("--recipe", "dnabert2")
        assert args.gradient_accumulation_steps * processes * args.per_device_train_batch_size == 4096


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"global_batch_tokens": 300}, "not both"),
        ({"global_batch_tokens": 300, "global_batch_size": None}, "add --packing"),
        ({"sequence_length_schedule": "64"}, "write STEP:TOKENS"),
        ({"low_precision_layernorm": True}, "add --bf16 or --fp16"),
        ({"sequence_order": "size"}, "invalid choice: 'size'"),
        ({"mask_replace_prob": 0.95}, "must not be negative, nor exceed 1 together"),
        ({"train_file": "/"}, "a folder without Parquet files"),
        ({"model_name_or_path": "model"}, "--config_name describes a new one; give one of the two"),
        ({"warmup_ratio": 6}, "warmup_ratio is 6; it must lie from 0 to 1"),
        ({"warmup_ratio": -0.5}, "warmup_ratio is -0.5; it must lie from 0 to 1"),
    ],
)
def test_settings_that_do_not_go_together_are_named(settings, capsys, tmp_path, changes, expected):
    if changes.get("train_file"):
        changes["train_file"] = tmp_path
    settings = {name: value for name, value in (settings | changes).items() if value is not None}
    assert expected in error_of(settings, capsys)


def test_a_second_run_in_the_same_folder_is_refused(settings, capsys):
    with alone_in(settings["output_dir"]):
        assert "another run writes into this folder" in error_of(settings, capsys)
        assert not any(Path(settings["output_dir"]).iterdir())


def test_a_token_budget_below_two_sequences_says_what_to_raise(settings, capsys):
    options = without_batch_size(settings) | WARM_UP | {"per_device_train_batch_tokens": 40}
    assert "raise --per_device_train_batch_tokens to 64 at least" in error_of(options, capsys)


@pytest.fixture
def corpus(tmp_path):
    """A folder with train/ and validation/, as `corpus.build` writes them."""
    for split, seed in (("train", 1), ("validation", 2)):
        (tmp_path / "corpus" / split).mkdir(parents=True)
        rows = pyarrow.table({"sequence": [random_dna(300, seed)] * 20})
        pyarrow.parquet.write_table(rows, tmp_path / "corpus" / split / "0.parquet")
    return tmp_path / "corpus"


@pytest.mark.parametrize("given", [None, "", "validation"])
def test_the_validation_part_of_a_corpus_is_not_trained_on(settings, corpus, caplog, given):
    caplog.set_level("INFO", "run_mlm")
    changes = {} if given is None else {"validation_file": corpus / given}
    folder = run(settings, train_file=corpus, max_train_samples=20, max_steps=1, **changes)
    files = {entry["file"]: entry["validation_file"] for entry in results(folder)["data"]["files"]}
    assert files == {str(corpus / "train" / "0.parquet"): False, str(corpus / "validation" / "0.parquet"): True}
    assert f"only {corpus / 'train'} is trained on" in caplog.text


def test_a_corpus_is_trained_on_without_evaluation_when_nothing_is_to_be_held_out(corpus):
    _, data_args, _ = parsed("--train_file", str(corpus), "--validation_split_percentage", "0")
    assert data_args.train_file == [str(corpus / "train" / "0.parquet")] and not data_args.validation_file


def test_a_file_to_train_on_is_not_evaluated_on(settings, corpus, monkeypatch, capsys):
    monkeypatch.chdir(corpus)
    message = error_of(settings, capsys, train_file=corpus / "validation", validation_file="validation/0.parquet")
    assert "validation/0.parquet stands in --train_file and in --validation_file" in message


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_the_configurations_of_several_devices(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 8 and config.mixed_precision == "bf16"
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed-zero2": "DEEPSPEED"}[path.stem]
    assert config.distributed_type == kind


# -- what stops a run ----------------------------------------------------------------------------------------------


def spoiled(monkeypatch, step: int, spoil):
    """From a step on, spoil the loss or the gradients of training."""
    training_step = MlmTrainer.training_step

    def at_step(self, model, *rest):
        loss = training_step(self, model, *rest)
        if self.state.global_step >= step:
            spoil(self, model, loss)
        return loss

    monkeypatch.setattr(MlmTrainer, "training_step", at_step)


def not_a_number(trainer, model, loss):
    trainer.guard.loss.fill_(math.nan)


def bad_gradient(trainer, model, loss):
    model.bert.encoder.layer[0].mlp.wo.bias.grad[3] = math.inf


def jump(trainer, model, loss):
    trainer.guard.loss += 2.5


@pytest.mark.parametrize(
    ("spoil", "step", "reason"),
    [
        (not_a_number, 5, "the loss is no finite number"),
        (bad_gradient, 5, "the gradient is no finite number"),
        (jump, 22, "the loss rose to"),
    ],
)
def test_a_bad_loss_stops_before_the_weights_change_with_the_batch_saved(
    settings, monkeypatch, capsys, tokenizer, spoil, step, reason
):
    with monkeypatch.context() as patch:
        spoiled(patch, step, spoil)
        message = error_of(settings, capsys, packing=True, max_steps=30)
    assert f"stopped before step {step + 1}: {reason}" in message and "--max_loss_jump" in message
    folder = Path(settings["output_dir"]) / f"stopped_at_step_{step + 1}"
    content = json.loads((folder / "stopped.json").read_text())
    batch = safetensors.torch.load_file(folder / "batch_of_process_0.safetensors")
    assert content["step"] == step + 1 and content["reason"].startswith(reason)
    _, data_args, args = run_mlm.parse_arguments(flags(settings), "")
    dataset, _, _ = run_mlm.load_datasets(data_args, args, tokenizer)
    epoch = content["epoch"]
    expected = sorted((dataset[epoch, index]["input_ids"] for index in content["sequences"]), key=len)
    assert batch["pass0.input_ids"].flatten().tolist() == [token for ids in expected for token in ids.tolist()]
    last = Path(settings["output_dir"]) / f"checkpoint-{step // 4 * 4}"
    assert all(weight.isfinite().all() for weight in weights(last).values())


def test_a_stopped_run_goes_on_once_the_reason_is_gone(settings, monkeypatch, capsys, tmp_path):
    with monkeypatch.context() as patch:
        spoiled(patch, 5, not_a_number)
        error_of(settings, capsys)
    assert_same_weights(run(settings), run(settings, output_dir=tmp_path / "whole"))


def test_a_jump_may_be_allowed(settings, monkeypatch):
    spoiled(monkeypatch, 22, jump)
    assert results(run(settings, max_steps=24, max_loss_jump=0))["global_step"] == 24


def test_gradients_that_deepspeed_keeps_to_itself_are_not_looked_at():
    args = SimpleNamespace(device="cpu", fp16=False)
    accelerator = SimpleNamespace(reduce=lambda numbers, reduction: numbers)
    guard = StepGuard(SimpleNamespace(args=args, accelerator=accelerator, is_deepspeed_enabled=True), max_loss_jump=2)
    guard.add({}, torch.tensor(1.5))
    guard.on_pre_optimizer_step(args, None, None, model=torch.nn.Linear(2, 2))  # without gradients
    assert list(guard.recent) == [1.5]


# -- what a run reports --------------------------------------------------------------------------------------------


def test_padding_share_speed_and_mfu_are_logged(settings, tmp_path):
    padded = run(settings | {"validation_split_percentage": 0, "max_train_samples": 0, "min_run_length": 5})
    shares = losses(padded, "padding_share")
    assert len(shares) == 12 and all(0 <= share < 0.5 for share in shares) and max(shares) > 0
    packed = run(settings, packing=True, output_dir=tmp_path / "packed")
    assert losses(packed, "padding_share") == [0] * 12
    assert all(0 < share < 1.5 for share in losses(packed, "mfu"))
    speed = zip(losses(packed, "base_pairs_per_second"), losses(packed, "tokens_per_second"), strict=True)
    assert all(1 < base_pairs / tokens < 3 for base_pairs, tokens in speed)


def test_report_compares_the_model_with_frequencies_and_bases(settings):
    folder = run(settings)
    found, text = results(folder), (folder / "report.md").read_text()
    for name in ("eval_bits_per_base", "eval_unigram_bits_per_base", "eval_markov_bits_per_base"):
        assert f"| {found[name]:.4f} |" in text
    for part in ("loss_curve.png", "speed_curve.png", "tokens/s", "MFU", "genome.fa", "learning_rate: 0.005"):
        assert part in text


def test_tensorboard_logs_do_not_stand_in_the_way_of_starting_again(settings, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    with monkeypatch.context() as patch:  # stopped before the first checkpoint
        spoiled(patch, 2, not_a_number)
        error_of(settings, capsys, report_to="tensorboard")
    folder = run(settings, report_to="tensorboard")
    assert len(list((folder / "runs").rglob("events.out.tfevents*"))) >= 2


# -- how layers are computed ---------------------------------------------------------------------------------------


@pytest.fixture
def model(settings):
    model_args, data_args, args = run_mlm.parse_arguments(flags(settings), "")
    return load_model(model_args, load_config(model_args, data_args.max_seq_length), args)


def test_low_precision_layernorm_follows_autocast_and_keeps_weights(model):
    names = list(model.state_dict())
    ids = torch.randint(5, 17, (2, 30))
    exact = model.bert(ids).last_hidden_state
    use_low_precision_layernorm(model, torch.bfloat16)
    assert list(model.state_dict()) == names
    assert torch.equal(model.bert(ids).last_hidden_state, exact)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.bert(ids).last_hidden_state
    assert rough.dtype == torch.bfloat16
    assert 0 < (rough.float() - exact).abs().max() < 0.1
    assert type(model.bert.embeddings.LayerNorm) is LowPrecisionLayerNorm
    assert model.bert.embeddings.LayerNorm.weight.dtype == torch.float32


def test_compiled_feed_forward_gives_the_same_loss_and_gradients(model, monkeypatch):
    ids, labels = torch.randint(5, 17, (2, 30)), torch.randint(5, 17, (2, 30))
    names = list(model.state_dict())
    expected = model.train()(ids, labels=labels).loss
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    calls = []
    compile_module = torch.nn.Module.compile

    def without_compiler(self, **options):  # traces as inductor does, and leaves out the C++ compiler
        calls.append(options)
        compile_module(self, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", without_compiler)
    compile_feed_forward(model)
    loss = model(ids, labels=labels).loss
    loss.backward()
    assert calls == [{"dynamic": True}] * 2 and list(model.state_dict()) == names
    torch.testing.assert_close(loss, expected)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name])


def test_activation_checkpointing_does_not_change_the_result(with_dropout, tmp_path):
    less_memory = run(with_dropout, gradient_checkpointing=True, output_dir=tmp_path / "less")
    assert_same_curve(run(with_dropout), less_memory)


def test_masking_variants(settings, tokenizer):
    _, data_args, args = run_mlm.parse_arguments(
        flags(settings | {"mask_replace_prob": 1.0, "random_replace_prob": 0.0}), ""
    )
    dataset, _, _ = run_mlm.load_datasets(data_args, args, tokenizer)
    for index in range(10):
        sample = dataset[0, index]
        targets = sample["labels"] != -100
        assert (sample["input_ids"][targets] == tokenizer.mask_token_id).all()


# -- leftovers -----------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_named(settings, tmp_path, capsys):
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs a file that exists and cannot be read, /proc/self/mem")
    (tmp_path / "unreadable.csv").symlink_to("/proc/self/mem")
    message = error_of(settings, capsys, train_file=tmp_path / "unreadable.csv")
    assert "unreadable.csv: cannot be read (Input/output error)" in message


@pytest.mark.parametrize("damage", ["cut", "absent", "other"])
def test_a_damaged_model_to_go_on_from_is_named(settings, tmp_path, capsys, damage):
    first = run(settings, max_steps=1)
    if damage == "cut":
        content = (first / "model.safetensors").read_bytes()
        (first / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif damage == "absent":
        (first / "model.safetensors").unlink()
    else:
        tensors = safetensors.torch.load_file(first / "model.safetensors")
        tensors.pop("bert.encoder.layer.0.mlp.wo.weight")
        safetensors.torch.save_file(tensors, first / "model.safetensors", metadata={"format": "pt"})
    message = error_of(going_on_from(first, settings), capsys, output_dir=tmp_path / "further")
    assert f"--model_name_or_path {first} cannot be loaded" in message


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", ['{"model": ', "[1]"])
def test_a_damaged_file_of_a_model_to_go_on_from_is_named(settings, tmp_path, capsys, name, content):
    model = shutil.copytree(ROOT / "hub_configs" / "strandbert-tiny", tmp_path / "model")
    (model / name).write_text(content)
    message = error_of(going_on_from(model, settings), capsys)
    assert message.startswith("run_mlm.py: error: ") and str(model) in message


def test_a_fine_tuned_model_is_not_gone_on_from_with_a_random_head(settings, tmp_path, capsys):
    first = run(settings, max_steps=1)
    further = going_on_from(tmp_path / "tuned", settings) | {"tokenizer_name": settings["tokenizer_name"]}
    StrandBertForSequenceClassification.from_pretrained(first).save_pretrained(tmp_path / "tuned")
    message = error_of(further, capsys, do_train=False, output_dir=tmp_path / "evaluation")
    assert f"--model_name_or_path {tmp_path / 'tuned'} has no masked-language-modelling head" in message


def test_a_new_model_is_trained_in_float32_whatever_its_configuration_says(settings, tmp_path):
    content = json.loads(Path(settings["config_name"]).read_text()) | {"dtype": "float16", "torch_dtype": "float16"}
    (tmp_path / "half.json").write_text(json.dumps(content))
    folder = run(settings, config_name=tmp_path / "half.json", max_steps=1)
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}


def test_resuming_with_another_dropout_is_reported(settings, with_dropout, caplog):
    run(settings, max_steps=4)
    run(with_dropout, max_steps=5)
    assert "Resuming with hidden_dropout_prob 0.1" in caplog.text and "was saved with 0.0" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("packing", True), ("per_device_train_batch_size", 1)])
def test_resuming_with_other_passes_is_reported(settings, caplog, name, value):
    run(settings, max_steps=4)
    run(settings, max_steps=5, **{name: value})
    assert f"Resuming with --{name} {value}, but " in caplog.text


def test_the_peak_of_matrix_products_is_measured_in_every_dtype(monkeypatch):
    monkeypatch.setitem(PEAK_MATRIX, "cpu", 64)
    assert all(matmul_peak.__wrapped__("cpu", dtype) > 0 for dtype in (torch.float32, torch.bfloat16, torch.float16))
