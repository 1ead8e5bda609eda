"""Stream items through read, model and write on a Ray cluster; every item gives a receipt, whatever dies."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask, TaskPoolStrategy
from ray.data.block import BlockMetadata
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from surveybridge.cluster import metrics
from surveybridge.cluster.attempts import Attempts, Orders, Worker
from surveybridge.cluster.blocks import blocks_of
from surveybridge.cluster.errors import ClusterError
from surveybridge.cluster.stages import (
    MAX_KILLS,
    Interval,
    Outcome,
    Stages,
    failure_of,
    lost,
    model_outcome,
    quarantine,
    read_outcome,
    reason_of,
    timed,
    write_outcome,
)

IO_CPUS = 0
"""CPUs reserved for a reader and for a writer: none, since they wait for storage. If they needed some while models held
all CPUs (as after the loss of a node), lost items would never be read again, and the stream would hang."""
IO_PER_MODEL = 2
"""Largest number of readers, and of writers, for each model. A GPU has readers for all CPUs: they work for it, too."""
READ_TASKS = 256
"""Read tasks of a small run, so that many readers can share it; in a large run each task has `READ_AT_MOST` items."""
READ_AT_MOST = 64
"""Largest number of items in a read task: so many may travel together, or be read again if a reader or node dies."""
NO_PROGRESS_SECONDS = 1800.0
"""Give up if no item has left any stage for this long: then the cluster has lost something that the stream needs."""

# A row holds a group of outcomes. Ray Data cuts and joins blocks by their bytes, which differ when a task is run again
# (a failure is smaller than a value). A row is never cut, and a limit of one byte makes every row a block.
SCHEMA = pa.schema([("group", pa.list_(pa.large_binary()))])
BLOCK_BYTES = 1


class Stream:
    """An iterable over the receipts of all items, in the order in which the items are finished.

    Whatever happens to the workers, each item yields one receipt. An exception in a stage, and an item that kills its
    process `MAX_KILLS` times, become failures that the writer commits. An item may be done more than once (if a
    process or a node dies and takes its results with it), so writing again must overwrite.

    However the iteration ends (all is done, drained, an exception, closed), none of its threads uses Ray afterwards.

    Parameters
    ----------
    items
        Names of the items, e.g. tile ids.
    stages
        The work on each item.
    workers
        Smallest and largest number of model actors.
    gpus
        GPUs of each of them; by default one if the cluster has any.
    memory
        Heap of a process by stage, in bytes, which is reserved on its node.
    drain
        Once this is set, no item is read and no model begins one; items under way are finished and written.
    intervals
        Add `intervals` to each receipt: stage -> start, end (epoch seconds) and worker.
    """

    def __init__(
        self,
        items: Sequence[str],
        stages: Stages,
        *,
        workers: tuple[int, int] = (1, 1),
        gpus: float | None = None,
        memory: Mapping[str, int] | None = None,
        drain: threading.Event | None = None,
        intervals: bool = False,
    ) -> None:
        self.items = list(dict.fromkeys(items))
        self.stages = stages
        self.workers = workers
        self.gpus = gpus
        self.memory = memory or {}
        self.drain = drain or threading.Event()
        self.intervals = intervals
        self._attempts: Any = None
        self._forwarding = threading.Lock()

    def __iter__(self) -> Generator[dict[str, Any], None, None]:
        """Run the stream and yield the receipts."""
        todo = dict.fromkeys(self.items)
        if not todo:
            return
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        self._attempts = ray.remote(Attempts).options(**options).remote()
        job = _Job(ray.put(self.stages), self._attempts)
        finished = threading.Event()
        threading.Thread(target=self._forward_drain, args=(finished,), name="drain", daemon=True).start()
        try:
            # One pass does all items. A second one is needed only if the attempts actor has died together with a
            # reader: then groups may differ from those that others have already used.
            while todo and not self.drain.is_set():
                before = len(todo)
                with contextlib.closing(self._pass(list(todo), job)) as finished_items:
                    for item, receipt, intervals in finished_items:
                        if item in todo:
                            del todo[item]
                            metrics.count_receipt(receipt, intervals)
                            if self.intervals:
                                receipt["intervals"] = {stage: asdict(span) for stage, span in intervals.items()}
                            yield receipt
                if (refusal := ray.get(self._attempts.refusal.remote())) is not None:
                    raise refusal
                if len(todo) == before and not self.drain.is_set():
                    raise ClusterError(f"0 of {before} items came back from the cluster; see the workers' logs of Ray")
        finally:
            finished.set()
            with self._forwarding:
                attempts, self._attempts = self._attempts, None
            ray.kill(attempts)

    def in_flight(self) -> list[dict[str, Any]]:
        """Return the items under way (item, stage, seconds, node, pid), longest first; any thread may call this."""
        attempts = self._attempts
        try:
            return [] if attempts is None else ray.get(attempts.in_flight.remote())
        except ray.exceptions.RayActorError:  # the stream has ended meanwhile
            return []

    def _pass(
        self, items: list[str], job: _Job
    ) -> Generator[tuple[str, dict[str, Any], Mapping[str, Interval]], None, None]:
        smallest, largest = (min(count, len(items)) for count in self.workers)
        source = _Source(items, job)
        gpus = gpus_of_model(self.gpus)
        readers = TaskPoolStrategy(min(readers_of(largest, gpus), len(source.slices)))
        writers = TaskPoolStrategy(min(IO_PER_MODEL * largest, len(source.slices)))
        memory = {stage: {"memory": size} for stage, size in self.memory.items()}
        tabular: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
        with DataContext.current(_context()):
            rows = (
                ray.data.read_datasource(
                    source,
                    override_num_blocks=len(source.slices),
                    compute=readers,
                    num_cpus=IO_CPUS,
                    **memory.get("read", {}),
                )
                .map_batches(
                    _ModelActor,
                    fn_constructor_args=(job,),
                    compute=ActorPoolStrategy(min_size=smallest, max_size=largest),
                    num_cpus=1,
                    num_gpus=gpus or None,
                    **tabular,
                    **memory.get("model", {}),
                )
                .map_batches(
                    _write_group,
                    fn_kwargs={"job": job},
                    compute=writers,
                    num_cpus=IO_CPUS,
                    **tabular,
                    **memory.get("write", {}),
                )
            )
        with contextlib.closing(blocks_of(rows)) as blocks:
            for block in blocks:
                # a reader that drains yields an empty table
                written = [entry for group in block["group"] for entry in _unpacked(group)] if block.num_rows else []
                yield from written
                if ray.get(job.attempts.received.remote([item for item, _, _ in written])):
                    return

    def _forward_drain(self, finished: threading.Event) -> None:
        while not finished.is_set():
            if self.drain.wait(0.5):
                with self._forwarding:
                    if self._attempts is not None:
                        self._attempts.drain.remote()
                return


def gpus_of_model(gpus: float | None) -> float:
    """Return the GPUs of a model actor: as many as were asked for, else one if the cluster has any."""
    return (1.0 if ray.cluster_resources().get("GPU", 0) else 0.0) if gpus is None else gpus


def readers_of(models: int, gpus: float) -> int:
    """Return the largest number of readers: beside GPUs one for each CPU of the cluster that no model holds."""
    cpus = int(ray.cluster_resources().get("CPU", 0)) if gpus else 0
    return max(IO_PER_MODEL * models, cpus - models)


@dataclass(frozen=True)
class _Job:
    """The data that every worker of a stream is given."""

    stages: Any  # reference to Stages: they may be large, and there are many read tasks
    attempts: Any  # handle of Attempts

    def do(self, stage: str, outcomes: list[Outcome], one: Callable[[Any, Outcome, int], Any]) -> list[bytes]:
        """Return ``one(work, outcome, kills)`` of every outcome, pickled; the stage's make_* has returned `work`."""
        if not outcomes:
            return []
        try:
            work = self.made(stage)
        except Exception as error:
            ray.get(self.attempts.refuse.remote(_portable(error)))
            return []
        items = [outcome.item for outcome in outcomes]
        orders: Orders = ray.get(self.attempts.begin.remote(stage, items, _worker()))
        if orders.draining and stage != "write":
            return []
        if orders.one_by_one:
            return [result for outcome in outcomes for result in self.do(stage, [outcome], one)]
        start = time.monotonic()
        results = [_pickled(one(work, outcome, k)) for outcome, k in zip(outcomes, orders.kills, strict=True)]
        self.attempts.done.remote(stage, items, time.monotonic() - start, sum(map(len, results)))
        return results

    def made(self, stage: str) -> Any:
        """Return the stage's work, which is made once per process."""
        if _made.get(stage, (None, None))[0] != self.stages:
            _made[stage] = (self.stages, getattr(ray.get(self.stages), f"make_{stage}")())
        return _made[stage][1]


