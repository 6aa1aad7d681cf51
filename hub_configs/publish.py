"""
Make a self-contained Hub repository of a trained model, check it as a stranger would load it, and upload it.

    python -m hub_configs.publish --model my_model --name strandbert-tiny --output published
    python -m hub_configs.publish --model my_model --name strandbert-tiny --output published --overwrite \\
        --push my-group/my-model
    python -m hub_configs.publish --space --model my_model --name strandbert-tiny --output my_space

--model is a folder of ours: written by run_mlm.py, run_classification.py, hub_configs.convert or save_pretrained.
--name is a table of hub_configs/models.toml, which says what the card says; its sizes must be those of the model. For
a model of your own add a table.

OUTPUT receives the model's code byte for byte, config.json, tokenizer, model.safetensors, reference outputs, README.md
(the card), LICENSE and requirements.txt. Before it appears it is loaded from a simulated Hub cache, offline, in a fresh
interpreter that cannot see this checkout, and its outputs are compared with those of --model.

--space makes the demo instead: the code of space/ and what it imports, with this model and every --classifier in it,
README.md with the front matter of a Hugging Face Space, requirements.txt. It is started once, offline, before OUTPUT
appears.

Without --push nothing is uploaded. With it the folder becomes one commit of the repository and gets the tag v<version>;
the repository is made if there is none. One that already has files is only changed with --update. The token is the one
of `hf auth login` or $HF_TOKEN.
"""

import argparse
import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from safetensors.torch import load_file
from torch import Tensor

import modeling
from tokenization.tokenizer_files import NO_LENGTH_LIMIT

from .adapter import is_adapter
from .card import ROOT, CardError, card, read_models
from .checkpoint import ConversionError, read_json, read_weights
from .convert import (
    check_written_weights,
    checked_tokenizer,
    checked_weights,
    default_settings,
    model_class_of,
    own_config,
)
from .folder import (
    PublishError,
    check_not_replaced,
    check_nothing_private,
    check_output,
    new_folder,
    read_project,
    sha256_of,
    write_model_folder,
)
from .reference import write_reference
from .space import SpaceError, make_space
from .verify import TOLERANCE, VerificationError, check_token_ids, compare, describe, load_in_fresh_interpreter

COMPARED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "glu_activation")
SAME = 1e-5  # of the largest output of the source model: both run the same code, on other numbers of threads


def publish(
    model: str | Path, name: str, output: str | Path, overwrite: bool = False, repository: str | None = None
) -> list[str]:
    """
    Write the folder of a repository and check it; returns the lines of the report.

    repository: the Hub name that the card's examples load (default: the model's name).

    Raises:
        PublishError: no such table, one of a model with other sizes, or a folder that must not leave this machine;
        ConversionError: the model's files do not fit; VerificationError: it does not load alone, or not with the
        source's outputs. OUTPUT then is not made.
    """
    source, output = Path(model).resolve(), Path(output).absolute()
    row = model_row(name)
    check_output(output, overwrite)
    check_not_replaced(output, [source])
    weights, config = read_source(source)
    check_sizes(name, row, config)
    with new_folder(output, overwrite) as folder:
        tokenizer, limit = checked_tokenizer(source / "tokenizer.json", config), length_limit(source)
        try:
            write_model_folder(folder, config, weights, tokenizer, limit)
        except ValueError as error:  # ids of special tokens
            raise ConversionError(f"{source / 'tokenizer.json'}: {error}") from None
        check_written_weights(folder / "model.safetensors", weights)
        (folder / "README.md").write_text(card(name, row, config, repository), encoding="utf-8")
        (folder / "requirements.txt").write_text("\n".join(read_project()["dependencies"]) + "\n")
        shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
        reference = write_reference(folder)
        check_nothing_private(folder, source)
        report = compare_with_source(folder, source, reference, repository or f"local/{name}")
        return [text.replace(str(folder), str(output)) for text in report]


