"""Copies of pieces of memory into the shared memory of all blocks of a cluster, that one thread begins (Hopper).

A barrier in shared memory, two words, counts the bytes that are still to come: one thread says how many it expects, and
all threads that read them wait. It is used again and again; its phases are even and odd ones.
"""

from fastperm.kernels.cuda.compiling import SIMULATED, cuda

BARRIER = 2  # words

if SIMULATED or cuda is None:  # nothing that uses them is launched there
    make_barrier = barriers_are_made = expect_bytes = have_arrived = meet_cluster = None
    copy_to_block = copy_to_blocks = None

else:
    from llvmlite import ir
    from numba import types

    from fastperm.kernels.cuda.compiling import intrinsic
    from fastperm.kernels.cuda.vectors import address_of, shared_address_of, statement_together

    _BIT, _SHORT, _INT, _LONG = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)

    def _statement(code, *kinds):
        letters = {_SHORT: "h", _INT: "r", _LONG: "l"}
        constraints = ",".join([*(letters[kind] for kind in kinds), "~{memory}"])
        return ir.InlineAsm(ir.FunctionType(ir.VoidType(), kinds), code, constraints, side_effect=True)

    @intrinsic
    def make_barrier(typing_context, shared, place):
        """Make a barrier at a place, for one thread that says what it expects."""

        def generate(context, builder, signature, arguments):
            address = shared_address_of(context, builder, signature.args[0], arguments)
            builder.call(_statement("mbarrier.init.shared::cta.b64 [$0], 1;", _INT), [address])

        return types.void(shared, types.int64), generate

    @intrinsic
    def barriers_are_made(typing_context):
        """Let copies see the barriers that this thread has made, once the cluster has waited."""
        statement = _statement("fence.mbarrier_init.release.cluster;")
        return types.void(), lambda _, builder, *__: builder.call(statement, []) and None

    @intrinsic
    def meet_cluster(typing_context):
        """Wait for all threads of the cluster, but not, as `cluster_barrier`, for what they wrote to memory."""
        return statement_together("barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;")

    @intrinsic
    def expect_bytes(typing_context, shared, place, count):
        """Say how many bytes are to come before the barrier goes on to its next phase."""

        def generate(context, builder, signature, arguments):
            address = shared_address_of(context, builder, signature.args[0], arguments[:2])
            count = builder.trunc(arguments[2], _INT)
            code = "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;"
            builder.call(_statement(code, _INT, _INT), [address, count])

        return types.void(shared, types.int64, types.int64), generate

    def _copy(context, builder, signature, arguments):
        """Begin to copy; the last argument, if there are seven, is a bit for each of the blocks that get it."""
        to, place, source, source_place, count, barrier, *blocks = arguments
        kind, of_source = signature.args[0], signature.args[2]
        addresses = [
            shared_address_of(context, builder, kind, (to, place)),
            builder.ptrtoint(address_of(context, builder, of_source, (source, source_place)), _LONG),
            builder.trunc(count, _INT),
            shared_address_of(context, builder, kind, (to, barrier)),
            *(builder.trunc(own, _SHORT) for own in blocks),
        ]
        how, last = (".multicast::cluster", ", $4") if blocks else ("", "")
        code = f"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes{how} [$0], [$1], $2, [$3]{last};"
        builder.call(_statement(code, _INT, _LONG, _INT, _INT, *[_SHORT for _ in blocks]), addresses)

    @intrinsic
    def copy_to_block(typing_context, shared, place, source, source_place, count, barrier):
        """Begin to copy so many bytes to a place in this block, whose barrier counts them."""
        return types.void(shared, types.int64, source, *[types.int64] * 3), _copy

    @intrinsic
    def copy_to_blocks(typing_context, shared, place, source, source_place, count, barrier, blocks):
        """Begin to copy so many bytes to a place in each of the blocks, a bit for each, whose barriers count them."""
        return types.void(shared, types.int64, source, *[types.int64] * 4), _copy

    @intrinsic
    def have_arrived(typing_context, shared, place, phase):
        """Return whether the barrier has ended a phase, even or odd; it may take its time to say no."""
        code = "{ .reg .pred done; mbarrier.try_wait.parity.shared::cta.b64 done, [$1], $2; selp.b32 $0, 1, 0, done; }"
        ask = ir.InlineAsm(ir.FunctionType(_INT, [_INT, _INT]), code, "=r,r,r,~{memory}", side_effect=True)

        def generate(context, builder, signature, arguments):
            address = shared_address_of(context, builder, signature.args[0], arguments[:2])
            return builder.trunc(builder.call(ask, [address, builder.trunc(arguments[2], _INT)]), _BIT)

        return types.boolean(shared, types.int64, types.int64), generate
