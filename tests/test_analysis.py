"""Against Numba's own analysis of functions for the CPU, which numba-cuda has a copy of."""

import pytest
from numba.core import analysis, ssa
from numba.core.compiler import run_frontend

from fastperm.kernels.cuda.analysis import live_map, rewriter


def straight(a, b):
    c = a + b
    return c * a


def branches(a, b):
    if a > b:
        c = a
    elif a < 0:
        return b
    else:
        c = b
    return c


def loops(n, table):
    total, last = 0, None
    for i in range(n):
        for j in range(i):
            if j == 3:
                continue
            total += table[i] * j
            if total > 7:
                break
        else:
            last = i
    while total > n:
        total -= n
        if last is None:
            unset = total  # read where nothing was written, unless the loop goes round again
        else:
            total -= unset
    return total, last


def never_returns(a):
    while True:
        b = a
        a = b + 1


FUNCTIONS = pytest.mark.parametrize("function", [straight, branches, loops, never_returns])


@FUNCTIONS
def test_the_same_variables_are_live_as_numba_says(function):
    blocks = run_frontend(function).blocks
    cfg, found = analysis.compute_cfg_from_blocks(blocks), analysis.compute_use_defs(blocks)
    expected = analysis.compute_live_map(cfg, blocks, found.usemap, found.defmap)
    assert live_map(cfg, blocks, found.usemap, found.defmap) == expected
    assert any(expected.values()) == (function is not straight)


@FUNCTIONS
def test_variables_are_renamed_as_numba_renames_them(function, monkeypatch):
    def renamed():
        return {
            label: list(map(str, block.body)) for label, block in ssa._run_ssa(run_frontend(function).blocks).items()
        }

    expected, looked_at = renamed(), []
    numbas = ssa._run_block_rewrite

    def counted(blocks, *arguments):
        looked_at.append(len(blocks))
        return numbas(blocks, *arguments)

    monkeypatch.setattr(ssa, "_run_block_rewrite", rewriter(counted))
    found = renamed()
    assert found == expected
    assert list(found) == list(expected)
    assert bool(looked_at) == ("phi" in str(expected))
    assert function is not loops or min(looked_at) < len(expected)