def model_row(name: str) -> dict:
    """The table of models.toml. Raises PublishError naming those there are."""
    models = read_models()
    if name not in models:
        raise PublishError(
            f"--name {name}: hub_configs/models.toml has no such table, only {', '.join(models)}. Add [{name}] with "
            "the same keys; its card is made from them"
        )
    return models[name]


def check_sizes(name: str, row: dict, config: dict) -> None:
    """Raise PublishError when the card, made from a table of models.toml, would describe a model of other sizes."""
    stated = {**default_settings(), **read_json(ROOT / row["config"])}
    different = [f"{key} is {config[key]}, not {stated[key]}" for key in COMPARED if config[key] != stated[key]]
    if different:
        raise PublishError(
            f"--name {name}: the card would describe another model than these weights, that of {row['config']} "
            f"({'; '.join(different)}). Name the table of this model in hub_configs/models.toml, or add one"
        )


def read_source(source: Path) -> tuple[dict[str, Tensor], dict]:
    """Weights and config.json of a folder of ours, as they are published. Raises ConversionError."""
    config = read_json(source / "config.json")
    if config.get("model_type") != modeling.StrandBertConfig.model_type:
        raise ConversionError(
            f"{source} is not a StrandBERT folder (model_type is {config.get('model_type')!r}); convert it first: "
            f"python -m hub_configs.convert {source} OUTPUT"
        )
    if is_adapter(source):
        raise ConversionError(
            f"{source} holds a LoRA adapter, no whole model; merge it first: "
            f"python -m hub_configs.convert {source} OUTPUT"
        )
    weights = read_weights(source)
    model_class = model_class_of(weights)
    config = {**own_config(source / "config.json"), "architectures": [model_class.__name__]}
    return checked_weights(weights, config, model_class), config


def length_limit(source: Path) -> int | None:
    """Tokens at which the source's tokenizer cuts; None when it states no limit. Raises ConversionError."""
    path = source / "tokenizer_config.json"
    limit = read_json(path).get("model_max_length") if path.is_file() else None
    if limit is None or (isinstance(limit, (int, float)) and limit >= NO_LENGTH_LIMIT):  # transformers writes 1e30
        return None
    if not isinstance(limit, int) or limit < 1:
        raise ConversionError(f"{path}: model_max_length is {limit!r}; a positive whole number is needed")
    return limit


def compare_with_source(folder: Path, source: Path, reference: Path, repository: str) -> list[str]:
    """
    Load the folder under its Hub name in a fresh interpreter; compare with the reference and with the source model.

    Raises VerificationError when the tokenizer gives other ids or an output differs.
    """
    report, outputs = load_in_fresh_interpreter(folder, reference, as_repository=repository)
    lines, stored = describe(folder, reference, report), load_file(reference)
    check_token_ids(report, stored, lines)
    for expected, what, tolerance in (
        (stored, "plain float64 arithmetic", TOLERANCE),
        (source_outputs(source, stored), f"the model in {source.name}", SAME),
    ):
        differences, failed = compare(outputs, expected, tolerance)
        lines += [f"compared with {what}:", *differences]
        if failed:
            raise VerificationError("\n".join([*lines, "the published folder does NOT give these outputs"]))
    return [*lines, f"{repository} loads from an offline Hub cache and gives the outputs of {source.name}"]


