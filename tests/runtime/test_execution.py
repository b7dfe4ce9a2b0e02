"""How many calls run at the same time: the choice on made-up machines, and that it changes no byte."""

from __future__ import annotations

import heapq
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import sonic
from sonic.bundle.manifest import Manifest
from sonic.bundle.presets import SPEED_NAMES
from sonic.bundle.store import find_bundle, open_bundle
from sonic.cli.main import main
from sonic.engines.base import Parallelism
from sonic.execution import (
    SERIAL_SHARES,
    Execution,
    Resources,
    Round,
    choose_execution,
    independent_calls,
    modelled_time,
    most_threads,
)
from sonic.memory import peak_memory
from sonic.options import MEMORY_MODES, GenerationOptions, RunOptions
from sonic.plan import ClipPlan, plan_square_clip

MANIFEST: Manifest = open_bundle(find_bundle("sonic-tiny"), check_digests=False).manifest


def plan_of(seconds: float, speed: str = "exact", resolution: int = 128) -> ClipPlan:
    options = GenerationOptions(duration=seconds, speed=speed, min_resolution=resolution)  # type: ignore[arg-type]
    return plan_square_clip(MANIFEST, options)


PLANS = st.builds(plan_of, st.sampled_from([0.3, 2.0, 4.5, 10.0, 60.0]), st.sampled_from(SPEED_NAMES))
RUNS = st.builds(
    lambda memory, threads: RunOptions(memory=memory, threads=threads),
    st.sampled_from(MEMORY_MODES),
    st.sampled_from([None, 1, 2, 3, 7]),
)


def total_time(plans: list[ClipPlan], execution: Execution, resources: Resources) -> float:
    return sum(
        modelled_time(rounds, execution.parallelism[name], SERIAL_SHARES[name], resources.call_cores)
        for name, rounds in independent_calls(plans).items()
    )


@settings(deadline=None)
@given(st.lists(PLANS, min_size=1, max_size=3), RUNS, st.integers(1, 200), st.sampled_from([None, 2, 16]))
def test_never_more_threads_than_cores(
    plans: list[ClipPlan], run: RunOptions, cores: int, node_cores: int | None
) -> None:
    node_cores = None if node_cores is None else min(node_cores, cores)
    execution = choose_execution(MANIFEST, plans, run, Resources(cores, node_cores=node_cores))
    assert set(execution.parallelism) == set(SERIAL_SHARES)
    for chosen in execution.parallelism.values():
        assert 1 <= chosen.calls_at_once <= chosen.threads
        assert chosen.threads <= max(cores, run.threads or 1)
        if run.threads is not None:
            assert chosen.threads_of_a_call == run.threads
        elif node_cores is not None:  # no call has to span nodes
            assert chosen.threads <= chosen.calls_at_once * node_cores


@settings(deadline=None)
@given(PLANS, st.integers(1, 130), st.floats(0.02e9, 3e9), st.integers(1, 3), st.booleans())
def test_free_memory_limits_the_calls(
    plan: ClipPlan, cores: int, free: float, together: int, in_batch: bool
) -> None:
    plans = [plan] * together

    def needed(calls_at_once: dict[str, int]) -> float:
        return peak_memory(MANIFEST, plan, calls_at_once, together, in_batch)[1]

    unlimited = choose_execution(MANIFEST, plans, resources=Resources(cores), in_batch=in_batch)
    limited = choose_execution(MANIFEST, plans, resources=Resources(cores, free), in_batch=in_batch)
    if needed(unlimited.calls_at_once) <= 0.5 * free:
        assert limited == unlimited
    else:
        assert "memory free" in str(limited) or limited == unlimited
        for name, count in limited.calls_at_once.items():
            assert count <= unlimited.calls_at_once[name]
        # It fits, or no submodel could take less.
        if needed(limited.calls_at_once) > 0.5 * free:
            least = needed(dict.fromkeys(SERIAL_SHARES, 1))
            assert needed(limited.calls_at_once) == pytest.approx(least)


@settings(deadline=None)
@given(st.lists(PLANS, min_size=1, max_size=3), st.integers(1, 150), st.integers(1, 60))
def test_more_cores_are_never_slower_by_the_model(plans: list[ClipPlan], cores: int, more: int) -> None:
    few, many = Resources(cores), Resources(cores + more)
    slow = total_time(plans, choose_execution(MANIFEST, plans, resources=few), few)
    fast = total_time(plans, choose_execution(MANIFEST, plans, resources=many), many)
    assert fast <= slow * (1 + 1e-12)


