"""How many calls of each submodel run at the same time, and on how many threads: chosen from the clip's plan.

    execution = choose_execution(manifest, [plan], run, resources_at_hand())
    execution.of("unet")                # Parallelism(calls_at_once=15, threads=64)
    print(execution)                    # unet: 15 calls at once on 64 threads; ...

A call on t threads takes s + (1 - s) / t of the time that it takes on one, s being its serial share (Amdahl,
"Validity of the single processor approach to achieving large scale computing capabilities", 1967). Several
calls at once do not have that share in common, so that as many as there are cores for are best, but for the
rest at the end of a step: with 5 calls left for 2 cores, one has none beside it. The choice is what takes the
least time by this model, within the free memory. It changes no result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sonic.bundle.constants import GUIDANCE_BRANCHES
from sonic.bundle.manifest import Manifest
from sonic.engines.base import Parallelism
from sonic.host import available_bytes, cpu_count, numa_nodes
from sonic.memory import peak_memory
from sonic.options import AUTOMATIC, RunOptions
from sonic.plan import ClipPlan

#: The serial share of a call, by submodel: 2 T(2) / T(1) - 1 from the times of sonic-tiny's calls on one and
#: two threads, in float32; in int8 it is 0.46, 0.49 and 0.54. Larger networks have less (0.06 to 0.09 in the
#: published size's UNet, from its times on 2 and 16 threads), which leaves the choice as it is, but for ties.
SERIAL_SHARES = {"unet": 0.30, "vae_decoder": 0.25, "frame_interpolator": 0.52}
#: Calls beside the first one leave this share of the free memory to others: two processes that start at the
#: same time see the same memory.
_SPARE_MEMORY = 0.5
#: With so many windows, some of the next step only need results of the first windows of this one.
_OVERLAPPING_WINDOWS = 3


@dataclass(frozen=True)
class Round:
    """Calls that may run at the same time, as none needs another's result.

    Attributes:
        calls: their number.
        overlapping: whether calls of the next round start where fewer of this one are left than may run at
            once.
    """

    calls: int
    overlapping: bool = False


@dataclass(frozen=True)
class Resources:
    """What a process may use.

    Attributes:
        cores: number of cores.
        free_bytes: memory that it may still take.
        node_cores: cores of the smallest NUMA node; by default there is one node. A call that spans nodes
            waits for memory of the other one.
    """

    cores: int
    free_bytes: float = float("inf")
    node_cores: int | None = None

    @property
    def call_cores(self) -> int:
        """How many cores one call can make use of."""
        return min(self.cores, self.node_cores or self.cores)

    def shared_by(self, calls_at_once: int, threads: int | None = None) -> Parallelism:
        """So many calls on `threads` threads each, or on those of the cores that they can make use of."""
        if threads is not None:
            return Parallelism(calls_at_once, calls_at_once * threads)
        most = max(self.cores, calls_at_once)
        return Parallelism(calls_at_once, min(most, calls_at_once * self.call_cores))


def resources_at_hand() -> Resources:
    """This process's: affinity and the control group's quota and memory count."""
    nodes = [len(node) for node in numa_nodes()]
    return Resources(cpu_count(), available_bytes(), min(nodes, default=None))


@dataclass(frozen=True)
class Execution:
    """What was chosen.

    Attributes:
        parallelism: by submodel, for those with several calls.
        reason: what decided, as the end of a sentence.
    """

    parallelism: Mapping[str, Parallelism]
    reason: str

    def of(self, submodel: str) -> Parallelism | None:
        """The parallelism of a submodel; None where its calls follow from each other."""
        return self.parallelism.get(submodel)

    @property
    def calls_at_once(self) -> dict[str, int]:
        """Calls at the same time, by submodel."""
        return {name: chosen.calls_at_once for name, chosen in self.parallelism.items()}

    @property
    def one_by_one(self) -> Execution:
        """The same threads for one call at a time."""
        return Execution({name: chosen.alone for name, chosen in self.parallelism.items()}, self.reason)

    def __str__(self) -> str:
        alike: dict[Parallelism, list[str]] = {}
        for name, chosen in self.parallelism.items():
            alike.setdefault(chosen, []).append(name)
        parts = [f"{', '.join(names)}: {chosen}" for chosen, names in alike.items()]
        return f"{'; '.join(parts)} ({self.reason})"


def choose_execution(
    manifest: Manifest,
    plans: Sequence[ClipPlan],
    run: RunOptions = AUTOMATIC,
    resources: Resources | None = None,
    in_batch: bool = False,
) -> Execution:
    """Choose how clips that are denoised together are executed.

    Args:
        manifest: the bundle's, for its submodels' memory.
        plans: of all these clips.
        run: the memory mode, and the threads of a call, if they are not to be chosen.
        resources: what the process may use; by default, what it has.
        in_batch: whether earlier clips are decoded while these are denoised.
    """
    resources = resources or resources_at_hand()
    rounds = independent_calls(plans)
    calls = max(one.calls for one in rounds["unet"])
    reason = (
        f"{resources.cores} core{'' if resources.cores == 1 else 's'}, "
        f"{calls} call{'' if calls == 1 else 's'} of the UNet in a step"
    )
    if run.memory == "auto":
        most = dict.fromkeys(rounds, _most_calls(run, resources.cores))
        counts = _fastest_counts(rounds, most, resources, run)
        within = _within_memory(manifest, plans, counts, resources.free_bytes, in_batch)
        if within != counts:
            counts = _fastest_counts(rounds, within, resources, run)
            reason += f", {resources.free_bytes / 1e9:.2f} GB of memory free"
    else:
        counts = dict.fromkeys(rounds, _most_calls(run, resources.cores))
        reason += f", memory mode {run.memory}"
    return Execution(
        {name: resources.shared_by(count, run.threads) for name, count in counts.items()}, reason
    )


def most_threads(run: RunOptions) -> int:
    """The most threads that compute at the same time in this process, whatever the clip."""
    cores = cpu_count()
    return cores if run.threads is None else _most_calls(run, cores) * run.threads


def _most_calls(run: RunOptions, cores: int) -> int:
    """The most calls at once in a memory mode."""
    limit = max(1, cores // (run.threads or 1))
    return {"auto": limit, "low": 1, "balanced": min(GUIDANCE_BRANCHES, limit), "fast": limit}[run.memory]


def _fastest_counts(
    rounds: Mapping[str, Sequence[Round]], most: Mapping[str, int], resources: Resources, run: RunOptions
) -> dict[str, int]:
    """The calls at once that take the least time by the model, by submodel; of several, the fewest."""
    counts = {}
    for name, found in rounds.items():
        largest = min(max(one.calls for one in found), most[name])
        possible = [resources.shared_by(count, run.threads) for count in range(1, largest + 1)]
        times = [modelled_time(found, one, SERIAL_SHARES[name], resources.call_cores) for one in possible]
        counts[name] = possible[times.index(min(times))].calls_at_once
    return counts


def modelled_time(
    rounds: Iterable[Round], parallelism: Parallelism, serial_share: float, call_cores: int
) -> float:
    """Time by the model, in calls on one thread.

    Where fewer calls are left than may run at once, those share the threads of all.

    Args:
        rounds: the calls; each round waits for the one before.
        parallelism: how many of them run at the same time, and on how many threads.
        serial_share: of a call's time on one thread.
        call_cores: how many cores one call can make use of.
    """
    at_once = parallelism.calls_at_once

    def time_of(running: int) -> float:
        threads = 1 + (parallelism.threads - at_once) / running
        return serial_share + (1 - serial_share) / min(threads, call_cores)

    total = 0.0
    for one, occurrences in Counter(rounds).items():
        whole, rest = divmod(one.calls, at_once)
        if one.overlapping and whole:
            taken = one.calls / at_once * time_of(at_once)
        else:
            taken = whole * time_of(at_once) + (time_of(rest) if rest else 0.0)
        total += occurrences * taken
    return total


def independent_calls(plans: Sequence[ClipPlan]) -> dict[str, list[Round]]:
    """The rounds of every submodel whose calls may run at the same time."""
    longest = max(len(plan.denoising.steps) for plan in plans)
    rounds: dict[str, list[Round]] = {"unet": []}
    for index in range(longest):
        steps = [plan.denoising.steps[index] for plan in plans if index < len(plan.denoising.steps)]
        # The sampler starts windows of the next step, or of other clips, where threads would be idle.
        overlapping = len(steps) > 1 or len(steps[0].windows) >= _OVERLAPPING_WINDOWS
        rounds["unet"].append(Round(sum(step.call_count for step in steps), overlapping))
    for plan in plans:
        counts: Counter[str] = Counter()
        for calls in plan.submodel_calls:
            if calls.submodel != "unet" and calls.submodel in SERIAL_SHARES:
                counts[calls.submodel] += calls.count
        for name, count in counts.items():
            rounds.setdefault(name, []).append(Round(count))
    return rounds


def _within_memory(
    manifest: Manifest, plans: Sequence[ClipPlan], counts: dict[str, int], free: float, in_batch: bool
) -> dict[str, int]:
    """Fewer calls at once, where so many do not fit; one of each, if that does not fit either."""

    def needed(calls_at_once: Mapping[str, int]) -> float:
        return max(peak_memory(manifest, plan, calls_at_once, len(plans), in_batch)[1] for plan in plans)

    counts = dict(counts)
    while (most := needed(counts)) > free * (1 - _SPARE_MEMORY):
        at_the_peak = [
            name for name, count in counts.items() if count > 1 and needed(counts | {name: 1}) < most
        ]
        if not at_the_peak:
            break
        counts[max(at_the_peak, key=lambda name: counts[name])] -= 1
    return counts
