"""Whole networks with a set on chip: one launch for all layers, and back; formulas in ``kernels/reference``.

A block owns a set from its elements to the gradients that it sends. The activations h (K, N) lie in shared memory with
the elements along a line, so that a thread takes several of them in one access, and every layer is computed in place: a
warp owns a strip of elements with all their features, and overwrites it after it has read it. What the way back needs
of earlier layers goes to a place in global memory and comes from there once more, most of it through the cache of the
card. The loss is a sum over the sets, so nothing has to be known of other sets before the way back begins.

On the way back the gradient g of a layer lies where h was. Where h was positive is remembered as one bit a number, by
the thread that computed it and needs it again.

    dW_self = h gᵀ     groups of threads share the elements, and each has a tile of dW_self; h comes once more
    dx = (W_self g + dm) ⊙ 1[h > 0]     in place, as forward

Every block adds up the gradients of its sets in a part of its own; `parts.add_parts` adds up the parts. How many
blocks there are depends on the sizes of the sets alone, and so do the bits of the result.

A set that is too large for one block belongs to a cluster of them, each with strips of its own. All that crosses blocks
is pooled vectors, forward and on the way back: each block adds up its own elements, reads what the others have added
up, out of their shared memory, and goes on with the sum, which has the same bits in all of them. Parameter gradients
are sums over the elements of a block, or, where they come from a pooled vector, those of the first block; of dW_pool,
which is a matrix, each block has rows of its own.

Widths are rounded up to a layout of ``layouts.py``. What the kernel is made of: ``strips.py`` has the products, and
``resident_*.py`` the sums, the masks, what is read of the parameters, and dW_self.
"""

import numpy as np

from fastperm.kernels.cuda.cluster_probe import clusters_run
from fastperm.kernels.cuda.compiling import FLOAT32, SIMULATED, clusters, cuda, device, kernel, most_shared_memory, xp
from fastperm.kernels.cuda.layouts import LAYOUTS, TENSOR_LAYOUTS
from fastperm.kernels.cuda.offsets import on_device, sizes
from fastperm.kernels.cuda.parts import add_parts
from fastperm.kernels.cuda.resident_gradient import narrow_gradient_of, put_gradients_of, self_gradient_of
from fastperm.kernels.cuda.resident_masks import masks_of
from fastperm.kernels.cuda.resident_parameters import parameters_of
from fastperm.kernels.cuda.resident_sums import sums_of
from fastperm.kernels.cuda.strips import strips_of
from fastperm.kernels.cuda.vectors import (
    add1,
    aligned,
    cluster_barrier,
    cluster_rank,
    cluster_size,
    load1,
    own_block,
    own_thread,
    relu,
    store1,
)

MULTIPROCESSORS = 132  # of a large card
# Of smaller sets, on average, a block would leave most of its threads idle; the tiles take many of them at once. A
# multiprocessor holds several blocks or, of a wide layout, only one: then a set must have more.
LEAST_ELEMENTS = 1 if SIMULATED else 32
LEAST_FACTOR = 4
HOW = ("mean", "sum")  # what a set is pooled by
# Up to what width the cache of a multiprocessor keeps the parameters, which are many lines of so many numbers.
MOST_CACHED, LINE = 32, 32