@settings(deadline=None)
@given(st.lists(PLANS, min_size=1, max_size=2), st.integers(1, 40))
def test_nothing_is_faster_by_the_model(plans: list[ClipPlan], cores: int) -> None:
    resources = Resources(cores)
    execution = choose_execution(MANIFEST, plans, resources=resources)
    for name, rounds in independent_calls(plans).items():
        times = [
            modelled_time(rounds, resources.shared_by(count), SERIAL_SHARES[name], cores)
            for count in range(1, min(cores, max(one.calls for one in rounds)) + 1)
        ]
        chosen = execution.parallelism[name].calls_at_once
        assert times[chosen - 1] == min(times) and times.index(min(times)) == chosen - 1


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 9))
def test_the_model_is_a_simulation_of_workers(counts: list[int], workers: int) -> None:
    """With a thread for each call, the model's time is when the last of some workers is done."""
    clock = 0.0
    for count in counts:
        free_at = [clock] * workers
        for _ in range(count):
            heapq.heappush(free_at, heapq.heappop(free_at) + 1)
        clock = max(free_at)
    rounds = [Round(count) for count in counts]
    assert modelled_time(rounds, Parallelism(workers, workers), 0.3, workers) == pytest.approx(clock)


def test_the_model_is_amdahls_law() -> None:
    assert modelled_time([Round(4)], Parallelism(1, 8), 0.2, 8) == pytest.approx(4 * (0.2 + 0.8 / 8))
    # One call of three has the threads of the other two; a call that may use 4 cores leaves the rest.
    assert modelled_time([Round(1)], Parallelism(3, 9), 0.2, 9) == pytest.approx(0.2 + 0.8 / 7)
    assert modelled_time([Round(1)], Parallelism(3, 9), 0.2, 4) == pytest.approx(0.2 + 0.8 / 4)
    # Two workers are never idle where the next round starts early: 5 + 5 calls take 5, not 6.
    for overlapping, expected in ((False, 6), (True, 5)):
        assert modelled_time([Round(5, overlapping)] * 2, Parallelism(2, 2), 0.2, 2) == expected


@pytest.mark.parametrize(
    ("cores", "unet", "vae_decoder", "frame_interpolator"),
    [
        (1, (1, 1), (1, 1), (1, 1)),
        (2, (2, 2), (2, 2), (2, 2)),
        (16, (15, 16), (16, 16), (16, 16)),
        (64, (15, 64), (16, 64), (62, 64)),
        (128, (15, 128), (16, 128), (124, 128)),
    ],
)
def test_a_clip_of_ten_seconds_on_made_up_machines(
    cores: int, unet: tuple[int, int], vae_decoder: tuple[int, int], frame_interpolator: tuple[int, int]
) -> None:
    """Five windows of three branches a step, 16 chunks to decode, 124 pairs of frames."""
    execution = choose_execution(MANIFEST, [plan_of(10.0)], resources=Resources(cores))
    found = [execution.parallelism[name] for name in ("unet", "vae_decoder", "frame_interpolator")]
    assert found == [Parallelism(*pair) for pair in (unet, vae_decoder, frame_interpolator)]


def test_64_cores_are_busy_where_there_are_calls_for_them() -> None:
    resources = Resources(64)
    for plans in ([plan_of(60.0)], [plan_of(10.0)] * 4):
        chosen = choose_execution(MANIFEST, plans, resources=resources).parallelism["unet"]
        rounds = independent_calls(plans)["unet"]
        share = SERIAL_SHARES["unet"]
        alone = modelled_time(rounds, Parallelism(1, 1), share, 1)
        assert alone / modelled_time(rounds, chosen, share, 64) > 0.95 * 64
        # One call at a time on all of them: the serial share is all that is left.
        assert alone / modelled_time(rounds, Parallelism(1, 64), share, 64) < 1 / share


@pytest.mark.parametrize(
    ("memory", "threads", "expected"),
    [
        ("low", None, (1, 16)),
        ("low", 3, (1, 3)),
        ("balanced", None, (3, 16)),
        ("balanced", 4, (3, 12)),
        ("balanced", 9, (1, 9)),
        ("fast", None, (16, 16)),
        ("fast", 4, (4, 16)),
        ("fast", 5, (3, 15)),
        ("auto", 4, (4, 16)),
        ("auto", 20, (1, 20)),
    ],
)
def test_the_other_modes_are_overrides(memory: str, threads: int | None, expected: tuple[int, int]) -> None:
    run = RunOptions(memory=memory, threads=threads)  # type: ignore[arg-type]
    execution = choose_execution(MANIFEST, [plan_of(10.0)], run, Resources(16, 1.0))
    assert memory == "auto" or set(execution.parallelism.values()) == {Parallelism(*expected)}
    plenty = choose_execution(MANIFEST, [plan_of(10.0)], run, Resources(16))
    assert plenty.parallelism["unet"] == Parallelism(*expected)


def test_a_call_does_not_span_nodes() -> None:
    """A short clip: 3 calls a step on two nodes of 8 cores, then one call."""
    two_nodes = Resources(16, node_cores=8)
    assert two_nodes.shared_by(1) == Parallelism(1, 8)
    assert choose_execution(MANIFEST, [plan_of(1.0)], resources=two_nodes).parallelism["unet"] == Parallelism(
        3, 16
    )


