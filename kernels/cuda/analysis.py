"""Steps of Numba's analysis that take most of the time of a large kernel, done quickly, with the same result.

After each change of a function, Numba works out anew which of its thousands of variables are live where, mostly for
nobody, and moves sets of their names from block to block, hundreds of times each. It renames variables that are
assigned more than once one by one, each in a copy of all blocks. It copies twice what it has just made of a function
that becomes part of another. It works out anew for each of a thousand sums of two numbers what a sum of these types is.
And which variables a statement has it asks of everything that the statement holds, kind by kind.
"""

import functools
import sys
from collections.abc import Callable
from types import SimpleNamespace

# What functions were found to make of the types that they are given, and beside it what has the ids in its key.
_resolved: dict = {}


def live_map(cfg, blocks, used, defined):
    """Do what `compute_live_map` of Numba's ``core.analysis`` does.

    The variables of a block are the bits of one number here, and only blocks that changed are looked at again.

    Parameters
    ----------
    cfg : CFGraph
        Which block may follow which.
    blocks : dict
        The blocks, by their labels.
    used, defined : dict of int to set of str
        The variables that each block reads before it defines them, and those that it defines.

    Returns
    -------
    dict of int to set of str
        For each block those that are live where it begins.
    """
    # What no block reads from another is not live anywhere: this leaves out most variables.
    bit = {name: 1 << i for i, name in enumerate(set().union(*used.values()))}

    def bits(found):
        return sum(map(bit.__getitem__, bit.keys() & found))

    reads = {label: bits(used[label]) for label in blocks}
    writes = {label: bits(defined[label]) for label in blocks}
    after = {label: [other for other, _ in cfg.successors(label)] for label in blocks}
    before = {label: [other for other, _ in cfg.predecessors(label)] for label in blocks}
    known = _spread({label: reads[label] | writes[label] for label in blocks}, after, lambda there, _: there)
    live = _spread(reads, before, lambda there, label: there & known[label] & ~writes[label])
    return {label: {name for name, own in bit.items() if found & own} for label, found in live.items()}


def _spread(found, neighbours, let_through):
    """Give each block what its neighbours have, as far as it lets it through, until nothing changes."""
    found, changed = dict(found), list(found)
    while changed:
        label = changed.pop()
        for other in neighbours[label]:
            more = found[other] | let_through(found[label], other)
            if more != found[other]:
                found[other] = more
                changed.append(other)
    return found


def postprocessor(run):
    """Return what does the same as `run` of Numba's ``PostProcessor``, which is ``run``.

    Where variables live is worked out when somebody asks, which only generators and the last call do.
    """
    place = sys.modules[run.__module__]

    @functools.wraps(run)
    def quick(self, emit_dels=False, extend_lifetimes=False):
        function = self.func_ir
        if emit_dels or function.is_generator:
            run(self, emit_dels, extend_lifetimes)
            return
        function.blocks = place.transforms.canonicalize_cfg(function.blocks)
        function.variable_lifetime = place.VariableLifetime(function.blocks)
        function.generator_info = None

    return quick


def rewriter(rewrite):
    """Return what does the same as `_run_block_rewrite` of Numba's ``core.ssa``, which is ``rewrite``.

    Blocks without the variable stay what they are.
    """
    seen = {}  # the variables of blocks, which are looked at once for each variable that is renamed

    def variables(block):
        body = block.body
        if id(body) not in seen:
            # With the list, or another might get its id: a block that gets more statements gets another list.
            seen[id(body)] = {var.name for statement in body for var in statement.list_vars()}, body
        return seen[id(body)][0]

    @functools.wraps(rewrite)
    def rewritten(blocks, states, handler):
        name = states["varname"]
        new = rewrite({label: own for label, own in blocks.items() if name in variables(own)}, states, handler)
        return {label: new.get(label, own) for label, own in blocks.items()}

    return rewritten


def inliner(inline):
    """Return what does the same as `InlineWorker.inline_function` of Numba's ``core.inline_closurecall``: ``inline``.

    It makes the function to put in for this one place, so that nobody misses what would be copied.
    """
    place = vars(sys.modules[inline.__module__])
    as_it_is = SimpleNamespace(deepcopy=lambda block: block)

    @functools.wraps(inline)
    def inlined(*arguments, **settings):
        numbas, place["copy"] = place["copy"], as_it_is
        try:
            return inline(*arguments, **settings)
        finally:
            place["copy"] = numbas

    return inlined


def resolver(resolve):
    """Return what does the same as `get_call_type` of Numba's ``BaseFunction``, which is ``resolve``.

    What a function makes of some types, and which version of it, is worked out once for all kernels.
    """

    @functools.wraps(resolve)
    def resolved(function, context, arguments, settings):
        if settings:
            return resolve(function, context, arguments, settings)
        key = id(function), id(context), tuple(arguments)
        if key not in _resolved:
            _resolved[key] = resolve(function, context, arguments, settings), function, context
        return _resolved[key][0]

    return resolved


def lister(list_all):
    """Return what does the same as `_rec_list_vars` of Numba's ``Inst``, which is ``list_all``.

    Of what kind the objects of a type are is looked up once.
    """
    ir = sys.modules[list_all.__module__]
    # numba-cuda has, beside its own, Numba's.
    variables, instructions = getattr(ir, "var_types", ir.Var), getattr(ir, "inst_types", ir.Inst)
    walks: dict[type, Callable] = {}

    def nothing(value, found):
        pass

    def variable(value, found):
        found.append(value)

    def instruction(value, found):
        found += value.list_vars()

    def sequence(values, found):
        for value in values:
            walk(value, found)

    def mapping(values, found):
        sequence(values.values(), found)

    kinds = {variables: variable, instructions: instruction, (list, tuple): sequence, dict: mapping, object: nothing}

    def walk(value, found):
        own = type(value)
        if own not in walks:
            walks[own] = next(walk for kind, walk in kinds.items() if issubclass(own, kind))
        walks[own](value, found)

    @functools.wraps(list_all)
    def listed(_, value):
        found: list = []
        walk(value, found)
        return found

    return listed