_made: dict[str, tuple[Any, Any]] = {}


class _Source(Datasource):
    """Read tasks over slices of the items."""

    def __init__(self, items: list[str], job: _Job) -> None:
        super().__init__()
        size = max(1, min(READ_AT_MOST, len(items) // READ_TASKS))
        self.slices = [items[k : k + size] for k in range(0, len(items), size)]
        self._job = job

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(partial(_read_groups, self._job, items), metadata) for items in self.slices]


def _read_groups(job: _Job, items: list[str]) -> Iterator[pa.Table]:
    def read(work: Any, outcome: Outcome, kills: int) -> Outcome:
        return replace(outcome, failure=quarantine("read")) if kills >= MAX_KILLS else read_outcome(work, outcome.item)

    start = 0
    while start < len(items):
        size = ray.get(job.attempts.group_size.remote(items[start], len(items) - start))
        group = [Outcome(item, None, None, {}) for item in items[start : start + size]]
        done = job.do("read", group, read)
        if not done:
            return
        yield _packed(done)
        start += size


class _ModelActor:
    def __init__(self, job: _Job) -> None:
        self.job = job
        # load the model before the first item comes; if this raises, so will the first item, where it is reported
        with contextlib.suppress(Exception):
            job.made("model")

    def __call__(self, table: pa.Table) -> pa.Table:
        return _packed(self.job.do("model", list(_unpacked(table["group"][0])), self._one))

    @staticmethod
    def _one(work: Any, outcome: Outcome, kills: int) -> Outcome:
        if kills >= MAX_KILLS and outcome.failure is None:
            return replace(outcome, value=None, failure=quarantine("model"))
        return model_outcome(work, outcome)


def _write_group(table: pa.Table, job: _Job) -> pa.Table:
    def write(work: Any, outcome: Outcome, kills: int) -> tuple[str, dict[str, Any], Mapping[str, Interval]]:
        if kills >= MAX_KILLS and outcome.failure is None:
            outcome = replace(outcome, value=None, failure=quarantine("write"))
        if kills >= 2 * MAX_KILLS:  # writing the failure kills the process as well
            return outcome.item, lost(outcome.item, quarantine("write").reason), outcome.intervals
        receipt, interval = timed(lambda: write_outcome(work, outcome))
        return outcome.item, receipt, {**outcome.intervals, "write": interval}

    return _packed(job.do("write", list(_unpacked(table["group"][0])), write))


def _pickled(result: Any) -> bytes:
    try:
        return pickle.dumps(result, protocol=5)
    except Exception as error:
        if not isinstance(result, Outcome):
            raise
        stage = "model" if "model" in result.intervals else "read"
        return pickle.dumps(replace(result, value=None, failure=failure_of(stage, error)), protocol=5)


def _packed(group: list[bytes]) -> pa.Table:
    return pa.table({"group": [group]}, schema=SCHEMA)


def _unpacked(group: pa.ListScalar) -> Iterator[Any]:
    return (pickle.loads(member.as_buffer()) for member in group)


def _worker() -> Worker:
    return Worker(ray.get_runtime_context().get_node_id(), os.getpid())


def _context() -> DataContext:
    """Return Ray Data's settings for a stream, without changing those of the process."""
    # the caller shows its own progress; Ray's would print a page into a job's log every ten seconds
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # "Progress bars disabled"
    # the writers of a drained stream get fewer items than they could write at once
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    context.execution_no_progress_timeout_s = NO_PROGRESS_SECONDS
    # it asks for a quarter more memory than was used, in calls that nobody but this module can change
    context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1
    return context


def _portable(error: Exception) -> Exception:
    """Return the error itself if it can be pickled, else a ClusterError with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ClusterError(reason_of(error))
    return error
