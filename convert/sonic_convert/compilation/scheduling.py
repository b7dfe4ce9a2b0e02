"""Vectorizes and parallelizes the loops that TVM fused, which its CPU pipeline does not do.

Only loops without reductions are changed, so results do not depend on the number of threads.
"""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx
from tvm.tirx import IterVar

from sonic_convert.compilation.tensor_programs import LANES, SCHEDULED

_TASK_ELEMENTS = 1 << 14


@tvm.transform.module_pass(opt_level=0, name="ScheduleElementwise")
def schedule_elementwise(module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
    """Vectorize the innermost axis of every elementwise loop nest, and run the outer ones in parallel."""
    for variable, function in module.functions.items():
        if isinstance(function, tirx.PrimFunc) and not _is_scheduled(function):
            module.update_func(variable, _scheduled(function))
    return module


def _is_scheduled(function: tirx.PrimFunc) -> bool:
    """Whether vectors and threads are already specified, as in the programs of `tensor_programs`."""
    return bool(function.attrs.get(SCHEDULED, False))


def _scheduled(function: tirx.PrimFunc) -> tirx.PrimFunc:
    schedule = s_tir.Schedule(tvm.IRModule({"main": function}))
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops = schedule.get_loops(block)
        kinds = {item.iter_type for item in schedule.get(block).iter_vars}
        extents = [schedule.get(loop).extent for loop in loops]
        if not loops or kinds != {IterVar.DataPar} or not all(isinstance(e, tirx.IntImm) for e in extents):
            continue
        sizes = [int(extent) for extent in extents]
        lanes = math.gcd(sizes[-1], LANES)
        if lanes > 1:
            *_, inner = schedule.split(loops[-1], [None, lanes])
            schedule.vectorize(inner)
        if math.prod(sizes) > 2 * _TASK_ELEMENTS and len(loops) > 1:
            outer = schedule.fuse(*loops[:-1])
            rows = max(1, _TASK_ELEMENTS // sizes[-1])
            tasks, _ = schedule.split(outer, [None, rows])
            schedule.parallel(tasks)
    return schedule.mod["main"].with_attrs(dict(function.attrs.items()))
