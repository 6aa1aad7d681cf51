"""Running the tasks of a corpus on one machine or many: datatrove's executors, with their completion markers."""

import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

EXECUTORS = ("local", "slurm", "ray")
ROOT = Path(__file__).resolve().parents[1]
MEMORY = 2  # GB a task may need: a contig of 300 Mbp, and row groups


def run_tasks(
    task, count: int, work: Path, executor: str = "local", workers: int = 1, partition: str = "", time: str = "24:00:00"
):
    """
    Call task(None, rank, count) for every rank below `count` that is not marked complete in `work`/completions.

    A rank is complete when the call has returned. datatrove is imported here, so that the rest works without it.

    Args:
        executor: local: processes of this machine. slurm: submits an array of jobs and returns at once. ray: the
            cluster at $RAY_ADDRESS, or else this machine.
        workers: tasks at the same time.
        partition, time: of Slurm jobs.

    Raises:
        what a task raises (local); ModuleNotFoundError: the engine is not installed.
    """
    from loguru import logger

    logger.disable("datatrove")
    shared = {"tasks": count, "workers": workers, "logging_dir": str(work)}
    if executor == "slurm":
        _slurm([task], partition, time, **shared)
    elif executor == "ray":
        with _progress(work, count):
            _ray([task], **shared)
    else:
        with _progress(work, count):
            _local([task], **shared)


def forget(work: Path, rank: int):
    """Have the next `run_tasks` call a complete rank again."""
    (work / "completions" / f"{rank:05d}").unlink(missing_ok=True)


def _local(pipeline: list, **settings):
    from datatrove.executor.local import LocalPipelineExecutor

    class Executor(LocalPipelineExecutor):
        """Errors reach the caller as exceptions and are not printed as well."""

        def _run_for_rank(self, rank, local_rank=0, node_rank=-1):
            from loguru import logger  # of the worker: the one outside would travel as a copy

            logger.disable("datatrove")
            return super()._run_for_rank(rank, local_rank, node_rank)

    Executor(pipeline, **settings).run()


def _ray(pipeline: list, **settings):
    import ray
    from datatrove.executor.ray import RayPipelineExecutor

    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    started = not ray.is_initialized()
    if started:
        here = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": settings["workers"], "include_dashboard": False}
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False, logging_level="ERROR", **here)
    try:
        RayPipelineExecutor(pipeline, mem_per_cpu_gb=MEMORY if "RAY_ADDRESS" in os.environ else 0, **settings).run()
    finally:
        if started:
            ray.shutdown()


def _slurm(pipeline: list, partition: str, time: str, **settings):
    from datatrove.executor.slurm import SlurmPipelineExecutor

    environment = f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{ROOT}:$PYTHONPATH"'
    SlurmPipelineExecutor(
        pipeline,
        partition=partition,
        time=time,
        qos="",
        mem_per_cpu_gb=MEMORY,
        job_name="corpus",
        env_command=environment,
        **settings,
    ).run()


@contextmanager
def _progress(work: Path, count: int):
    """A bar of finished genomes, read from the completion markers, which every process on every machine writes."""
    finished = threading.Event()

    def watch(bar: tqdm):
        while not finished.wait(1):
            update(bar)

    def update(bar: tqdm):
        folder = work / "completions"
        bar.update(sum(1 for _ in folder.iterdir()) - bar.n if folder.is_dir() else 0)

    with tqdm(total=count, unit="genome", desc="corpus") as bar:
        watcher = threading.Thread(target=watch, args=(bar,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
            update(bar)