def test_most_threads_are_those_of_all_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sonic.execution.cpu_count", lambda: 8)
    assert most_threads(RunOptions()) == most_threads(RunOptions(memory="low")) == 8
    assert most_threads(RunOptions(threads=3)) == most_threads(RunOptions(memory="fast", threads=3)) == 6
    assert most_threads(RunOptions(memory="low", threads=3)) == 3
    assert most_threads(RunOptions(memory="balanced", threads=2)) == 6


#: Steps of three branches, and of two.
CLIPS = {"steps": {"inference_steps": 2}, "levels": {"sigmas": (700.0, 4.0, 0.3), "image_guidance": 1.0}}
VARIANTS = [
    ("steps", {"memory": "low", "threads": 2}),
    ("steps", {"memory": "fast", "threads": 2}),
    ("steps", {"memory": "auto"}),
    ("levels", {"memory": "low", "threads": 3}),
    ("levels", {"memory": "balanced", "threads": 1}),
    ("levels", {"memory": "fast"}),
]


@pytest.fixture(scope="module")
def cores(monkeypatch_module: pytest.MonkeyPatch) -> None:
    """More cores than there may be, so that calls are at once and have several threads."""
    for module in ("sonic.execution", "sonic.engines.onnx"):
        monkeypatch_module.setattr(f"{module}.cpu_count", lambda: 6)


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def expected_files(cores, portrait: Path, long_mp3: Path, tmp_path_factory) -> dict[str, bytes]:
    """The files of a clip with one call at a time on one thread, by its options."""
    folder = tmp_path_factory.mktemp("expected")
    return {clip: _file(folder, portrait, long_mp3, clip, memory="low", threads=1) for clip in CLIPS}


def _file(folder: Path, portrait: Path, speech: Path, clip: str, **run: object) -> bytes:
    model = sonic.load_model("sonic-tiny", check_digests=False, **run)
    with model.stream(portrait, speech, min_resolution=64, **CLIPS[clip]) as video:
        sonic.save_video(video, folder / "video.mp4")
    return (folder / "video.mp4").read_bytes()


@pytest.mark.parametrize(("clip", "variant"), VARIANTS, ids=str)
def test_whatever_is_chosen_the_bytes_are_the_same(
    expected_files, portrait: Path, long_mp3: Path, tmp_path: Path, clip: str, variant: dict[str, object]
) -> None:
    assert _file(tmp_path, portrait, long_mp3, clip, **variant) == expected_files[clip]


def test_clips_of_a_batch_have_the_bytes_of_one(
    expected_files, portrait: Path, long_mp3: Path, tmp_path: Path
) -> None:
    model = sonic.load_model("sonic-tiny", check_digests=False)
    clips = [
        {"image": portrait, "audio": long_mp3, "min_resolution": 64, **options} for options in CLIPS.values()
    ]
    for clip, result in zip(CLIPS, model.generate_many(clips, together=2), strict=True):
        sonic.save_video(result.video, tmp_path / "video.mp4")
        assert (tmp_path / "video.mp4").read_bytes() == expected_files[clip]


def test_a_command_says_what_was_chosen(cores, portrait: Path, short_wav: Path, tmp_path: Path) -> None:
    planned = CliRunner().invoke(main, ["plan", "sonic-tiny", "--duration=10", "--memory=balanced"])
    assert planned.exit_code == 0, planned.output
    assert (
        "3 calls at once on 6 threads (6 cores, 15 calls of the UNet in a step, memory mode" in planned.output
    )
    command = ["generate", "--bundle=sonic-tiny", f"--image={portrait}", f"--audio={short_wav}",
               "--resolution=64", "--steps=1", f"--output={tmp_path / 'v.mp4'}"]  # fmt: skip
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    said = [index for index, line in enumerate(lines) if line.startswith("execution: unet")]
    started = [index for index, line in enumerate(lines) if line.startswith("denoising:")]
    assert len(said) == 1 and said[0] < started[0]
    assert "3 calls at once on 6 threads" in lines[said[0]]
    assert "execution" not in done.stdout


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(["unet", "vae_decoder"]))
def test_memory_grows_with_the_calls_at_once_up_to_those_there_are(submodel: str) -> None:
    plan = plan_of(4.0)
    most = max(calls.independent for calls in plan.submodel_calls if calls.submodel == submodel)
    needed = [peak_memory(MANIFEST, plan, {submodel: count})[1] for count in range(1, most + 3)]
    growing = needed[:most]
    assert all(low <= high for low, high in pairwise(growing)) and growing[0] < growing[-1]
    assert needed[most - 1] == needed[most] == needed[most + 1]
    assert peak_memory(MANIFEST, plan, {}, in_batch=True)[1] > peak_memory(MANIFEST, plan, {})[1]
    assert np.isfinite(needed).all()
