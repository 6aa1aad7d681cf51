"""run_mlm.py end to end, with a minuscule model: what it writes, exact resume, equal results, clear errors."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import run_mlm
import training.exact_trainer
from modeling import StrandBertForMaskedLM
from tests.training.conftest import MERGES, random_dna
from tests.training.runs import (
    KILLED,
    ROOT,
    STEPS,
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
from tokenization.tokenizer_files import bpe_tokenizer, save_tokenizer_files
from training.checkpoints import COMPLETE, mark_complete, save_optimizer
from training.storage import SETTINGS_FILE
from training.trainer import MlmTrainer

pytestmark = pytest.mark.usefixtures("without_pictures")

# -- what a run writes ---------------------------------------------------------------------------------------------


def test_a_run_learns_and_writes_results_curve_and_model(settings, monkeypatch):
    monkeypatch.undo()  # this one draws
    folder = run(settings, max_steps=60, eval_steps=30, save_steps=60)
    found = results(folder)
    assert found["global_step"] == 60
    assert found["eval_loss"] < found["eval_unigram_entropy"] < math.log(17)
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]))
    assert found["eval_accuracy"] > 0.2
    assert found["train_tokens_per_second"] > 0 and found["train_base_pairs_per_second"] > 0
    assert found["data"]["splits"]["train"]["base_pairs"] + found["data"]["splits"]["validation"]["base_pairs"] == 8800
    assert len(losses(folder)) == 60 and len(losses(folder, "eval_loss")) == 2
    assert (folder / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    for name in ("train_results.json", "eval_results.json"):
        assert json.loads((folder / name).read_text()).items() <= found.items()


def test_nothing_written_is_a_pickle(settings):
    folder = run(settings)
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {".safetensors", ".json", ".npy", ".csv", ".py", ".md"}


def test_evaluation_is_the_mean_over_all_masked_tokens(settings, tokenizer):
    folder = run(settings, per_device_eval_batch_size=3)
    model = StrandBertForMaskedLM.from_pretrained(folder).eval()
    _, data_args, args = run_mlm.parse_arguments(flags(settings), "")
    _, dataset, _ = run_mlm.load_datasets(data_args, args, tokenizer)
    nats, correct, count, bases = 0.0, 0, 0, 0
    for index in range(len(dataset)):
        sample = {name: torch.from_numpy(values)[None] for name, values in dataset[index].items()}
        targets = sample["labels"] != -100
        scores = model(sample["input_ids"]).logits[targets].log_softmax(-1)
        nats -= scores.gather(1, sample["labels"][targets][:, None]).sum().item()
        correct += (scores.argmax(-1) == sample["labels"][targets]).sum().item()
        count += int(targets.sum())
        bases += sum(map(len, tokenizer.convert_ids_to_tokens(sample["labels"][targets].tolist())))
    found = results(folder)
    assert found["eval_loss"] == pytest.approx(nats / count, rel=1e-5)
    assert found["eval_accuracy"] == pytest.approx(correct / count)
    assert found["eval_masked_tokens"] == count
    assert found["eval_masked_base_pairs"] == bases
    assert found["eval_bits_per_base"] == pytest.approx(nats / math.log(2) / bases, rel=1e-5)


def test_tokens_are_counted_without_padding(settings, tokenizer):
    folder = run(settings, max_steps=10)
    _, data_args, args = run_mlm.parse_arguments(flags(settings), "")
    dataset, _, _ = run_mlm.load_datasets(data_args, args, tokenizer)
    plan = run_mlm.make_plan(data_args, args, dataset)
    one_epoch = [index for step in range(10) for index in plan.step(0, step)]
    assert results(folder)["train_tokens_seen"] == sum(len(dataset.window(index)) for index in one_epoch)


def test_a_checkpoint_loads_in_a_fresh_process_without_the_checkout(settings, tmp_path):
    folder = run(settings)
    model = StrandBertForMaskedLM.from_pretrained(folder / "checkpoint-8").eval()
    expected = model(torch.tensor([[1, 7, 4, 9, 2]])).logits
    script = f"""
