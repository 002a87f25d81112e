"""Against Numba's own analysis of functions for the CPU, which numba-cuda has a copy of."""

from types import SimpleNamespace

import numba
import pytest
from numba.core import analysis, inline_closurecall, postproc, ssa, types
from numba.core.compiler import run_frontend
from numba.core.types.functions import BaseFunction

from fastperm.kernels.cuda.analysis import inliner, live_map, postprocessor, resolver, rewriter


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


def generates(n):
    total = 0
    for i in range(n):
        total += i
        yield total


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


@pytest.mark.parametrize("settings", [{}, {"emit_dels": True}, {"emit_dels": True, "extend_lifetimes": True}])
@pytest.mark.parametrize("function", [straight, branches, loops, never_returns, generates])
def test_where_variables_live_is_worked_out_when_somebody_asks(function, settings, monkeypatch):
    asked, numbas = [], analysis.compute_live_variables
    monkeypatch.setattr(analysis, "compute_live_variables", lambda *given: (asked.append(given), numbas(*given))[1])

    def processed(run):
        code = run_frontend(function)
        code.variable_lifetime = code.generator_info = "what another one left"
        asked.clear()
        run(postproc.PostProcessor(code), **settings)
        return {
            "blocks": {label: list(map(str, block.body)) for label, block in code.blocks.items()},
            "live": code.variable_lifetime.livemap,
            "states": code.generator_info and code.generator_info.state_vars,
        }

    numbas_run = postproc.PostProcessor.run
    expected = processed(numbas_run)
    assert asked
    found = processed(postprocessor(numbas_run))
    assert found == expected
    assert list(found["blocks"]) == list(expected["blocks"])
    assert bool(asked) == (bool(settings) or function is generates)


def compiled(inline="never"):
    """Return what Numba makes of a function that calls another twice, and adds small integers of two kinds."""

    @numba.njit(inline=inline)
    def inner(a, n):
        total = 0
        for i in range(n):
            total += a if i % 2 else -i
        return total

    @numba.njit("int64(int64, int32)")
    def outer(a, n):
        return inner(a, n) * 1000 + inner(a + 1, 2 * n)

    return outer


def test_functions_become_part_of_others_without_copies(monkeypatch):
    expected, copied = compiled("always")(5, 7), []
    copy = inline_closurecall.copy
    deepcopy = SimpleNamespace(deepcopy=lambda block: (copied.append(block), copy.deepcopy(block))[1])
    monkeypatch.setattr(inline_closurecall, "copy", deepcopy)
    worker = inline_closurecall.InlineWorker
    assert compiled("always")(5, 7) == expected == compiled()(5, 7)
    assert copied  # by Numba
    copied.clear()
    monkeypatch.setattr(worker, "inline_function", inliner(worker.inline_function))
    assert compiled("always")(5, 7) == expected
    assert not copied
    assert inline_closurecall.copy is deepcopy


def test_what_operators_make_of_numbers_is_asked_once(monkeypatch):
    asked, numbas = [], BaseFunction.get_call_type

    def counted(function, context, arguments, settings):
        asked.append((function, arguments))
        return numbas(function, context, arguments, settings)

    def of_numbers():
        return [(function, own) for function, own in asked if all(isinstance(one, types.Number) for one in own)]

    monkeypatch.setattr(BaseFunction, "get_call_type", counted)
    expected = compiled()(5, 7)
    assert len(of_numbers()) > len(set(of_numbers()))
    asked.clear()
    monkeypatch.setattr(BaseFunction, "get_call_type", resolver(counted))
    assert compiled()(5, 7) == expected
    assert len(of_numbers()) == len(set(of_numbers())) > 0


def test_an_operator_that_numbers_do_not_have_is_refused_as_numba_refuses_it(monkeypatch):
    monkeypatch.setattr(BaseFunction, "get_call_type", resolver(BaseFunction.get_call_type))
    for _ in range(2):
        with pytest.raises(numba.TypingError, match="matmul"):
            numba.njit("float64(float64)")(lambda a: a @ a)
