"""Fuzzes the targets of this folder with atheris: python tests/fuzz/run.py --seconds 60 [target ...]

A target is a module with a function `one(data)`, which reads bytes as one kind of input. Anything that it
raises is a finding: inputs that cannot be used end in `SonicError`, which the targets catch. New inputs that
reach new code are kept in build/fuzz, and findings are written there too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.targets import CORPUS, TARGETS, load_target

TESTS = Path(__file__).parents[1]
# atheris ends its process when it is done, so that each target has one of its own.
_ONE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
name = sys.argv.pop(1)
import atheris
with atheris.instrument_imports(include=["sonic", "sonic_convert"]):
    from fuzz.targets import load_target
    target = load_target(name)
atheris.Setup(sys.argv, target.one)
atheris.Fuzz()
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", default=["all"], metavar="target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="stop after so many inputs")
    arguments = parser.parse_args()
    names = TARGETS if arguments.targets == ["all"] else arguments.targets
    for name in names:
        load_target(name)
        kept = Path("build/fuzz") / name
        kept.mkdir(parents=True, exist_ok=True)
        options = [f"-max_total_time={arguments.seconds}", f"-runs={arguments.runs}", "-rss_limit_mb=2000"]
        options += ["-timeout=30", "-max_len=20000", f"-artifact_prefix={kept}-", "-print_final_stats=1"]
        folders = [str(kept), str(CORPUS / name)]
        print(f"fuzzing {name}", flush=True)
        done = subprocess.run([sys.executable, "-c", _ONE, str(TESTS), name, *options, *folders])
        if done.returncode:
            sys.exit(f"{name}: a finding, in {kept}-*")


if __name__ == "__main__":
    main()
