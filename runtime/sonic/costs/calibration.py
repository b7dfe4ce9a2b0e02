"""Measuring the throughput that this machine reaches."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sonic.costs.machines import Machine, efficiency_key, machine_at_hand
from sonic.engines.base import Engine, Parallelism
from sonic.errors import BundleError
from sonic.execution import choose_execution
from sonic.media.video import save_video
from sonic.options import AUTOMATIC, RunOptions
from sonic.plan import ClipPlan, ClipSize


def calibrate(engine: Engine, plan: ClipPlan, seconds: float = 10.0, run: RunOptions = AUTOMATIC) -> Machine:
    """Measure the throughput of the submodels that denoise and decode, and of encoding.

    They are above 99 % of the work of any clip; the other submodels are assumed to be as slow as the slowest
    of them.

    The throughput is that of the bundle's own precision.

    Each submodel runs at the plan's sizes if that is likely to fit into its share of the time; otherwise the
    UNet is measured with two frames and a batch of one.

    Args:
        engine: runs the submodels.
        plan: the clip whose sizes are measured.
        seconds: about how long to measure in all.
        run: how many calls run at the same time; so many are measured together.

    Returns:
        A description of this machine; see :func:`sonic.costs.machines.machine_at_hand`.

    Raises:
        BundleError: a submodel cannot be run, or the bundle does not say what it computes.
    """
    sizes: dict[str, dict[str, int]] = {}
    for stage in plan.stages:
        if stage.several_clips:
            for calls in stage.calls:
                sizes.setdefault(calls.submodel, calls.sizes)
    share = seconds / (len(sizes) + 1)
    execution = choose_execution(engine.bundle.manifest, [plan], run)
    submodels = engine.bundle.manifest.submodels
    efficiency = {
        efficiency_key(name, submodels[name].precision): _measure_flop_per_second(
            engine, name, axes, share, execution.of(name)
        )
        / 1e9
        for name, axes in sizes.items()
    }
    efficiency["other"] = min(efficiency.values())
    return machine_at_hand(1, efficiency, _measure_encoding(plan.size, share))


def _measure_flop_per_second(
    engine: Engine, name: str, sizes: dict[str, int], budget_seconds: float, parallelism: Parallelism | None
) -> float:
    """Floating-point operations per second in one submodel, over all calls that run at the same time."""
    info = engine.bundle.manifest.submodels[name]
    if info.work is None:
        raise BundleError(
            f"{engine.bundle.directory} does not say what its submodels compute; convert the checkpoint "
            "again with this version"
        )
    counted = info.work
    generator = np.random.default_rng(0)

    def feeds(axes: dict[str, int]) -> dict[str, np.ndarray]:
        named = axes | {f"{axis}_{level}": axes[axis] >> level for axis in ("height", "width")
                        for level in range(8)}  # fmt: skip
        return {
            tensor.name: generator.standard_normal(
                [named[size] if isinstance(size, str) else size for size in tensor.shape]
            ).astype(np.float32)
            for tensor in info.inputs
        }

    small = sizes | ({"frames": 2, "batch": 1} if "frames" in sizes else {})
    at_once = parallelism.calls_at_once if parallelism else 1
    with engine.open(name, parallelism) as session, ThreadPoolExecutor(at_once) as pool:

        def run(values: dict[str, np.ndarray]) -> float:
            """Seconds of a call: of several at once, the time divided by their number."""
            started = time.perf_counter()
            list(pool.map(session.run, [values] * at_once))
            return (time.perf_counter() - started) / at_once

        work = {key: sum(counted.flop_of(axes).values()) for key, axes in
                (("small", small), ("whole", sizes))}  # fmt: skip
        values = feeds(small)
        run(values)  # warm-up: the first call allocates memory
        taken = run(values)
        if at_once * taken * work["whole"] / work["small"] > budget_seconds:
            return work["small"] / taken
        values = feeds(sizes)
        run(values)
        times = [run(values)]
        while at_once * (sum(times) + times[-1]) < budget_seconds - at_once * taken:
            times.append(run(values))
        return work["whole"] / float(np.median(times))


def _measure_encoding(clip: ClipSize, budget_seconds: float) -> float:
    """Encoding time in seconds per megapixel, for a moving picture of the clip's size."""
    rows, columns = np.mgrid[0 : clip.height, 0 : clip.width]
    frames = np.stack(
        [
            np.stack([(rows + 2 * shift) % 256, (columns + shift) % 256, (rows + columns) % 256], -1)
            for shift in range(25)
        ]
    ).astype(np.uint8)
    with tempfile.TemporaryDirectory(prefix="sonic-estimate-") as folder:
        started = time.perf_counter()
        done = 0
        while not done or (time.perf_counter() - started) * (done + 1) / done < budget_seconds:
            save_video(frames, Path(folder) / "probe.mp4", frame_rate_hz=25)
            done += 1
        taken = time.perf_counter() - started
    return taken / done / (frames.size / 3 / 1e6)
