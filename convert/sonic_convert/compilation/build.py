"""Compiles a lowered graph to a shared library for one processor."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax
from tvm.relax.backend.cpu_generic import pipeline

from sonic_convert.compilation.lowering import Lowered
from sonic_convert.compilation.scheduling import schedule_elementwise


def build(lowered: Lowered, target: tvm.target.Target) -> Any:
    """Compile for a processor; the `export_library` method of the result links it."""
    with target, tvm.transform.PassContext(opt_level=3):
        module = relax.transform.DeadCodeElimination()(lowered.module)
        passes = [
            relax.transform.DecomposeOpsForInference(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.EliminateCommonSubexpr(),
            relax.transform.DeadCodeElimination(),
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(),
            schedule_elementwise,
            *pipeline.dataflow_lower_passes(target),
            *pipeline.finalize_passes(target),
        ]
        return tvm.compile(module, target, relax_pipeline=tvm.transform.Sequential(passes))
