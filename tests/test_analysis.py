"""Against Numba's own analysis of functions for the CPU, which numba-cuda has a copy of."""

import operator
from types import SimpleNamespace

import numba
import pytest
from numba.core import analysis, inline_closurecall, ir, postproc, ssa, types
from numba.core.compiler import run_frontend
from numba.core.types.functions import BaseFunction

from fastperm.kernels.cuda import analysis as module
from fastperm.kernels.cuda.analysis import inliner, lister, live_map, postprocessor, resolver, rewriter


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


def test_what_functions_make_of_types_is_asked_once(monkeypatch):
    asked, numbas = [], BaseFunction.get_call_type

    def counted(function, context, arguments, settings):
        assert not settings
        asked.append((function, tuple(arguments)))
        return numbas(function, context, arguments, settings)

    monkeypatch.setattr(BaseFunction, "get_call_type", counted)
    expected = compiled()(5, 7)
    assert len(asked) > len(set(asked))
    monkeypatch.setattr(module, "_resolved", {})
    monkeypatch.setattr(BaseFunction, "get_call_type", resolver(counted))
    asked.clear()
    assert compiled()(5, 7) == expected
    assert len(asked) == len(set(asked)) > 0
    monkeypatch.setattr(BaseFunction, "get_call_type", resolver(counted))  # as for the next kernel
    asked.clear()
    assert compiled()(5, 7) == expected
    assert not asked


def test_a_function_that_is_given_names_of_arguments_is_asked_each_time(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "_resolved", {})
    resolved = resolver(lambda *given: asked.append(given))
    for settings in ({}, {"dtype": types.int64}, {}, {"dtype": types.float32}):
        resolved("function", "context", [types.int64], settings)
    assert [given[3] for given in asked] == [{}, {"dtype": types.int64}, {"dtype": types.float32}]


def test_an_operator_that_numbers_do_not_have_is_refused_as_numba_refuses_it(monkeypatch):
    monkeypatch.setattr(BaseFunction, "get_call_type", resolver(BaseFunction.get_call_type))
    for _ in range(2):
        with pytest.raises(numba.TypingError, match="matmul"):
            numba.njit("float64(float64)")(lambda a: a @ a)


@pytest.mark.parametrize("function", [straight, branches, loops, never_returns, generates])
def test_the_variables_of_statements_are_listed_as_numba_lists_them(function, monkeypatch):
    statements = [one for block in run_frontend(function).blocks.values() for one in block.body]

    def listed():
        return [[(id(var), var.name) for var in one.list_vars()] for one in statements]

    expected = listed()
    assert sum(map(len, expected)) > 5
    monkeypatch.setattr(ir.Inst, "_rec_list_vars", lister(ir.Inst._rec_list_vars))
    assert listed() == expected


def test_variables_are_found_in_all_that_statements_hold():
    names = iter("abcdefgh")

    def variable():
        return ir.Var(None, next(names), ir.unknown_loc)

    class Pairs(dict):
        pass

    inner = ir.Expr.binop(operator.add, variable(), variable(), ir.unknown_loc)
    held = [variable(), (inner, 7, "text", None), Pairs(x=[variable()], y={}), {1: variable()}, (), {variable()}]
    found = lister(ir.Inst._rec_list_vars)(None, held)
    assert sorted(var.name for var in found) == list("abcde")  # sets are not looked into
    assert found == ir.Inst._rec_list_vars(inner, held)