def source_outputs(source: Path, reference: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of the source model on the reference's input: last_hidden_state at real tokens, and logits."""
    architecture = read_source(source)[1]["architectures"][0]
    model = getattr(modeling, architecture).from_pretrained(source, dtype=torch.float32).eval()
    tokens = reference["attention_mask"].bool()
    with torch.no_grad():
        output = model(reference["input_ids"], reference["attention_mask"], output_hidden_states=True)
    found = {"last_hidden_state": output.hidden_states[-1][tokens]}
    if "logits" in output:
        found["logits"] = output.logits[tokens] if output.logits.dim() == 3 else output.logits
    return found


# ---- upload


def upload(
    folder: Path, repository: str, tag: str, api: HfApi, update: bool = False, private: bool = False, kind="model"
) -> str:
    """
    Make the repository, a model's or a "space", hold exactly this folder, in one commit with a tag; returns its id.

    The commit names its parent, so that a commit made meanwhile by someone else raises. Files of the repository that
    the folder lacks are deleted, except .gitattributes. Afterwards the listing of the commit is compared, hash by hash.

    Raises PublishError saying what is wrong and what the repository holds now.
    """
    try:
        api.whoami()
    except Exception as error:  # network: each client version has its own types
        if isinstance(error, (LocalTokenNotFoundError, ValueError)) or status_of(error) in (401, 403):
            raise PublishError(f"{api.endpoint} does not accept the token: {error}; run `hf auth login`") from None
        raise PublishError(f"{api.endpoint} cannot be reached: {error}") from None
    head, present, tags = current_state(api, repository, kind)
    if set(present) - {".gitattributes"} and not update:
        raise PublishError(
            f"{repository} exists and holds {len(present)} files; pass --overwrite --update to replace them"
        )
    if tag in tags:
        raise PublishError(
            f"{repository} already has the tag {tag}; raise `version` in hub_configs/models.toml and run again with "
            "--overwrite --update"
        )
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    operations += [CommitOperationDelete(name) for name in present if name not in (*files, ".gitattributes")]
    try:
        if head is None:
            sdk = "gradio" if kind == "space" else None
            api.create_repo(repository, private=private, repo_type=kind, space_sdk=sdk)
            head = current_state(api, repository, kind)[0]
        commit = api.create_commit(
            repository, operations, commit_message=f"Publish {tag}", parent_commit=head, repo_type=kind
        )
    except Exception as error:
        now = head and changed_head(api, repository, head, kind)
        raise PublishError(upload_failure(repository, error, now)) from error
    try:
        check_uploaded(api, repository, commit.oid, files, kind)
        api.create_tag(repository, tag=tag, revision=commit.oid, repo_type=kind)
    except PublishError:
        raise
    except Exception as error:
        raise PublishError(f"commit {commit.oid} is published, but the tag {tag} could not be set ({error})") from error
    return commit.oid


def current_state(api: HfApi, repository: str, kind: str = "model") -> tuple[str | None, dict, list[str]]:
    """Newest commit of a repository, its files by path, and its tags; (None, {}, []) when there is no repository."""
    try:
        head = api.repo_info(repository, repo_type=kind).sha
        files = files_at(api, repository, head, kind)
        if kind == "space" and set(files) == {".gitattributes", "README.md"}:
            if len(api.list_repo_commits(repository, repo_type=kind)) == 1:
                del files["README.md"]  # the Hub itself wrote it into the first commit of the new Space
        return head, files, [ref.name for ref in api.list_repo_refs(repository, repo_type=kind).tags]
    except RepositoryNotFoundError:
        return None, {}, []
    except Exception as error:
        raise PublishError(f"{repository} cannot be read: {error}") from None


def files_at(api: HfApi, repository: str, revision: str, kind: str) -> dict[str, RepoFile]:
    """The files of a revision by path; the Hub's listing also names the folders, which are left out."""
    tree = api.list_repo_tree(repository, recursive=True, revision=revision, repo_type=kind)
    return {file.path: file for file in tree if isinstance(file, RepoFile)}


def changed_head(api: HfApi, repository: str, head: str, kind: str) -> str | None:
    """The newest commit when it is no longer `head`; None when it is, or when the Hub does not answer."""
    try:
        now = api.repo_info(repository, repo_type=kind).sha
    except Exception:  # asked while a failed upload is reported, which no other error may hide
        return None
    return None if now == head else now


def status_of(error: Exception) -> int | None:
    """HTTP status of an error of the client; None when it has none."""
    return getattr(getattr(error, "response", None), "status_code", None)


def upload_failure(repository: str, error: Exception, now: str | None = None) -> str:
    """
    One sentence for each way in which an upload fails; a commit is whole or absent.

    now: the newest commit when there is one that was not there before: the Hub's answer may have been lost.
    """
    status = status_of(error)
    if now and status != 412:
        return (
            f"{repository} has the new commit {now}, but the Hub's answer was lost ({error}). If it is this upload, "
            "run the same command again with --overwrite --update, which sets the tag"
        )
    if status == 412:
        reason = "someone else has changed it meanwhile; look at the change, then run again with --overwrite --update"
    elif status in (401, 403):
        reason = "this token may not write there; use one with write access"
    else:
        cause = f" ({error.__cause__})" if error.__cause__ and isinstance(error, RuntimeError) else ""
        said = " ".join(f"{error}{cause}".split())
        reason = (
            f"{said}; run the same command again with --overwrite; large files that have arrived are not sent twice"
        )
    return f"nothing was published in {repository} (it holds what it held before): {reason}"


def check_uploaded(api: HfApi, repository: str, commit: str, files: dict[str, Path], kind: str = "model") -> None:
    """Raise PublishError unless the commit lists exactly these files, with the same SHA-256, or git hash if small."""
    listed = files_at(api, repository, commit, kind)
    listed.pop(".gitattributes", None)
    different = sorted(set(listed) ^ set(files))
    for name in set(listed) & set(files):
        lfs = listed[name].lfs
        wrong = lfs.sha256 != sha256_of(files[name]) if lfs else listed[name].blob_id != git_hash(files[name])
        different += [name] if wrong else []
    if different:
        raise PublishError(f"commit {commit} of {repository} differs from the folder: {', '.join(different)}")


def git_hash(path: Path) -> str:
    """Hexadecimal SHA-1 that git, and the Hub's listing, gives a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m hub_configs.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder of the trained model")
    parser.add_argument("--space", action="store_true", help="make the demo with this model, a Hugging Face Space")
    parser.add_argument("--classifier", type=Path, action="append", default=[], metavar="FOLDER",
                        help="with --space: a fine-tuned model for its tab Classify (may be given again)")  # fmt: skip
    parser.add_argument("--name", required=True, help="table of hub_configs/models.toml")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing OUTPUT")
    parser.add_argument("--push", metavar="ORG/NAME", help="upload to this repository")
    parser.add_argument("--update", action="store_true", help="allow --push to change a repository that has files")
    parser.add_argument("--private", action="store_true", help="a repository that --push makes is private")
    options = parser.parse_args(arguments)
    if options.push and not re.fullmatch(r"[\w.-]+/[\w.-]+", options.push):
        parser.error(f"--push {options.push}: give it as ORG/NAME")
    if options.classifier and not options.space:
        parser.error("--classifier belongs to --space; to publish a classifier by itself give it as --model")
    if (options.update or options.private) and not options.push:
        parser.error(f"--{'update' if options.update else 'private'} belongs to --push; without it nothing is uploaded")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        tag = f"v{model_row(options.name)['version']}" if options.push else None
        if options.space:
            report = make_space(options.output, options.name, options.model, options.classifier, options.overwrite)
        else:
            report = publish(options.model, options.name, options.output, options.overwrite, options.push)
        print("\n".join(report))
        print(f"wrote {options.output}")
        if not options.push:
            print("nothing was uploaded; add --push ORG/NAME to publish it")
            return 0
        kind = "space" if options.space else "model"
        commit = upload(options.output, options.push, tag, HfApi(), options.update, options.private, kind)
    except (PublishError, CardError, ConversionError, VerificationError, SpaceError, OSError) as error:
        print(f"not published: {error}", file=sys.stderr)
        return 1
    print(f"published {options.push} at {tag}, commit {commit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
