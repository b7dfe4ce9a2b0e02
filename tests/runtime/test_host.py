"""Processors and NUMA nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import Converted

from sonic import host
from sonic.cli.main import main
from sonic.costs.machines import MACHINES

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")

# Two nodes of four processors, and one that only has memory.
LAYOUT = {"node0": "0-3", "node1": "4-7", "node2": ""}
Machine = Callable[..., list[set[int]]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Where a process is pinned that runs on one processor and may use some."""

    def pinned(threads: int, runs_on: int, allowed: set[int] = frozenset(range(8))) -> list[set[int]]:  # type: ignore[assignment]
        for name, listed in LAYOUT.items():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "cpulist").write_text(f"{listed}\n")
        found: list[set[int]] = []
        monkeypatch.setattr(host, "affinity", lambda: allowed)
        monkeypatch.setattr(host, "pin_to_processors", found.append)
        monkeypatch.setattr(host.numa_nodes, "__defaults__", (tmp_path,))
        monkeypatch.setattr("psutil.Process.cpu_num", lambda self: runs_on)
        host.stay_on_a_node(threads)
        return found

    return pinned


def test_threads_that_fit_on_a_node_stay_where_they_run(machine: Machine) -> None:
    assert machine(4, runs_on=1) == [{0, 1, 2, 3}]
    assert machine(1, runs_on=6) == [{4, 5, 6, 7}]


def test_more_threads_use_every_node(machine: Machine) -> None:
    assert machine(5, runs_on=1) == []


def test_a_node_counts_with_the_processors_that_the_process_has(machine: Machine) -> None:
    assert machine(2, runs_on=0, allowed={0, 4, 5, 6}) == [{4, 5, 6}]
    assert machine(1, runs_on=0, allowed={0, 1, 2}) == []


def test_this_machines_nodes_hold_its_processors() -> None:
    nodes = host.numa_nodes()
    assert not nodes or set.union(*nodes) == os.sched_getaffinity(0)


@pytest.mark.parametrize("command", [["verify"], ["estimate", "--calibrate"]])
def test_what_measures_this_machine_stays_on_a_node_as_clips_do(
    small: Converted, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("sonic.cli.options.stay_on_a_node", asked.append)
    monkeypatch.setattr("sonic.cli.estimate.stay_on_a_node", asked.append)
    monkeypatch.setattr("sonic.cli.estimate.calibrate", lambda *_, **__: MACHINES["altra"])
    monkeypatch.setattr("sonic.execution.cpu_count", lambda: 5)
    CliRunner().invoke(main, [*command, str(small.bundle), "--threads", "2"], catch_exceptions=False)
    assert asked == [4]  # two calls at once


def test_engines_stay_on_the_processors_of_a_process(small: Converted) -> None:
    """ONNX Runtime pins its threads to any core where it chooses their number."""
    script = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import sonic
model = sonic.load_model(sys.argv[1], check_digests=False)
with model.engine.open("vae_encoder"):
    print(len(set.union(*(os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")))))
"""
    # A library that starts threads when it is imported would count too.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(small.bundle)], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "1\n", done.stderr
