"""Ray clusters of two machines on this one, and calls that end a worker or its machine in the middle of a piece."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import demeanor as dm

MACHINE = {"num_cpus": 1, "object_store_memory": 100 << 20}


class Two(NamedTuple):
    """A cluster of two machines with one CPU each, and the first one's id: it is the one that this process is connected to."""

    cluster: Any
    first: str


@contextmanager
def two_machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    """Machines of a cluster are processes here; they see what this process can import."""
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`), so nothing is tried on workers")
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(Path(place).absolute()) for place in sys.path if place))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={**MACHINE, "include_dashboard": False})
    try:
        cluster.add_node(**MACHINE)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield Two(cluster, cluster.head_node.node_id)
    finally:
        ray.shutdown()
        cluster.shutdown()


class Striking:
    """A call that ends who does it, once: the worker, or with `machine` its machine, unless that is `spared`. `flag` is a file that says it was done."""

    def __init__(self, call: Callable[..., Any], flag: Path, machine: bool = False, spared: str = "") -> None:
        self.call, self.flag, self.machine, self.spared = call, flag, machine, spared

    def __call__(self, held: Any, piece: Any, *shared: Any) -> Any:
        import ray

        if ray.get_runtime_context().get_node_id() != self.spared:
            try:
                self.flag.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                if self.machine:
                    os.kill(os.getppid(), signal.SIGKILL)  # its raylet, which is what a machine is to the cluster
                os.kill(os.getpid(), signal.SIGKILL)
        return self.call(held, piece, *shared)


def the_same(one: dm.Direction, other: dm.Direction, within: float = 1e-6) -> None:
    """Of two directions, what they are and all that is told of them."""
    assert one.site == other.site
    assert one.estimator == other.estimator
    torch.testing.assert_close(one.basis, other.basis, rtol=0, atol=within)
    for name in ("shows", "lacks"):
        mine, its = getattr(one, name), getattr(other, name)
        assert mine.n == its.n
        torch.testing.assert_close(mine.mean, its.mean, rtol=within, atol=within)
    for name in ("separation", "auroc", "gap", "split_half_cosine", "p"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=within), name