def layout_for(
    offsets,  # (S + 1,), on the host
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,
    pool,
    precision="float32",
    orders=0,
):
    """Return the layout that a batch is computed with, or, in words, why there is none."""
    if orders:
        return "angular layers are not computed on chip"
    if aggregate not in HOW or pool not in HOW:
        return f"only {' and '.join(HOW)} are pooled on chip"
    possible, most = clusters(), most_shared_memory()
    layouts = [layout for layout in TENSOR_LAYOUTS.get(precision, LAYOUTS) if possible or not layout.wide]
    layout = next((layout for layout in layouts if layout.width >= max(widths)), None)
    if layout is None:
        return f"a width of {max(widths)} is more than {layouts[-1].width}"
    mean, longest = sizes(offsets)
    for cluster in possible if possible and layout.divisible else (1,):
        layout = layout._replace(cluster=cluster)
        needed = layout.shared_bytes(longest)
        least = LEAST_ELEMENTS * (LEAST_FACTOR if layout.wide else 1) * cluster
        each = f" for a cluster of {cluster} blocks" if cluster > 1 else ""
        if mean < least:
            return f"sets of {mean:.3g} elements, on average, are fewer than {least}{each}"
        if needed <= most:
            if layout.clustered and not clusters_run(cluster, needed):
                return f"this GPU does not run clusters of {cluster} blocks with {needed:,} bytes of shared memory each"
            return layout
    each = f" in each of {cluster} blocks" if cluster > 1 else ""
    return f"a set of {longest:,} elements needs {needed:,} bytes of shared memory{each}, and a block has {most:,}"


def resident_forward(
    layout,  # from `layout_for`
    x,  # (T, K_0)
    offsets,  # (S + 1,), on the host
    weights,  # (T,) or None
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,
    pool,
    *,
    y,  # (S, K_fin)
):
    """Do what `deep_set_forward` does."""
    _launch(layout, False, x, offsets, weights, None, parameters, widths, aggregate, pool, 0.0, y=y)


def resident_step(
    layout,  # from `layout_for`
    x,  # (T, K_0)
    offsets,  # (S + 1,), on the host
    weights,  # (T,) or None
    targets,  # (S, K_fin)
    parameters,  # (P,), flat
    widths,  # K_0, K_1, ..., K_D, K_fin
    aggregate,
    pool,
    *,
    gradients,  # (P,), accumulated
):
    """Do what `deep_set_step` does."""
    n_sets = len(offsets) - 1
    parts = xp().empty((_blocks(layout, n_sets), parameters.size), np.float32)
    losses = xp().empty(n_sets, np.float64)
    _launch(
        *(layout, True, x, offsets, weights, targets, parameters, widths, aggregate, pool, 2 / targets.size),
        parts=parts,
        losses=losses,
    )
    return add_parts(parts, gradients, losses, targets.size)


def most_blocks(layout):
    """Return to how many blocks the sets are dealt out at most: what a large card computes at once.

    Each of them has sums of all gradients of its own, which are written and read once more.
    """
    return 3 if SIMULATED else MULTIPROCESSORS * layout.blocks