import torch, sys
from transformers import AutoModelForMaskedLM, AutoTokenizer
model = AutoModelForMaskedLM.from_pretrained({str(folder / "checkpoint-8")!r}, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r}, trust_remote_code=True)
assert "modeling" not in sys.modules
print(tokenizer("AACGTT")["input_ids"])
print(model(torch.tensor([[1, 7, 4, 9, 2]])).logits.flatten().tolist())
"""
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    completed = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    ids, logits = completed.stdout.splitlines()[-2:]
    assert json.loads(ids) == [1, 12, 11, 2]  # [CLS] AACG TT [SEP]
    assert torch.equal(torch.tensor(json.loads(logits)).view_as(expected), expected)


def test_old_checkpoints_are_removed_on_request(settings):
    folder = run(settings, save_steps=3, save_total_limit=2)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-9"]


# -- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_a_file_of_settings_equals_flags(settings, tmp_path, kind):
    by_flags = run(settings)
    content = settings | {"output_dir": str(tmp_path / "by_file")}
    path = tmp_path / f"settings.{kind}"
    path.write_text(json.dumps(content) if kind == "json" else yaml.safe_dump(content))
    run_mlm.main([str(path)])
    assert_same_weights(by_flags, tmp_path / "by_file")


def test_help_names_examples_and_flags(capsys):
    with pytest.raises(SystemExit):
        run_mlm.main(["--help"])
    text = capsys.readouterr().out
    assert "accelerate launch run_mlm.py --config_name" in text
    assert "--global_batch_size" in text and "--schedule" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train_file": "absent.fa"}, "absent.fa: no such file"),
        ({"config_name": "absent"}, "no configuration at absent"),
        ({"tokenizer_name": "absent"}, "no tokenizer at absent"),
        ({"no_such_flag": 1}, "no_such_flag"),
        ({"global_batch_size": 12}, "global_batch_size 12 is no multiple of 8"),
        ({"mlm_probability": 0}, "mlm_probability is 0.0"),
        ({"max_seq_length": 2}, "max_seq_length is 2"),
        ({"max_train_samples": -1}, "--max_train_samples -1 must not be negative"),
        ({"max_eval_samples": -1}, "--max_eval_samples -1 must not be negative"),
        ({"schedule": "bert"}, "dnabert2"),
        ({"resume_from_checkpoint": "absent"}, "cannot resume from absent: no such folder"),
        ({"resume_from_checkpoint": "True"}, "holds no complete checkpoint to resume from"),
        ({"seed": -1}, "seed is -1; it must lie from 0"),
        ({"attn_implementation": "fast"}, "attn_implementation='fast' is unknown to StrandBERT; choose one of auto"),
        ({"attn_implementation": "alibi_triton"}, "alibi_triton"),
        ({"validation_split_percentage": 0, "save_strategy": "best"}, "nothing is held out"),
    ],
)
def test_wrong_settings_are_named_before_any_data_is_read(settings, capsys, changes, expected):
    message = error_of(settings, capsys, **changes)
    assert expected in message and "Tokenising" not in message
    assert not Path(settings["output_dir"]).exists()


def test_help_says_what_happens_without_a_flag(capsys):
    with pytest.raises(SystemExit):
        run_mlm.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: None)" not in text and "leave as it is" not in text and "by table" not in text
    assert "A run is a stretch of A, C, G and T" in text


def test_a_wrong_key_in_a_file_names_file_and_key(settings, tmp_path, capsys):
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings | {"max_lenght": 3}))
    with pytest.raises(SystemExit, match=r"settings\.yaml: .*max_lenght"):
        run_mlm.main([str(path)])


def test_special_tokens_with_other_ids_name_token_and_both_ids(settings, config_file, tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        json.dumps(json.loads(config_file.read_text()) | {"pad_token_id": 0, "unk_token_id": 3})
    )
    message = error_of(settings, capsys, config_name=tmp_path / "config.json")
    assert "[UNK] has id 0 in the tokenizer" in message and "but id 3 in the configuration" in message


def test_a_tokenizer_larger_than_the_model_is_refused(settings, config_file, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(json.loads(config_file.read_text()) | {"vocab_size": 16}))
    message = error_of(settings, capsys, config_name=tmp_path / "config.json")
    assert "has 17 tokens, more than vocab_size 16" in message


def test_a_configuration_with_an_unknown_value_names_file_and_value(settings, config_file, tmp_path, capsys):
    (tmp_path / "relu.json").write_text(json.dumps(json.loads(config_file.read_text()) | {"glu_activation": "relu"}))
    message = error_of(settings, capsys, config_name=tmp_path / "relu.json")
    assert "relu.json: glu_activation is 'relu'; it must be one of" in message


def test_a_model_of_another_kind_is_refused(settings, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "describes a model of type 'bert'" in error_of(settings, capsys, config_name=tmp_path / "config.json")


def test_protein_is_refused(settings, tmp_path, capsys):
    (tmp_path / "protein.fa").write_text(">sp\nMVHLTPEEK\n")
    message = error_of(settings, capsys, train_file=tmp_path / "protein.fa")
    assert "protein.fa, line 2, record 'sp': letter 'L'" in message and "looks like protein" in message


# -- without evaluation --------------------------------------------------------------------------------------------


def test_nothing_held_out_means_no_evaluation_but_all_other_results(settings):
    folder = run(settings, validation_split_percentage=0)
    found = results(folder)
    assert found["global_step"] == STEPS and found["train_loss"] == losses(folder)[-1]
    assert found["data"]["splits"].keys() == {"train"}
    assert not any(name.startswith("eval_") for name in found)
    assert (folder / "model.safetensors").is_file() and losses(folder, "eval_loss") == []


def test_the_best_model_cannot_be_found_without_evaluation(settings, capsys):
    changes = {"validation_split_percentage": 0, "load_best_model_at_end": True, "save_steps": 6}
    assert "leave out --load_best_model_at_end" in error_of(settings, capsys, **changes)


# -- the output folder ---------------------------------------------------------------------------------------------


def test_an_output_folder_with_other_contents_is_left_alone(settings, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert "thesis.txt" in error_of(settings, capsys)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_finished_run_is_not_trained_again(settings, monkeypatch):
    folder = run(settings)
    before, found = weights(folder), results(folder)
    monkeypatch.setattr(MlmTrainer, "training_step", lambda *_: pytest.fail("trained again"))
    run(settings)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(folder).items())
    again = results(folder)
    assert again.keys() == found.keys() and again["data"] == found["data"]
    lasting = [name for name in found if name != "data" and not name.endswith(("_per_second", "_runtime"))]
    assert [again[name] for name in lasting] == pytest.approx([found[name] for name in lasting])


def test_a_finished_run_that_is_run_again_keeps_its_best_model(settings, capsys):
    options = settings | {"load_best_model_at_end": True, "eval_steps": 4}
    folder = run(options, greater_is_better=True)  # the best of a run that learns is then its first evaluation
    before, evaluations = weights(folder), losses(folder, "eval_loss")[:3]
    assert evaluations[0] == max(evaluations) > evaluations[-1]
    run(options, greater_is_better=True)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(folder).items())
    assert results(folder)["eval_loss"] == pytest.approx(evaluations[0], rel=1e-5)
    shutil.rmtree(folder / "checkpoint-4")
    assert "cannot load the best weights" in error_of(options, capsys, greater_is_better=True)


def test_a_finished_run_is_evaluated_on_what_is_held_out_now(settings):
    folder = run(settings)
    before = results(folder)
    run(settings, max_eval_samples=4)
    assert results(folder)["eval_masked_tokens"] < before["eval_masked_tokens"]
    assert results(folder)["eval_loss"] != before["eval_loss"]
    run(settings, validation_split_percentage=0)
    found = results(folder)
    assert not any(name.startswith("eval_") for name in found) and not (folder / "eval_results.json").exists()
    assert found["train_loss"] == before["train_loss"]


def test_results_of_a_run_that_was_replaced_are_not_reported(settings, monkeypatch):
    folder = run(settings, max_steps=4, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(run_mlm, "save_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(settings, max_steps=4, overwrite_output_dir=True)
    run(settings, max_steps=4)
    assert "train_loss" not in results(folder) and results(folder)["eval_loss"] > 0


def test_more_steps_go_on_from_the_last_checkpoint(settings):
    run(settings, max_steps=8)
    folder = run(settings, max_steps=STEPS)
    assert len(losses(folder)) == STEPS
    assert results(folder)["global_step"] == STEPS


def test_starting_over_has_to_be_asked_for(settings):
    folder = run(settings, seed=1)
    run(settings, overwrite_output_dir=True)
    fresh = run(settings, output_dir=str(folder) + "_fresh")
    assert_same_weights(folder, fresh)


@pytest.mark.parametrize("change", [{"hidden_size": 64}, {"glu_activation": "silu"}, {"vocab_size": 20}])
def test_resuming_with_another_model_names_the_field_and_both_values(settings, config_file, tmp_path, capsys, change):
    run(settings, max_steps=4)
    (name, value), content = *change.items(), json.loads(config_file.read_text())
    (tmp_path / "other.json").write_text(json.dumps(content | change))
    message = error_of(settings, capsys, config_name=tmp_path / "other.json")
    old = content.get(name, "gelu")
    assert f"{name} is {old!r} in the checkpoint but {value!r} in the model asked for" in message


def test_resuming_with_another_tokenizer_of_the_same_size_names_the_merge(settings, tmp_path, capsys):
    run(settings, max_steps=4)
    save_tokenizer_files(bpe_tokenizer([*MERGES[:-1], ("G", "AACGT")]), tmp_path / "other")
    message = error_of(settings, capsys, tokenizer_name=tmp_path / "other")
    assert "vocab['ACAC'] is 16 in the checkpoint's tokenizer but absent in the one asked for" in message


def test_true_resumes_from_the_last_complete_checkpoint(settings, caplog):
    folder = run(settings, max_steps=4)
    run(settings, max_steps=8, resume_from_checkpoint=True)
    assert f"{folder / 'checkpoint-4'} was saved with 4" in caplog.text and len(losses(folder)) == 8


def test_a_checkpoint_to_resume_from_is_not_deleted(settings, capsys):
    folder = run(settings, max_steps=4)
    changes = {"resume_from_checkpoint": True, "overwrite_output_dir": True}
    assert "give one of the two" in error_of(settings, capsys, **changes)
    assert (folder / "checkpoint-4" / COMPLETE).is_file()


def test_a_resumed_run_misses_no_weight_and_tells_its_tokens_from_its_speed(settings, caplog):
    run(settings, max_steps=4)
    folder = run(settings, max_steps=8)
    assert "missing keys" not in caplog.text
    seen = int(losses(folder, "tokens")[-1])
    assert f"| tokens seen, whole run | {seen:,} |" in (folder / "report.md").read_text()


def test_going_back_to_an_earlier_checkpoint_does_not_lose_the_later_ones(settings, tmp_path, capsys):
    folder = run(settings)
    back = {"resume_from_checkpoint": folder / "checkpoint-4", "save_total_limit": 1}
    message = error_of(settings, capsys, **back)
    assert "holds checkpoint-8, checkpoint-12, which would be lost" in message
    assert_same_weights(run(settings, **back, output_dir=tmp_path / "elsewhere"), folder)
    message = error_of(settings, capsys, **back, output_dir=tmp_path / "elsewhere")
    assert "elsewhere is not empty" in message


def test_a_damaged_later_checkpoint_does_not_count_as_one_to_keep(settings):
    folder = run(settings, save_total_limit=-1)  # all, as in transformers
    shutil.rmtree(folder / "checkpoint-8")
    (folder / "checkpoint-12" / COMPLETE).unlink()
    run(settings, max_steps=8, save_total_limit=1)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    assert (folder / "checkpoint-8" / COMPLETE).is_file()


def test_a_checkpoint_that_is_written_again_is_not_whole_until_the_end(settings, monkeypatch):
    folder = run(settings)
    (folder / "checkpoint-12" / "optimizer.safetensors").unlink()

    def save(checkpoint, *rest):
        assert not (Path(checkpoint) / COMPLETE).exists()
        save_optimizer(checkpoint, *rest)

    monkeypatch.setattr(training.exact_trainer, "save_optimizer", save)
    run(settings)
    assert (folder / "checkpoint-12" / COMPLETE).is_file()


def test_changed_settings_are_named_when_resuming(settings, caplog):
    folder = run(settings)
    shutil.rmtree(folder / "checkpoint-12")
    run(settings, mlm_probability=0.3)
    assert "Resuming with --mlm_probability 0.3" in caplog.text and "was saved with 0.15" in caplog.text


def test_another_start_model_is_named_when_resuming(settings, tmp_path, monkeypatch, caplog):
    models = [run(settings, max_steps=1, seed=seed, output_dir=tmp_path / f"model{seed}") for seed in (1, 2)]
    further = going_on_from(models[0], settings)
    folder = run(further, max_steps=4)
    monkeypatch.chdir(tmp_path)
    caplog.clear()
    further |= {"train_file": os.path.relpath(further["train_file"])}
    run(further, max_steps=5, save_steps=1, model_name_or_path="model1")
    assert "--max_steps" in caplog.text and "--model_name_or_path" not in caplog.text
    assert "--train_file" not in caplog.text
    run(further, max_steps=6, model_name_or_path="model2", label_smoothing_factor=0.1)
    assert f"Resuming with --model_name_or_path model2, but {folder / 'checkpoint-5'} was saved with" in caplog.text
    assert f"The weights are those of {folder / 'checkpoint-5'}" in caplog.text
    assert "Resuming with --label_smoothing_factor 0.1" in caplog.text


@pytest.mark.parametrize("split", ["train", "validation"])
def test_other_sequences_in_the_same_file_are_refused_when_resuming(settings, genome_file, tmp_path, capsys, split):
    path = tmp_path / "copy.fa"
    shutil.copy(genome_file, path)
    settings |= {f"{split}_file": path}
    run(settings, max_steps=4)
    os.utime(path, (1, 1))  # another time alone changes nothing
    folder = run(settings, max_steps=5)
    path.write_text(path.read_text().replace("AACGTTACG", "AACGTTACC", 1))
    message = error_of(settings, capsys, max_steps=6)
    assert "checkpoint-5 was saved with other sequences: the content of the data has changed" in message
    assert "start over with --overwrite_output_dir" in message
    assert results(folder)["global_step"] == 5
    with_more = {"validation_split_percentage": 30} if split == "train" else {"min_run_length": 40}
    assert results(run(settings, max_steps=6, **with_more))["global_step"] == 6  # said by a setting, so only named


def test_a_checkpoint_that_does_not_know_its_sequences_is_accepted(settings):
    folder = run(settings, max_steps=4)
    path = folder / "checkpoint-4" / SETTINGS_FILE
    content = json.loads(path.read_text())
    assert content.pop("sha256").keys() == {"train", "validation"}
    path.write_text(json.dumps(content))
    mark_complete(path.parent)
    assert results(run(settings, max_steps=5))["global_step"] == 5


def test_a_changed_learning_rate_counts_when_resuming(settings):
    run(settings, max_steps=4, lr_scheduler_type="constant")
    folder = run(settings, max_steps=8, lr_scheduler_type="constant", learning_rate=1e-3)
    assert [float(rate) for rate in losses(folder, "learning_rate")] == [5e-3] * 4 + [1e-3] * 4


@pytest.mark.parametrize("folder", ["file", "file/run"])
def test_an_output_folder_that_cannot_be_made_is_named_before_any_data_is_read(settings, tmp_path, capsys, folder):
    (tmp_path / "file").write_text("")
    message = error_of(settings, capsys, output_dir=tmp_path / folder)
    assert f"--output_dir {tmp_path / folder}: {tmp_path / 'file'} is not a folder" in message
    assert "Tokenising" not in message


def test_a_data_folder_that_cannot_be_made_is_named_before_any_data_is_read(settings, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    message = error_of(settings, capsys, data_cache_dir=tmp_path / "file")
    assert f"cannot write to {tmp_path / 'file'}: Not a directory" in message and "--data_cache_dir" in message
    assert "Tokenising" not in message


def test_a_full_disk_names_the_folder_and_the_checkpoint_that_is_left(settings, monkeypatch, capsys):
    def save_on_full_disk(folder, *rest):
        if folder.endswith("checkpoint-8"):
            with open("/dev/full", "wb", buffering=0) as file:
                file.write(b"x")
        save_optimizer(folder, *rest)

    monkeypatch.setattr(training.exact_trainer, "save_optimizer", save_on_full_disk)
    folder = Path(settings["output_dir"])
    message = error_of(settings, capsys)
    assert f"run_mlm.py: error: cannot write to {folder}: the disk is full" in message
    assert f"the last complete checkpoint, {folder / 'checkpoint-4'}, is kept" in message
    assert "run the same command again" in message
    monkeypatch.undo()
    assert_same_weights(run(settings), run(settings, output_dir=str(folder) + "_whole"))


# -- exact resume --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("moment", "step", "options"), [("training", 6, {}), ("saving", 8, WARM_UP)])
def test_killed_and_resumed_equals_uninterrupted(with_dropout, tmp_path, moment, step, options):
    with_dropout = without_batch_size(with_dropout) | options if options else with_dropout
    killed = with_dropout | {"output_dir": str(tmp_path / "killed")}
    completed = subprocess.run(
        [sys.executable, "-c", KILLED, moment, str(step), *flags(killed)], cwd=ROOT, capture_output=True, text=True
    )
    assert completed.returncode == -9, completed.stderr
    assert (tmp_path / "killed" / "checkpoint-4" / COMPLETE).is_file()
    assert (tmp_path / "killed" / "checkpoint-8").is_dir() == (moment == "saving")
    resumed, whole = run(killed), run(with_dropout)
    assert_same_weights(resumed, whole)
    assert losses(resumed) == losses(whole)
    assert losses(resumed, "eval_loss") == losses(whole, "eval_loss")


@pytest.mark.parametrize("checkpoint", [4, 8])
def test_resuming_with_accumulation_and_a_second_epoch_is_exact(with_dropout, checkpoint):
    options = {"per_device_train_batch_size": 2, "max_steps": 16, "global_batch_size": 16}  # 5 steps an epoch
    options |= {"save_total_limit": 0}  # keep all checkpoints
    whole = run(with_dropout, **options)
    before, curve = weights(whole), losses(whole)
    for path in whole.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > checkpoint:
            shutil.rmtree(path)
    resumed = run(with_dropout, **options)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(resumed).items())
    assert losses(resumed) == curve


def test_a_truncated_checkpoint_is_passed_over(settings, caplog):
    folder = run(settings)
    before = weights(folder)
    damaged = folder / "checkpoint-12" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    run(settings)
    assert "Passing over" in caplog.text and "optimizer.safetensors holds" in caplog.text
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(folder).items())


# -- equal results -------------------------------------------------------------------------------------------------


def test_accumulation_does_not_change_the_result(settings, tmp_path):
    whole = run(settings)
    parts = run(settings, per_device_train_batch_size=2, output_dir=tmp_path / "parts")
    assert_same_curve(whole, parts)


def test_packing_does_not_change_the_result(settings, tmp_path):
    assert_same_curve(run(settings), run(settings, packing=True, output_dir=tmp_path / "packed"))


def test_data_workers_do_not_change_the_result(settings, tmp_path):
    workers = run(settings, dataloader_num_workers=2, output_dir=tmp_path / "workers")
    assert_same_weights(run(settings), workers)


TWICE = """
import sys
import run_mlm
folder, *flags = sys.argv[1:]
run_mlm.main([*flags, "--output_dir", folder + "/whole"])
run_mlm.main([*flags, "--output_dir", folder + "/resumed", "--resume_from_checkpoint", folder + "/whole/checkpoint-4"])
import torch
torch.distributed.destroy_process_group()
"""


def test_two_processes_equal_one_also_when_resuming(settings, tmp_path):
    (tmp_path / "twice.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})" + TWICE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [tmp_path / "twice.py", tmp_path, *flags(settings | {"per_device_train_batch_size": 2})]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    one = run(settings)
    assert_same_curve(one, tmp_path / "whole")
    assert_same_curve(one, tmp_path / "resumed")


def test_bf16_on_cpu(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # transformers 4 sets it for the rest of the process
    exact, rough = run(settings), run(settings, bf16=True, output_dir=tmp_path / "bf16")
    assert losses(rough) == pytest.approx(losses(exact), rel=0.02)
    assert losses(rough) != losses(exact)
    assert {tensor.dtype for tensor in weights(rough).values()} == {torch.float32}


# -- further pre-training ------------------------------------------------------------------------------------------


def test_going_on_from_a_model_starts_at_its_loss_and_takes_longer_windows(settings, tmp_path):
    first = run(settings, max_steps=60, save_steps=60, eval_steps=60)
    further = going_on_from(first, settings) | {"output_dir": str(tmp_path / "further")}
    same = run(further, eval_on_start=True, max_steps=1)
    assert losses(same, "eval_loss")[0] == pytest.approx(results(first)["eval_loss"], rel=1e-5)
    longer = run(further, max_seq_length=400, max_steps=1, output_dir=tmp_path / "longer")
    assert results(longer)["data"]["splits"]["train"]["windows"] < 20
    assert json.loads((longer / "config.json").read_text())["max_position_embeddings"] == 400


def test_evaluating_without_training(settings, tmp_path):
    first = run(settings)
    again = going_on_from(first, settings) | {"do_train": False, "output_dir": str(tmp_path / "again")}
    assert results(run(again))["eval_loss"] == pytest.approx(results(first)["eval_loss"], rel=1e-6)
    assert not (tmp_path / "again" / "model.safetensors").exists()


@pytest.mark.parametrize("options", [{}, {"overwrite_output_dir": True}])
def test_an_evaluation_leaves_the_folder_of_a_run_alone(settings, capsys, options):
    folder = run(settings)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    message = error_of(settings, capsys, do_train=False, **options)
    assert f"give --model_name_or_path {folder} and another --output_dir" in message
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_an_evaluation_resumes_nothing(settings, capsys):
    message = error_of(settings, capsys, do_train=False, resume_from_checkpoint="run/checkpoint-4")
    assert "give its folder as --model_name_or_path" in message


def test_held_out_part_and_masks_do_not_depend_on_the_seed(settings, tmp_path):
    first = run(settings, max_steps=1, learning_rate=0.0, seed=1)
    loaded = going_on_from(first, settings) | {"do_train": False, "output_dir": str(tmp_path / "again")}
    assert results(run(loaded, seed=2))["eval_loss"] == pytest.approx(results(first)["eval_loss"], rel=1e-6)


def test_several_files_of_several_kinds(settings, tmp_path):
    (tmp_path / "more.csv").write_text("sequence,label\n" + "\n".join(f"{random_dna(300, i)},0" for i in range(20)))
    both = [settings.pop("train_file"), str(tmp_path / "more.csv")]
    run_mlm.main([*flags(settings | {"max_steps": 1}), "--train_file", *both])
    files = results(Path(settings["output_dir"]))["data"]["files"]
    assert [entry["file"] for entry in files] == both
    assert all(entry["base_pairs_held_out"] > 0 for entry in files)
