"""
Make a pre-training corpus from genomes: `python -m corpus.build recipe.yaml --output DIR`.

  python -m corpus.build corpus/recipes/small.yaml --genomes my_genomes --output corpus_small --workers 4

DIR gets train/*.parquet and validation/*.parquet (`datasets.load_dataset(DIR)` reads them) and manifest.json with
counts and hashes. The same recipe, genomes and seed give the same bytes with any number of workers. Interrupted work
goes on when the command is given again; finished genomes are not made twice. One task is one genome (one row of the
recipe's table), so that many machines can share the work: --executor slurm or ray.
"""

import argparse
import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from corpus.executors import EXECUTORS, forget, run_tasks
from corpus.fasta import FastaError
from corpus.genome_task import SPLITS, GenomeTask, changed_file, load_encoder, report_path
from corpus.kmers import SAMPLED, K
from corpus.recipe import Genome, Recipe, RecipeError, read_genomes, read_recipe
from corpus.shards import file_sha256
from corpus.variants import VariantError
from training.storage import StorageError, check_writable, writing_into

FORMAT_VERSION = 1
WORK = ".build"  # plan, reports, logs and completion markers; may be deleted when manifest.json is there


class CorpusError(ValueError):
    """A corpus that cannot be built; the message says what to do."""


def build(recipe: Recipe, genomes: list[Genome], output: str | Path, **options) -> dict | None:
    """
    Build the corpus in a folder, or go on with it, and return its manifest; None when a scheduler has taken over.

    Args:
        options: executor (local, slurm, ray), workers and more of `corpus.executors.run_tasks`.

    Raises:
        CorpusError: the folder holds another corpus, or another process works in it; a contig to hold out is in no
            genome; nothing is left to train on.
        FastaError, StorageError and what a task raises.
    """
    output = Path(output).absolute()  # workers on other machines may stand elsewhere
    check_writable(output, "--output")
    with writing_into(output, lambda: "then give the same command again, it goes on where it stopped"):
        load_encoder(recipe)  # or raise before any work begins
        task = GenomeTask(recipe, genomes, output, output / WORK)
        _check_folder(output)
        with _alone(output):
            _keep_plan(recipe, genomes, output)
            slurm = options.get("executor") == "slurm"
            for rank in _unfinished(genomes, output) if slurm else ():
                if task.refusal(rank):  # jobs of an earlier command
                    print(f"corpus.build: {task.error(rank)}", file=sys.stderr)
            run_tasks(task, len(genomes), output / WORK, **options)
            missing = _unfinished(genomes, output)
            if missing and slurm:
                return None
            if missing:
                raise CorpusError(task.error(missing[0]))
            manifest = _manifest(recipe, genomes, output)
            _check_splits(recipe, manifest)
            _write_json(output / "manifest.json", manifest)
            shutil.rmtree(output / WORK / "partial", ignore_errors=True)
    return manifest


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep a second build out of a folder. The lock is POSIX's: datatrove's helper, a fork, must not inherit it."""
    (output / WORK).mkdir(parents=True, exist_ok=True)
    with open(output / WORK / "lock", "a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise CorpusError(f"--output {output}: another corpus.build works in it; wait until it has ended") from None
        except OSError:
            pass  # a file system without locks
        yield


def _check_folder(output: Path):
    """Leave alone what is neither empty nor a corpus; looked at first, as another build may begin meanwhile."""
    others = output.is_dir() and any(entry.name != WORK for entry in output.iterdir())
    if others and not (output / WORK / "plan.json").exists():
        raise CorpusError(f"--output {output}: is not empty and holds no unfinished corpus; choose another folder")


def _keep_plan(recipe: Recipe, genomes: list[Genome], output: Path):
    """Write down what is being built, or make sure that what is there is the same."""
    path = output / WORK / "plan.json"
    plan = json.loads(json.dumps(_plan(recipe, genomes)))
    if path.exists():
        if (old := json.loads(path.read_text())) != plan:
            changed = [key for key in plan if old.get(key) != plan[key]] or ["format"]
            raise CorpusError(
                f"--output {output}: holds a corpus of another recipe ({', '.join(changed)} differ); choose another "
                "folder, or delete this one to start over"
            )
        for rank, genome in enumerate(genomes):
            _check_report(rank, genome, output)
        return
    _write_json(path, plan)


def _check_report(rank: int, genome: Genome, output: Path):
    """Refuse a genome that has changed since it was finished; one whose shards are gone is no longer finished."""
    path = report_path(output / WORK, rank)
    if not path.exists():
        return
    if changed := changed_file(genome, path):
        raise CorpusError(f"{changed}: has changed since it was added to {output}; delete that to start over")
    for file in json.loads(path.read_text())["files"]:
        shard = output / file["file"]
        if not shard.is_file() or shard.stat().st_size != file["bytes"]:
            forget(output / WORK, rank)
            path.unlink()
            return


def _unfinished(genomes: list[Genome], output: Path) -> list[int]:
    return [rank for rank in range(len(genomes)) if not report_path(output / WORK, rank).exists()]


def _plan(recipe: Recipe, genomes: list[Genome]) -> dict:
    """Everything the bytes depend on, but for the content of the genomes."""
    settings = asdict(recipe) | {"genomes": Path(recipe.genomes).name}
    if recipe.tokenizer:
        folder = Path(recipe.tokenizer)
        settings["tokenizer"] = file_sha256(folder / "tokenizer.json" if folder.is_dir() else folder)
    table = [[g.species, g.category, g.source, g.bases, g.repeats, g.vcf_source] for g in genomes]
    return {"format": FORMAT_VERSION, **settings, "table": table}


def _manifest(recipe: Recipe, genomes: list[Genome], output: Path) -> dict:
    reports = [json.loads(report_path(output / WORK, rank).read_text()) for rank in range(len(genomes))]
    splits: dict[str, dict] = {}
    for split in SPLITS:
        counts = [report["splits"][split] for report in reports if split in report["splits"]]
        if counts:
            splits[split] = {name: sum(count[name] for count in counts) for name in counts[0]}
    plan = _plan(recipe, genomes)
    del plan["table"]
    manifest = {"recipe": plan, "splits": splits}
    if "validation" in splits:
        manifest["shared_kmers"] = _leakage(reports, output)
    return manifest | {"genomes": reports}


def _leakage(reports: list[dict], output: Path) -> dict:
    """For each held-out genome the share of its 32-mers that occur in training, and where most of them occur."""
    import numpy as np

    def kmers(rank: int, split: str):
        return np.load(output / WORK / "kmers" / f"{rank:05d}-{split}.npy", allow_pickle=False)

    rows = []
    held_out = [(rank, report) for rank, report in enumerate(reports) if "validation" in report["splits"]]
    found = {rank: np.zeros(len(kmers(rank, "validation")), bool) for rank, _ in held_out}
    nearest = dict.fromkeys(found, (0, None))
    for rank, report in enumerate(reports):
        if "train" not in report["splits"]:
            continue
        training = kmers(rank, "train")
        for other in found:
            shared = np.isin(kmers(other, "validation"), training, assume_unique=True)
            found[other] |= shared
            if shared.sum() > nearest[other][0]:
                nearest[other] = (int(shared.sum()), report["species"])
    for rank, report in held_out:
        total, shared = len(found[rank]), int(found[rank].sum())
        rows.append(
            {
                "species": report["species"],
                "source": report["source"],
                "kmers": total,
                "shared": shared,
                "share": round(shared / total, 6) if total else 0.0,
                "nearest": nearest[rank][1],
            }
        )
    return {"k": K, "sampled_one_in": SAMPLED, "held_out": rows}


def _check_splits(recipe: Recipe, manifest: dict):
    found = {name for report in manifest["genomes"] for name in report["held_out_contigs"]}
    for name in recipe.validation_contigs:
        if name not in found:
            raise CorpusError(f"validation_contigs: no sequence is of a contig {name!r}; correct it and start over")
    if "train" not in manifest["splits"]:
        notes = [f"{report['source']}: {note}" for report in manifest["genomes"] for note in report["notes"]]
        raise CorpusError("; ".join(["nothing is left to train on", *notes[:3]]))


def _write_json(path: Path, content: dict):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def summary(manifest: dict) -> str:
    """What was made, in a few lines."""
    lines = []
    for split, counts in manifest["splits"].items():
        tokens = f", {counts['tokens']:,} tokens" if counts["tokens"] else ""
        lines.append(f"{split}: {counts['sequences']:,} sequences, {counts['bases']:,} bp{tokens}")
    for report in manifest["genomes"]:
        lines += [f"note: {report['source']}: {note}" for note in report["notes"]]
    for row in manifest.get("shared_kmers", {}).get("held_out", []):
        nearest = f", most with {row['nearest']}" if row["nearest"] else ""
        lines.append(f"held out {row['species']}: {row['share']:.2%} of its {K}-mers are in training{nearest}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m corpus.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="YAML file; corpus/recipes has examples and docs/corpus.md explains the keys")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the corpus, new or to go on with")
    parser.add_argument("--genomes", metavar="DIR", help="folder that paths in the table of genomes are relative to")
    parser.add_argument("--tokenizer", metavar="DIR", help="folder with tokenizer.json: adds the column input_ids")
    parser.add_argument("--workers", type=int, default=1, help="genomes made at the same time (default: %(default)s)")
    parser.add_argument("--executor", choices=EXECUTORS, default="local", help="where (default: %(default)s)")
    parser.add_argument("--slurm-partition", help="partition of the cluster, with --executor slurm")
    parser.add_argument("--slurm-time", default="24:00:00", help="limit of a task (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.workers < 1:
        parser.error(f"--workers is {args.workers}; it must be 1 or more")
    if args.executor == "slurm" and not args.slurm_partition:
        parser.error("--executor slurm needs --slurm-partition; `sinfo` lists the partitions of your cluster")
    try:
        recipe = read_recipe(args.recipe, args.tokenizer)
        genomes = read_genomes(recipe, args.genomes)
        slurm = {"partition": args.slurm_partition, "time": args.slurm_time} if args.executor == "slurm" else {}
        manifest = build(recipe, genomes, args.output, executor=args.executor, workers=args.workers, **slurm)
    except (RecipeError, CorpusError, FastaError, VariantError, StorageError) as error:
        sys.exit(f"corpus.build: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"corpus.build: {error}; install what it needs: pip install 'strandbert[corpus]'")
    except KeyboardInterrupt:
        sys.exit("corpus.build: interrupted; give the same command again, it goes on where it stopped")
    if manifest is None:
        print("Submitted. When the jobs are done, give the same command again: it checks them and writes manifest.json")
    else:
        print(summary(manifest))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: no process of datatrove stays
    main()