def _blocks(layout, n_sets):
    """Return how many blocks are launched: it depends on the batch alone."""
    return min(n_sets, max(most_blocks(layout) // layout.cluster, 1)) * layout.cluster


def _launch(
    layout, training, x, offsets, weights, targets, parameters, widths, aggregate, pool, factor, **outputs
):  # fmt: skip
    n_sets, depth, (_, longest) = len(offsets) - 1, len(widths) - 2, sizes(offsets)
    blocks, stride = _blocks(layout, n_sets), layout.stride(longest)
    kept_size = layout.kept(longest, depth)
    kept = xp().empty((blocks, kept_size), np.float32) if training else None
    signs_size = layout.signs(longest)
    signs = xp().empty((blocks, depth, signs_size), np.int32) if training else None
    places = on_device(offsets), on_device(np.array(widths, np.int64))
    flags = (weights is not None, aggregate == "mean", pool == "mean", aligned(parameters, 4), depth)
    lengths = (n_sets, stride, kept_size, signs_size, parameters.size)
    KERNELS_OF[layout.name][training](
        *(blocks, x, places[0], weights, targets, parameters, places[1], *flags, *lengths, factor, kept, signs),
        *(outputs.get(name) for name in ("parts", "losses", "y")),
        shared=layout.shared_bytes(longest),
        cluster=layout.cluster,
    )


@device
def _syncwarp():
    """Wait for the warp; in the simulator, whose warps are no warps, for the block."""
    if SIMULATED:
        cuda.syncthreads()
    else:
        cuda.syncwarp()


@device
def _put(parts, place, value, fresh):
    """Begin or go on with the sum of a gradient over the sets of a block."""
    parts[place] = value if fresh else parts[place] + value


def _make(layout, training):
    """Return the kernel of a layout: predictions, or the loss and all gradients."""
    width, warps, threads, strip_rows, lines = layout.width, layout.warps, layout.threads, layout.strip, layout.lines
    held_columns, held, tile, words = layout.held_columns, layout.held, layout.tile, layout.words
    wide, clustered, rounds = layout.wide, layout.clustered, layout.tensor_cores is not None
    # Column j of a thread is its first one, and so many more.
    U, near, far = layout.columns_near
    thread_rows, rows_at_once = layout.rows, layout.rows_at_once
    sums_rows, sums_lead, group = layout.sums_rows, layout.sums_lead, layout.group
    most_held, most_rows, most_fetched = max(held, tile), layout.most_rows, layout.most_fetched
    W, free, _, m, c, G, dm, dy, _, h = layout.places
    spare = layout.kept_layers(1)  # room for x, in ``kept``

    strips_here = strips_of(layout)
    place_of_thread = strips_here.place_of_thread
    hold_rows, hold_columns = strips_here.hold_rows, strips_here.hold_columns
    lines_of, put_inputs = strips_here.lines_of, strips_here.put_inputs
    round_strip, put_strip, keep_strip = strips_here.round_strip, strips_here.put_strip, strips_here.keep_strip
    keep_inputs, multiply_strip = strips_here.keep_inputs, strips_here.multiply_strip
    add_to_own_sums, clear_own_sums, add_up, column_sums = sums_of(layout)
    put_signs, hold_signs, mask_sums = masks_of(layout)
    most_parameters, put_weights, put_turned_weights, vector_product, turned_vector_product = parameters_of(
        layout, strips_here.first_feature, strips_here.word
    )
    self_gradient = self_gradient_of(layout, strips_here)
    put_gradients = put_gradients_of(layout)
    is_narrow, narrow_gradient = narrow_gradient_of(layout, strips_here)
    assert layout.heaps == 1 or not wide

    @device
    def whereabouts():
        """Return this thread and its warp and lane, its first element and column of a strip, and where its sums are.

        They are worked out once more for the way back: kept until then, with what follows from them, they were spilled.
        """
        thread = own_thread()
        warp, lane, own_row, own_column = place_of_thread(thread)
        own_sums = free + (warp * thread_rows + own_row // rows_at_once) * sums_lead + own_column
        return thread, warp, lane, own_row, own_column, own_sums

    @device
    def begin_with_columns(b, sums):
        for r in range(8):
            for j in range(held_columns):
                sums[r * held_columns + j] = b[j]

    @device
    def begin_with_outer_product(a, b, sums):
        for r in range(8):
            for j in range(held_columns):
                sums[r * held_columns + j] = a[r] * b[j]

    arrays = "f4* i8* f4* f4* f4* i8* " + "i4 " * 5 + "i8 " * 5 + "f4 f4* i4* f4* f8* f4*"

    @kernel(
        arrays,
        threads=threads,
        name=f"resident_{'step' if training else 'forward'}_{layout.name}",
        blocks=layout.blocks,
        dynamic=True,
        clustered=clustered,
    )
    def network(
        x,  # (T, K_0)
        offsets,  # (S + 1,)
        weights,  # (T,), if weighted
        targets,  # (S, K_fin), in training
        parameters,  # (P,)
        widths,  # (D + 2,)
        weighted,
        mean_aggregate,  # or sum
        mean_pool,  # or sum
        is_aligned,  # whether the parameters begin where 128 bits may
        depth,  # D
        n_sets,  # S
        stride,  # of lines in shared memory; ``kept`` has room for as many numbers
        kept_size,
        signs_size,  # of a layer
        n_parameters,  # P
        factor,  # 2 / targets.size
        kept,  # (blocks, kept_size), in training
        signs,  # (blocks, D, signs_size), in training
        parts,  # (blocks, P), in training
        losses,  # (S,), in training: sums of squares
        y,  # (S, K_fin), for predictions
    ):
        shared = cuda.shared.array(0, FLOAT32)
        a = cuda.local.array(8, np.float32)
        b = cuda.local.array(held_columns, np.float32)
        next_a = cuda.local.array(8, np.float32)
        next_b = cuda.local.array(held_columns, np.float32)
        sums = cuda.local.array(most_held, np.float32)  # of a layer
        # Compilers that do not unroll all loops over many sums keep those in memory: then others need their own place.
        tiles = cuda.local.array(tile, np.float32) if wide else sums
        of_W = cuda.local.array(most_parameters, np.float32) if wide else sums
        of_g = cuda.local.array(most_rows, np.float32)
        of_h = cuda.local.array(most_fetched, np.float32)
        more_a = cuda.local.array(8, np.float32)
        more_x = cuda.local.array(8, np.float32)
        bits = cuda.local.array(words, np.int32)
        shown = cuda.local.array(1, np.int32)  # in which place is what this block shows next
        zero, one = np.float32(0), np.float64(1)

        w = h + lines * stride

        block = np.int64(cuda.blockIdx.x)
        kept_start = block * kept_size
        means = kept_start + (depth - 1 + spare) * lines * stride
        signs_start = block * depth * signs_size

        first_set, more, leads = block, np.int64(cuda.gridDim.x), True
        rank, team = np.int64(0), np.int64(1)
        if clustered:
            shown[0] = np.int32(0)
            rank, team = cluster_rank(), cluster_size()
            first_set, more, leads = block // team, more // team, rank == 0
        s = first_set
        while s < n_sets:
            thread, warp, lane, own_row, own_column, own_sums = whereabouts()
            first = offsets[s]
            whole = offsets[s + 1] - first
            count = whole
            if clustered:  # strips of its own, or none
                share_of_block = ((count + strip_rows - 1) // strip_rows + team - 1) // team * strip_rows
                begin = min(rank * share_of_block, count)
                first += begin
                count = min(share_of_block, count - begin)
            strips = (count + strip_rows - 1) // strip_rows
            padded = strips * strip_rows
            turns = (strips + warps - 1) // warps
            fresh = s == first_set

            of_parameters = zero
            if width <= MOST_CACHED:  # what is not shared memory is cache: they come while the elements do
                of_parameters = parameters[min(thread * LINE, n_parameters - 1)]

            # The elements, their features in lines, and their weights; zeros beyond.
            K = widths[0]
            inner = lines_of(K)
            total = zero
            for row in range(thread, padded, threads):
                value = zero
                if row < count:
                    value = weights[first + row] if weighted else np.float32(1)
                store1(shared, w + row, value)
                total += value
                put_inputs(shared, h + row, stride, inner, x, (first + row) * K, K, row < count, a)
            if width <= MOST_CACHED:
                store1(shared, free + thread, of_parameters)  # nobody reads it, but it has to be there
            if weighted:
                store1(shared, free + thread, total)
                divisor = add_up(shared, free, thread, shown)
            else:
                divisor = np.float64(whole)
                cuda.syncthreads()
            aggregate_divisor = divisor if mean_aggregate else one
            pool_divisor = divisor if mean_pool else one

            if training and rounds and not is_narrow(K, stride):
                for strip in range(warp, strips, warps):
                    keep_inputs(kept, kept_start + (depth - 1) * lines * stride, shared, h, stride, strip, lane)
            if rounds:  # x as it came, which is not how it lies on chip
                for i in range(held_columns):
                    column = own_column + i // U * far + i % U * near
                    total = zero
                    if column < K:
                        for start in range(warp * thread_rows + own_row // rows_at_once, count, 8 * sums_rows):
                            for r in range(8):
                                row = start + r * sums_rows
                                a[r] = x[(first + row) * K + column] if row < count else zero
                            for r in range(8):
                                row = start + r * sums_rows
                                if row < count:
                                    total += load1(shared, w + row) * a[r]
                    store1(shared, own_sums + i // U * far + i % U * near, total)
            else:
                clear_own_sums(shared, own_sums)
                for turn in range(turns):
                    strip = turn * warps + warp
                    if strip < strips:
                        row = strip * strip_rows + own_row
                        hold_rows(shared, w + row, next_a)
                        for i in range(held_columns):
                            column = own_column + i // U * far + i % U * near
                            if column < K:
                                hold_rows(shared, h + column * stride + row, a)
                                total = zero
                                for r in range(8):
                                    total += next_a[r] * a[r]
                                add1(shared, own_sums + i // U * far + i % U * near, total)
            column_sums(shared, free, aggregate_divisor, thread, m, shown)

            place = np.int64(0)  # of the parameters of a layer
            for layer in range(depth):
                K = widths[layer]
                N = widths[layer + 1]
                inner = lines_of(K)
                if training and thread < width:
                    kept[means + layer * width + thread] = load1(shared, m + thread)
                put_weights(shared, parameters, place, K, N, inner, is_aligned, thread, of_W)
                vector_product(
                    shared, m, K, parameters, place + K * N, N, np.int64(1), N, place + 2 * K * N, free, thread, c, of_W
                )
                clear_own_sums(shared, own_sums)
                last = layer == depth - 1
                kept_layer = kept_start + layer * lines * stride
                for turn in range(turns):
                    strip = turn * warps + warp
                    row = strip * strip_rows + own_row
                    if strip < strips:
                        hold_columns(shared, c + own_column, b)
                        begin_with_columns(b, sums)
                        multiply_strip(
                            shared, h + strip * strip_rows, stride, W, inner, lane, a, b, next_a, next_b, sums
                        )
                    _syncwarp()
                    if strip < strips:
                        hold_rows(shared, w + row, a)
                        for i in range(held):
                            sums[i] = relu(sums[i])
                        add_to_own_sums(shared, own_sums, a, sums, b)
                        if training:
                            put_signs(signs, signs_start + thread + layer * signs_size + turn * words * threads, sums)
                        if not last:
                            round_strip(sums)
                            put_strip(shared, h + own_column * stride + row, stride, sums)
                        if training and not last:
                            keep_strip(kept, kept_layer, stride, strip, row, own_column, lane, sums)
                column_sums(shared, free, pool_divisor if last else aggregate_divisor, thread, m, shown)
                place += 2 * K * N + N

            K = widths[depth]
            N = widths[depth + 1]
            vector_product(shared, m, K, parameters, place, N, np.int64(1), N, place + K * N, free, thread, c, of_W)
            if not training:
                if thread < N and leads:
                    y[s * N + thread] = load1(shared, c + thread)
            else:
                if thread < width:
                    difference = zero
                    if thread < N:
                        difference = load1(shared, c + thread) - targets[s * N + thread]
                    store1(shared, c + thread, difference)
                    store1(shared, dy + thread, factor * difference)
                cuda.syncthreads()
                if thread == 0 and leads:
                    loss = np.float64(0)
                    for i in range(N):
                        loss += np.float64(load1(shared, c + i)) * np.float64(load1(shared, c + i))
                    losses[s] = loss
                own_part = np.int64(own_block()) * n_parameters
                for i in range(thread, K * N, threads):
                    product = load1(shared, m + i // N) * load1(shared, dy + i % N)
                    _put(parts, own_part + place + i, product if leads else zero, fresh)
                if thread < N:
                    of_set = load1(shared, dy + thread) if leads else zero
                    _put(parts, own_part + place + K * N + thread, of_set, fresh)
                vector_product(
                    shared, dy, N, parameters, place, np.int64(1), N, K, np.int64(-1), free, thread, dm, of_W
                )

                # g of the last layer, in place of h.
                thread, warp, lane, own_row, own_column, own_sums = whereabouts()
                scale = np.float32(one / pool_divisor)
                clear_own_sums(shared, own_sums)
                for turn in range(turns):
                    strip = turn * warps + warp
                    if strip < strips:
                        row = strip * strip_rows + own_row
                        hold_rows(shared, w + row, a)
                        hold_columns(shared, dm + own_column, b)
                        for r in range(8):
                            a[r] *= scale
                        begin_with_outer_product(a, b, sums)
                        hold_signs(
                            signs, signs_start + thread + (depth - 1) * signs_size + turn * words * threads, bits
                        )
                        mask_sums(bits, sums)
                        for r in range(8):
                            a[r] = np.float32(1)
                        add_to_own_sums(shared, own_sums, a, sums, b)
                        round_strip(sums)
                        put_strip(shared, h + own_column * stride + row, stride, sums)
                column_sums(shared, free, one, thread, G, shown)

                scale = np.float32(one / aggregate_divisor)
                for back in range(depth):
                    if clustered:  # what would be kept is in the loops of products, too
                        thread, warp, lane, own_row, own_column, own_sums = whereabouts()
                    layer = depth - 1 - back
                    K = widths[layer]
                    N = widths[layer + 1]
                    place -= 2 * K * N + N
                    kept_layer = kept_start + (layer - 1 if layer > 0 else depth - 1) * lines * stride
                    if thread < width:
                        store1(shared, m + thread, kept[means + layer * width + thread])
                    own_part = np.int64(own_block()) * n_parameters
                    if thread < N:
                        of_set = load1(shared, G + thread) if leads else zero
                        _put(parts, own_part + place + 2 * K * N + thread, of_set, fresh)

                    narrow = layer == 0 and is_narrow(K, stride)
                    if narrow:
                        narrow_gradient(
                            shared, x, first * K, K, stride, count, padded, thread, sums, a, more_a, next_a, more_x
                        )  # fmt: skip
                    else:
                        self_gradient(
                            shared, x, kept, first * K, kept_layer, layer == 0, K, stride, count, padded,
                            thread // group, thread, tiles, of_g, of_h if rounds else a,
                        )  # fmt: skip
                    own_part = np.int64(own_block()) * n_parameters
                    put_gradients(
                        shared, parts, own_part + place, K, N, not narrow, rank, team, fresh, thread, tiles
                    )  # fmt: skip
                    if layer > 0:
                        inner = lines_of(N)
                        if wide:
                            cuda.syncthreads()  # dW_self lay where the weights go
                        put_turned_weights(shared, parameters, place, K, N, inner, thread, of_W)
                        cuda.syncthreads()
                        turned_vector_product(shared, G, N, parameters, place + K * N, K, free, thread, dm, of_W)
                        clear_own_sums(shared, own_sums)
                        for turn in range(turns):
                            strip = turn * warps + warp
                            row = strip * strip_rows + own_row
                            if strip < strips:
                                hold_signs(
                                    signs,
                                    signs_start + thread + (layer - 1) * signs_size + turn * words * threads,
                                    bits,
                                )
                                hold_rows(shared, w + row, a)
                                hold_columns(shared, dm + own_column, b)
                                for r in range(8):
                                    a[r] *= scale
                                begin_with_outer_product(a, b, sums)
                                multiply_strip(
                                    shared, h + strip * strip_rows, stride, W, inner, lane, a, b, next_a, next_b, sums
                                )
                            _syncwarp()
                            if strip < strips:
                                mask_sums(bits, sums)
                                for r in range(8):
                                    a[r] = np.float32(1)
                                add_to_own_sums(shared, own_sums, a, sums, b)
                                round_strip(sums)
                                put_strip(shared, h + own_column * stride + row, stride, sums)
                        column_sums(shared, free, one, thread, G, shown)
            cuda.syncthreads()
            s += more
        if clustered:
            cluster_barrier()  # nobody's memory may go while another reads it

    return network


KERNELS_OF = {
    layout.name: (_make(layout, False), _make(layout, True))
    for layouts in (LAYOUTS, *TENSOR_LAYOUTS.values())
    for own in layouts
    # A cluster of 2 stands for larger ones, which have the same kernels.
    for layout in ((own, own._replace(cluster=2)) if own.divisible and not own.wide else (own,))
}
