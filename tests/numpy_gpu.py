"""A GPU of NumPy: memory, threads that wait for each other, and launches of kernels that `ptx.py` has read.

It is stricter than a GPU. An access beyond an array, to a place that is not aligned, or to one of shared memory that
another thread has written, or writes after it was read, without a barrier between, is an error; what a copy has not yet
brought is NaN. Not seen are races in global memory, and accesses to other parts of the same allocation.
"""

import ctypes
import functools
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import fake_cupy
import numpy as np
import ptx
from numba import njit, vectorize
from numba.extending import intrinsic

from fastperm import gpu
from fastperm.kernels.cuda import compiling, resident

TOGETHER = 2048  # threads that are computed at once, if a launch has so many
MOST_SHARED = 232448  # bytes of a block
BLOCKS = 3  # that a launch of whole networks has at most: so there are more sets
RUNS = 0
WARPGROUP = 4 * ptx.WARP
SPINS = 1000  # in vain
WAITS = ptx.FOR_WARP, ptx.FOR_BLOCK, ptx.FOR_CLUSTER


class GpuError(Exception):
    """What a GPU would not do, or not the same way twice."""


@intrinsic
def _fused(typing_context, a, b, c):
    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return a(a, a, a), generate


@vectorize(["f4(f4, f4, f4)", "f8(f8, f8, f8)"])
def _fused_of_all(a, b, c):
    return _fused(a, b, c)


def fused(a, b, c, out, where, of_all=_fused_of_all.ufunc):
    """Put a b + c, rounded once, into some places of an array."""
    if where is True:
        of_all(a, b, c, out)
    else:  # which such a function does not take
        np.copyto(out, of_all(a, b, c), where=where)


def quotient(a, b):
    """Return a / b of integers, towards zero."""
    wrong = (a % b != 0) & ((a < 0) != (b < 0))
    return a // b + wrong.astype(a.dtype)


def joined(low, high):
    """Return numbers that have these halves."""
    low, high = np.broadcast_arrays(low, high)
    return np.stack([low, high], axis=-1).view(f"u{2 * low.itemsize}")[:, 0]


def bf16(x):
    """Return the bits of the nearest bfloat16, ties to even; a NaN is 0x7FFF."""
    bits = np.asarray(x).view("u4").astype("u8")
    return np.where(np.isnan(x), 0x7FFF, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("u4")


def tf32(x):
    """Return the bits of the nearest TF32, ties away from zero; a NaN is 0x7FFFFFFF."""
    bits = np.asarray(x).view("u4").astype("u8")
    finite = (bits & 0x7F800000) != 0x7F800000
    rounded = np.where(finite, (bits + 0x1000) & 0xFFFFE000, bits)
    return np.where(np.isnan(x), 0x7FFFFFFF, rounded).astype("u4")


def _whole_groups(M, threads=ptx.WARP):
    """Return which threads there are: if any of a group, all of it."""
    if M is True:
        return True
    groups = M.reshape(-1, threads)
    if (groups.any(axis=1) != groups.all(axis=1)).any():
        raise GpuError("a product on tensor cores without all threads of the warp, or the warpgroup")
    return M


def _multiply(M, d, A, B, c):
    """Put A B + C in registers, of which thread 4 g + t of a warp has rows g, g + 8 and columns 2 t, 2 t + 1."""
    M = _whole_groups(M)
    of_warps = [register.reshape(-1, 8, 4) for register in c]
    C = np.empty((len(A), 16, 8))
    C[:, :8, 0::2], C[:, :8, 1::2], C[:, 8:, 0::2], C[:, 8:, 1::2] = of_warps
    D = A @ B + C
    for register, part in zip(d, (D[:, :8, 0::2], D[:, :8, 1::2], D[:, 8:, 0::2], D[:, 8:, 1::2]), strict=True):
        np.copyto(register, part.reshape(-1), where=M, casting="unsafe")


def tf32_product(M, d, a, b, c):
    """Do ``mma.m16n8k8``: a thread has steps t and t + 4 of rows g and g + 8 of A, and of column g of B."""
    a0, a1, a2, a3, b0, b1 = ((own & 0xFFFFE000).view("f4").reshape(-1, 8, 4) for own in (*a, *b))
    A = np.concatenate([np.concatenate([a0, a2], axis=2), np.concatenate([a1, a3], axis=2)], axis=1, dtype="f8")
    B = np.concatenate([b0, b1], axis=2, dtype="f8").transpose(0, 2, 1)
    _multiply(M, d, A, B, c)


def bf16_product(M, d, a, b, c):
    """Do ``mma.m16n8k16``: a thread has steps 2 t, 2 t + 1, the lower half first, and those eight further."""
    halves = (np.stack([own << 16, own & 0xFFFF0000], axis=-1).view("f4").reshape(-1, 8, 8) for own in (*a, *b))
    a0, a1, a2, a3, b0, b1 = halves
    A = np.concatenate([np.concatenate([a0, a2], axis=2), np.concatenate([a1, a3], axis=2)], axis=1, dtype="f8")
    B = np.concatenate([b0, b1], axis=2, dtype="f8").transpose(0, 2, 1)
    _multiply(M, d, A, B, c)


def _multiply_by_shared(M, d, A, B):
    """Add A B, (W, 64, K) and (W, K, N), to registers of warpgroups, of whose warps each has 16 rows as above."""
    # By warp, half, g, column / 8, t, and which of a pair.
    products = (A.astype("f4") @ B.astype("f4")).reshape(len(A), 4, 2, 8, -1, 4, 2)
    for i, register in enumerate(d):
        own = products[:, :, i // 2 % 2, :, i // 4, :, i % 2]
        np.add(register, own.reshape(-1), out=register, where=M)


def _of_warpgroups(a):
    """Return A (W, 64, K) of four registers of a thread, each seen as (threads, numbers)."""
    a0, a1, a2, a3 = (own.reshape(-1, 4, 8, 4 * own.shape[1]) for own in a)
    upper, lower = np.concatenate([a0, a2], axis=-1), np.concatenate([a1, a3], axis=-1)
    return np.concatenate([upper, lower], axis=2).reshape(len(a0), 64, -1)


def tf32_product_of_warpgroups(M, d, a, b):
    """Do ``wgmma`` with eight steps; ``b`` (W, N, 8) are the words of the factor in shared memory."""
    A = _of_warpgroups([(own & 0xFFFFE000).view("f4")[:, None] for own in a])
    _multiply_by_shared(M, d, A, (b & 0xFFFFE000).view("f4").transpose(0, 2, 1))


def bf16_product_of_warpgroups(M, d, a, b):
    """Do ``wgmma`` with sixteen steps, two in a word, the lower half first."""
    A = _of_warpgroups([np.stack([own << 16, own & 0xFFFF0000], axis=-1).view("f4") for own in a])
    B = np.stack([b << 16, b & 0xFFFF0000], axis=-1).view("f4").reshape(*b.shape[:2], -1)
    _multiply_by_shared(M, d, A, B.transpose(0, 2, 1))


# What parts of a program call.
CALLED = {
    **{name: getattr(np, name) for name in ptx.FUNCTIONS.values() if name != "fused"},
    "np": np,
    "copyto": np.copyto,
    "asarray": np.asarray,
    "fused": fused,
    "quotient": quotient,
    "joined": joined,
    "bf16": bf16,
    "tf32": tf32,
    "bf16_product": bf16_product,
    "bf16_product_of_warpgroups": bf16_product_of_warpgroups,
    "tf32_product": tf32_product,
    "tf32_product_of_warpgroups": tf32_product_of_warpgroups,
}


def _numbers(array, dtype):
    """Return bytes as numbers, without a last one that is not whole."""
    return array[: len(array) // dtype.itemsize * dtype.itemsize].view(dtype)


def _lanes(M, addresses, threads):
    """Return which threads there are, and their addresses."""
    if M is True:
        return _everyone(threads), addresses if np.ndim(addresses) else np.full(threads, addresses)
    lanes = np.flatnonzero(M)
    return lanes, addresses[lanes] if np.ndim(addresses) else np.full(len(lanes), addresses)


@functools.cache
def _everyone(threads):
    return np.arange(threads)


def _own(value, lanes):
    """Return what these threads have, of a register or a constant."""
    return value[lanes] if np.ndim(value) else value


def _size(registers):
    """Return the bytes of an access that fills these, or empties them."""
    return sum(register.dtype.itemsize for register in registers)


def _load(array, lanes, places, targets):
    """Load numbers side by side, from places in bytes, into registers of these threads."""
    numbers, places = _numbers(array, targets[0].dtype), places // targets[0].dtype.itemsize
    for i, target in enumerate(targets):
        target[lanes] = numbers[places + i]


def _store(array, lanes, places, sources):
    """Store what registers of these threads have side by side, to places in bytes."""
    numbers, places = _numbers(array, sources[0].dtype), places // sources[0].dtype.itemsize
    for i, source in enumerate(sources):
        numbers[places + i] = _own(source, lanes)


class Memory:
    """Global memory: arrays whose addresses a launch was given, and constants.

    Parameters
    ----------
    pieces : iterable of (int, array of uint8)
        Addresses, and what is there.
    threads : int
    """

    def __init__(self, pieces, threads):
        self.threads = threads
        self._starts, self._arrays = zip(*sorted(pieces, key=lambda piece: piece[0]), strict=True)

    def load(self, M, addresses, targets):
        """Load numbers side by side into registers."""
        for lanes, array, places in self._found(M, addresses, _size(targets)):
            _load(array, lanes, places, targets)

    def store(self, M, addresses, sources):
        """Store what registers have side by side."""
        for lanes, array, places in self._found(M, addresses, _size(sources)):
            _store(array, lanes, places, sources)

    def bytes_at(self, address, size):
        """Return so many bytes."""
        owner = np.searchsorted(self._starts, address, "right") - 1
        place = address - self._starts[owner]
        if owner < 0 or place + size > len(self._arrays[owner]):
            raise GpuError(f"a copy of {size} bytes beyond all arrays of the launch")
        return self._arrays[owner][place : place + size].copy()

    def _found(self, M, addresses, size):
        """Return accesses of so many bytes: threads, an array, and places there in bytes; mostly of one array."""
        lanes, addresses = _lanes(M, addresses, self.threads)
        if (addresses % size).any():
            raise GpuError(f"an access to {size} bytes at an address that is no multiple of it")
        owners = np.searchsorted(self._starts, addresses, "right") - 1
        first = int(owners[0])
        for owner in (first,) if (owners == first).all() else np.unique(owners):
            own = owners == owner
            places = addresses[own] - self._starts[owner]
            if owner < 0 or places.max() + size > len(self._arrays[owner]):
                raise GpuError(f"an access to {size} bytes beyond all arrays of the launch, or between them")
            yield lanes[own], self._arrays[owner], places


class Barrier:
    """One that counts bytes: of a block, at a place, for so many threads that say what they expect."""

    def __init__(self, place, block, count, threads):
        self.place, self.block, self.phase, self._count = place, block, 0, count
        self.announced = False
        self.seen = np.zeros(threads, np.int64)  # which phase a thread has seen begin
        self._wait_for_more()

    def begin_anew(self):
        """Begin the next phase."""
        self.phase += 1
        self._wait_for_more()

    def _wait_for_more(self):
        self.missing, self.expected, self.copies = self._count, 0, []


class Shared:
    """Shared memory of some blocks, which is NaN before anything is written there.

    Parameters
    ----------
    blocks, threads : int
        Blocks, and threads of each.
    size : int
        Bytes of a block.
    cluster : int
        Blocks of a cluster, which may read each other's.
    """

    def __init__(self, blocks, threads, size, cluster):
        self.threads, self._size, self._cluster = blocks * threads, size, cluster
        self._bytes = np.full(blocks * size, 255, np.uint8)
        self._block = np.repeat(np.arange(blocks), threads)
        self._races = Races(blocks, threads, size, cluster)
        self._groups = np.zeros(self.threads, np.int64)  # of copies that a thread has begun
        self._copies = []
        self._products = []  # that are not waited for: a lane of the warp, the group, which words are read, their bits
        self._lent = []  # registers of products: their threads, groups, the registers, and what they held
        self._product_groups = np.zeros(self.threads, np.int64)
        self._fences = np.zeros(self.threads, np.int64)  # of a thread
        self._written_after = np.zeros(len(self._bytes) // 4, np.int64)  # which fence of its writer, by word
        self._barriers = []  # that count bytes
        self._brought_by = np.full(len(self._bytes) // 4, -1)  # which of them a word came with
        self._spins = 0
        self._seen_after = np.full(blocks, -1)  # how often a cluster had waited when another read a block's memory

    def end(self, lanes):
        """Let these threads end; of their blocks none may still be read by others."""
        if any(lane in lanes for lane, *_ in self._products):
            raise GpuError("a thread ends before its products are done")
        if any(self._block[lane] == barrier.block and barrier.copies for lane in lanes for barrier in self._barriers):
            raise GpuError("a block ends before what is copied to it has arrived")
        for lane in lanes[:: ptx.WARP]:
            if self._seen_after[self._block[lane]] == self._races.waited(lane):
                raise GpuError("a block ends while others of its cluster may still read its shared memory")

    def load(self, M, addresses, targets):
        """Load numbers side by side into registers."""
        lanes, places = self._found(M, addresses, _size(targets))
        self._races.read(lanes, places, _size(targets))
        self._must_have_waited(lanes, places // 4)
        _load(self._bytes, lanes, places, targets)

    def store(self, M, addresses, sources):
        """Store what registers have side by side."""
        lanes, places = self._found(M, addresses, _size(sources))
        self._note_write(lanes, places, _size(sources))
        _store(self._bytes, lanes, places, sources)

    def copy(self, M, addresses, memory, sources, read):
        """Begin to copy 16 bytes, of which so many are read, and the others zero; NaN is there meanwhile."""
        lanes, places = self._found(M, addresses, 16)
        copied = np.zeros((self.threads, 4), np.uint32)
        there, read = np.zeros(self.threads, bool), np.broadcast_to(_own(read, lanes), len(lanes))
        assert np.isin(read, (0, 16)).all()
        there[lanes] = read == 16
        if there.any():
            memory.load(there, sources, tuple(copied.T))
        self._write(lanes, places, np.uint32(0xFFFFFFFF))
        self._copies.append((lanes, places, copied[lanes], self._groups[lanes]))

    def end_copies(self, M):
        """Make what threads have begun to copy one group."""
        self._groups[_lanes(M, 0, self.threads)[0]] += 1

    def wait_for_copies(self, M, but):
        """Let all groups of copies arrive but so many."""
        waiting, left = np.zeros(self.threads, bool), []
        waiting[_lanes(M, 0, self.threads)[0]] = True
        for lanes, places, copied, groups in self._copies:
            done = waiting[lanes] & (groups < self._groups[lanes] - but)
            if done.any():
                self._write(lanes[done], places[done], copied[done])
            if not done.all():
                left.append((lanes[~done], places[~done], copied[~done], groups[~done]))
        self._copies = left

    def fence(self, M):
        """Let tensor cores see what these threads have written."""
        self._fences[_lanes(M, 0, self.threads)[0]] += 1

    def factor(self, M, descriptors, columns):
        """Return the words (W, columns, 8) that products of warpgroups begin to read, given their descriptors."""
        leaders = _lanes(_whole_groups(M, WARPGROUP), 0, self.threads)[0].reshape(-1, WARPGROUP)[:, :: ptx.WARP]
        found = np.zeros((self.threads // WARPGROUP, columns, 8), np.uint32)
        descriptors = np.broadcast_to(descriptors, self.threads)
        for warps in leaders:
            own = np.unique(descriptors[warps[0] : warps[0] + WARPGROUP])
            if len(own) > 1:
                raise GpuError("threads of a warpgroup multiply by different factors")
            start, along_k, along_columns = (int(own[0]) >> shift & 0x3FFF for shift in (0, 16, 32))
            if int(own[0]) != start | along_k << 16 | along_columns << 32:
                raise GpuError("a factor has a descriptor of an unknown kind")
            cores = start + np.add.outer(np.arange(columns // 8) * along_columns, np.arange(2) * along_k)
            places = 16 * cores.ravel() - ptx.SHARED_START
            if places.min() < 0 or places.max() + 128 > self._size:
                raise GpuError("a product reads beyond the shared memory of a block")
            words = (self._block[warps[0]] * self._size + places[:, None]) // 4 + np.arange(32)
            writers = self._races.writers(words)
            if ((writers >= 0) & (self._fences[writers] == self._written_after[words])).any():
                raise GpuError("a product reads what was written without a fence")
            bits = self._bytes.view("u4")[words]
            for lane in warps:
                self._races.read(np.full(words.size, lane), words.ravel() * 4, 4)
                self._must_have_waited(np.full(words.size, lane), words.ravel())
                self._products.append((lane, self._product_groups[lane], words, bits))
            found[warps[0] // WARPGROUP] = bits.reshape(-1, 2, 8, 4).transpose(0, 2, 1, 3).reshape(columns, 8)
        return found

    def lend(self, M, registers):
        """Let products read registers until they are done."""
        lanes = _lanes(M, 0, self.threads)[0]
        held = [register[lanes] for register in registers]
        self._lent.append((lanes, self._product_groups[lanes], registers, held))

    def end_products(self, M):
        """Make what warps have begun to multiply one group."""
        self._product_groups[_lanes(M, 0, self.threads)[0]] += 1

    def wait_for_products(self, M, but):
        """Let all groups of products be done but so many; what they read must be there as it was."""
        waiting, left = np.zeros(self.threads, bool), []
        waiting[_lanes(M, 0, self.threads)[0]] = True
        for lane, group, words, bits in self._products:
            if waiting[lane] and group < self._product_groups[lane] - but:
                self._races.read(np.full(words.size, lane), words.ravel() * 4, 4)
                if (self._bytes.view("u4")[words] != bits).any():
                    raise GpuError("what a product reads was written to before it was done")
            else:
                left.append((lane, group, words, bits))
        self._products, still_lent = left, []
        for lanes, groups, registers, held in self._lent:
            done = waiting[lanes] & (groups < self._product_groups[lanes] - but)
            for register, numbers in zip(registers, held, strict=True):
                if (register[lanes[done]] != numbers[done]).any():
                    raise GpuError("a register of a product was written to before it was done")
            if not done.all():
                still_lent.append((lanes[~done], groups[~done], registers, [numbers[~done] for numbers in held]))
        self._lent = still_lent

    def make_barrier(self, M, addresses, count):
        """Make barriers that count bytes, for so many threads that say how many they expect."""
        for lane, place in zip(*self._found(M, addresses, 8), strict=True):
            self._barriers.append(Barrier(place, self._block[lane], count, self.threads))

    def announce_barriers(self, M):
        """Let copies see the barriers that these threads' blocks have made."""
        blocks = np.unique(self._block[_lanes(M, 0, self.threads)[0]])
        for barrier in self._barriers:
            barrier.announced |= barrier.block in blocks

    def expect(self, M, addresses, counts):
        """Let threads say how many bytes they expect."""
        lanes, places = self._found(M, addresses, 8)
        for place, count in zip(places, np.broadcast_to(_own(counts, lanes), len(lanes)), strict=True):
            barrier = self._barrier_at(place)
            barrier.missing -= 1
            barrier.expected += int(count)

    def copy_to_blocks(self, M, addresses, memory, sources, sizes, barriers, blocks):
        """Begin to copy to the same place of several blocks of a cluster, whose barriers count the bytes."""
        lanes, places = self._found(M, addresses, 16)
        _, at = self._found(M, barriers, 8)
        settings = (np.broadcast_to(_own(value, lanes), len(lanes)) for value in (sources, sizes, blocks))
        for lane, place, barrier, source, size, mask in zip(lanes, places, at, *settings, strict=True):
            if source % 16 or size % 16 or place % self._size + size > self._size or mask >> self._cluster:
                raise GpuError("a copy to blocks that is not aligned, too long, or to blocks that there are not")
            copied, own = memory.bytes_at(int(source), int(size)), self._block[lane] % self._cluster
            for block in range(self._cluster):
                if mask >> block & 1:
                    to = place + (block - own) * self._size
                    self._note_write(np.array([lane]), np.array([to]), int(size))
                    self._bytes[to : to + size] = 255
                    counting = self._barrier_at(barrier + (block - own) * self._size)
                    if not counting.announced:
                        raise GpuError("a barrier was made that copies do not see")
                    counting.copies.append((to, copied))

    def have_arrived(self, M, addresses, phases):
        """Return whether the phases of barriers, even or odd, have ended, for all threads."""
        lanes, places = self._found(M, addresses, 8)
        ended = np.zeros(self.threads, bool)
        for place in np.unique(places):
            barrier, own = self._barrier_at(place), lanes[places == place]
            coming = sum(len(copied) for _, copied in barrier.copies)
            if barrier.missing == 0 and coming == barrier.expected:
                for to, copied in barrier.copies:
                    words = np.arange(to // 4, (to + len(copied)) // 4)
                    self._bytes[to : to + len(copied)] = copied
                    self._races.forget(words)
                    self._brought_by[words] = self._barriers.index(barrier)
                barrier.begin_anew()
            ended[own] = barrier.phase % 2 != np.broadcast_to(_own(phases, own), len(own))
            barrier.seen[own[ended[own]]] = barrier.phase
        self._spins = 0 if ended.any() else self._spins + 1
        if self._spins > SPINS:
            raise GpuError("threads wait for bytes that will not come")
        return ended

    def _barrier_at(self, place):
        found = [barrier for barrier in self._barriers if barrier.place == place]
        if not found:
            raise GpuError("there is no barrier")
        return found[-1]

    def _must_have_waited(self, lanes, words):
        """Let threads read words, which may have come with a barrier that they have to wait for."""
        brought_by = self._brought_by[words]
        for number in np.unique(brought_by[brought_by >= 0]):
            barrier = self._barriers[number]
            if (barrier.seen[lanes[brought_by == number]] < barrier.phase).any():
                raise GpuError("a thread reads what was copied without having waited for it")

    def wait(self, kind, lanes):
        """Let these threads have waited for their warp, block, or cluster."""
        self._races.wait(kind, lanes)

    def _note_write(self, lanes, places, size):
        self._races.write(lanes, places, size)
        for word in range(-(-size // 4)):
            self._written_after[places // 4 + word] = self._fences[lanes]
            self._brought_by[places // 4 + word] = -1

    def _write(self, lanes, places, copied):
        self._note_write(lanes, places, 16)
        self._bytes.view("u4")[places[:, None] // 4 + np.arange(4)] = copied

    def _found(self, M, addresses, size):
        """Return the threads, and places in bytes of their accesses to so many of them."""
        lanes, addresses = _lanes(M, addresses, self.threads)
        places = _places(addresses, self._block[lanes], size, self._size, self._cluster)
        if len(places) < len(lanes):
            place = f"{addresses[len(places)]:#x}"
            raise GpuError(
                f"an access to {size} bytes at {place}, beyond the shared memory of a block, or at no multiple"
            )
        owners = places // self._size
        if (remote := owners != self._block[lanes]).any():
            self._seen_after[owners[remote]] = self._races.waited(lanes[0])
        return lanes, places


@njit
def _places(addresses, blocks, size, block_size, cluster):
    """Return where in the memory of all blocks shared addresses are, up to the first that is wrong."""
    places = np.empty(len(addresses), np.int64)
    for i, address in enumerate(addresses):
        block, rank = blocks[i], address >> ptx.RANK_SHIFT
        place = (address & (1 << ptx.RANK_SHIFT) - 1) - ptx.SHARED_START
        if place < 0 or place + size > block_size or rank >= cluster or address % size:
            return places[:i]
        block = block // cluster * cluster + rank
        places[i] = block * block_size + place
    return places


class Races:
    """Who has read and written which word of shared memory, to find accesses that are in no order.

    Two threads of a warp, of a block, or of a cluster are in order if all of it has waited in between. Of the readers
    of a word one is remembered, and how far from it another one was: in its warp, its block, or its cluster.
    """

    def __init__(self, blocks, threads, size, cluster):
        lanes, words = np.arange(blocks * threads), blocks * size // 4
        self._groups = np.array([lanes // ptx.WARP, lanes // threads, lanes // (threads * cluster)])
        self._waits = np.zeros_like(self._groups)  # how often the warp, block, and cluster of a thread have waited
        self._writer, self._reader, self._beside = np.full(words, -1), np.full(words, -1), np.zeros(words, np.int64)
        self._written_after, self._read_after = np.zeros((2, words, 3), np.int64)

    def wait(self, kind, lanes):
        """Let these threads have waited for their warp, block, or cluster."""
        self._waits[: WAITS.index(kind) + 1, lanes] += 1

    def read(self, lanes, places, size):
        """Let threads read so many bytes each."""
        self._note(False, lanes, places, size)

    def write(self, lanes, places, size):
        """Let threads write so many bytes each."""
        self._note(True, lanes, places, size)

    def forget(self, words):
        """Let these words be written by no thread, in an order that others see to."""
        self._writer[words] = -1

    def writers(self, words):
        """Return which thread has written to each word last, or −1."""
        return self._writer[words]

    def waited(self, lane):
        """Return how often the cluster of a thread has waited."""
        return self._waits[-1, lane]

    def _note(self, writes, lanes, places, size):
        words = self._writer, self._written_after, self._reader, self._read_after, self._beside
        word, lane, other, did = _noted(writes, lanes, places // 4, -(-size // 4), self._groups, self._waits, *words)
        if word >= 0:
            now, before = ("writes" if wrote else "reads" for wrote in (writes, did))
            beside = "" if did else ", or one beside it,"
            raise GpuError(f"thread {lane} {now} what thread {other}{beside} {before}, word {word}; nobody has waited")


@njit
def _noted(writes, lanes, first_words, count, groups, waits, writer, written_after, reader, read_after, beside):
    """Note accesses; of the first that is wrong, return the word, both threads, and whether the earlier one wrote."""
    for i in range(len(lanes)):
        lane = lanes[i]
        now = waits[:, lane]
        for word in range(first_words[i], first_words[i] + count):
            other = writer[word]
            far = _far(groups, lane, other)
            if far and written_after[word, far - 1] == now[far - 1]:
                return word, lane, other, True
            other = reader[word]
            far = max(_far(groups, lane, other), beside[word])
            together = far and read_after[word, far - 1] == now[far - 1]
            if writes:
                if together:
                    return word, lane, other, False
                writer[word] = lane
                written_after[word] = now
            else:
                reader[word] = lane
                read_after[word] = now
                beside[word] = far if together else 0
    return -1, -1, -1, False


@njit
def _far(groups, lane, other):
    """Return how far threads are from each other: 0 is no other, then one of the warp, the block, the cluster."""
    if other < 0 or other == lane:
        return 0
    if groups[0, other] == groups[0, lane]:
        return 1
    return 2 if groups[1, other] == groups[1, lane] else 3


class Blocks:
    """Some blocks of a launch, computed together.

    Parameters
    ----------
    program : ptx.Program
    first, count, all_blocks : int
        The first of them, how many there are, and those of the launch.
    parameters : bytes
        Of the kernel.
    pieces : list of (int, array of uint8)
        Global memory.
    shared : int
        Bytes of dynamic shared memory.
    """

    def __init__(self, program, first, count, all_blocks, parameters, pieces, shared):
        self.program, self.threads, n = program, program.threads, count * program.threads
        lane = np.arange(n, dtype=np.uint32)
        block = lane // self.threads
        self.shared = Shared(count, self.threads, program.shared + shared + 15 & ~15, program.cluster)
        memory = Memory([*pieces, (ptx.CONSTANTS, np.frombuffer(program.constants, np.uint8))], n)
        self._values = CALLED | {
            "memory": memory,
            "shared": self.shared,
            "tid_x": lane % self.threads,
            "ntid_x": np.uint32(self.threads),
            "ctaid_x": block + np.uint32(first),
            "nctaid_x": np.uint32(all_blocks),
            "cluster_ctarank": block % np.uint32(program.cluster),
            "cluster_nctarank": np.uint32(program.cluster),
            "dynamic_smem_size": np.uint32(shared),
            **{name: np.frombuffer(parameters, dtype, 1, place)[0] for name, dtype, place in program.parameters},
        }
        self._registers, self._known = {}, set()
        self._place, self._state = np.zeros(n, np.int64), np.zeros(n, np.int8)
        self.visits = np.zeros(len(program.parts), np.int64)  # of warps, by the part of the program

    def _code(self, part):
        """Return a part as Python, whose variables are there."""
        code = self.program.code(part)
        if part not in self._known:
            self._known.add(part)
            for variable, (name, dtype) in code.registers.items():
                if variable not in self._values:
                    if name not in self._registers:  # which begins as anything
                        rubbish = 1 if dtype == "?" else 0xA5
                        self._registers[name] = np.full(len(self._place) * np.dtype(dtype).itemsize, rubbish, np.uint8)
                    self._values[variable] = self._registers[name].view(dtype)
            self._values |= code.numbers
        return code

    def run(self):
        """Let all threads come to their end."""
        while True:
            runs = self._state == RUNS
            if not runs.any():
                if (self._state == ptx.END).all():
                    return
                self._release()
                continue
            self._run_together(int(self._place[runs].min()), runs)

    def _run_together(self, part, runs):
        """Run threads from a part on that they have come to, as long as they go the same way."""
        M = runs & (self._place == part)
        warps = int(M.reshape(-1, min(self.program.threads, ptx.WARP)).any(axis=1).sum())
        everyone = bool(M.all())
        while True:
            code = self._code(part)
            self.visits[part] += warps
            self._values["M"] = True if everyone else M
            try:
                exec(code.compiled, self._values)
            except Exception as error:
                error.add_note(f"in part {part} of {self.program.name}")
                raise
            end, target = self.program.parts[part].end, self.program.parts[part].target
            if end == ptx.JUMP:
                part = target
            elif end == ptx.BRANCH:
                away = self._values[code.decides][M] != (self.program.parts[part].guard[0] == "!")
                if not away.all() and away.any():
                    self._place[M] = np.where(away, target, part + 1)
                    return
                part = target if away.all() else part + 1
            else:
                if end == ptx.END:
                    self.shared.end(np.flatnonzero(M))
                self._place[M], self._state[M] = target, end
                return
            others = runs & ~M
            if not everyone and (self._place[others] <= part).any():  # which are behind, or came here before
                self._place[M] = part
                return

    def _release(self):
        """Let those go on who wait for others, all of whom wait with them."""
        ready_of_any = False
        sizes = ptx.WARP, self.threads, self.threads * self.program.cluster
        for kind, size in zip(WAITS, sizes, strict=True):
            waits = self._state == kind
            of_groups = waits.reshape(-1, size)
            here = of_groups | (self._state == ptx.END).reshape(-1, size)
            ready = waits & np.repeat(here.all(axis=1), size)
            places = np.where(ready, self._place, -1).reshape(-1, size)
            if (ready & (self._place != np.repeat(places.max(axis=1), size))).any():
                raise GpuError("threads wait for each other at different places")
            self.shared.wait(kind, np.flatnonzero(ready))
            self._state[ready] = RUNS
            ready_of_any |= ready.any()
        if not ready_of_any:
            raise GpuError("threads wait for others that will not come")


class Gpu(fake_cupy.Cupy):
    """CuPy, as far as the cuda backend uses it, with this GPU.

    Attributes
    ----------
    launched : collections.Counter
        How often warps went through a part of a kernel, by its name and the number of the part.
    programs : dict of str to ptx.Program
        The kernels that were launched.
    """

    def __init__(self):
        super().__init__()
        self.launched, self.programs = Counter(), {}
        self._captured = None
        own = SimpleNamespace(
            Device=self._device,
            Stream=self._stream,
            driver=SimpleNamespace(launchKernel=self._launch),
            nvrtc=SimpleNamespace(getVersion=lambda: (13, 0)),
        )
        vars(self.cuda).update(vars(own))
        runtime = {
            "driverGetVersion": 13000,
            "runtimeGetVersion": 13000,
            "getDeviceCount": 1,
            "getDevice": 0,
            "memGetInfo": (1 << 33,) * 2,
        }
        vars(self.cuda.runtime).update({name: lambda value=value: value for name, value in runtime.items()})
        self.cuda.runtime.CUDARuntimeError = RuntimeError
        self.cuda.runtime.deviceSynchronize = lambda: None
        self.cuda.set_allocator = lambda _: None

    @staticmethod
    def _device(_=0):
        return SimpleNamespace(id=0, compute_capability="90", attributes={"MaxSharedMemoryPerBlockOptin": MOST_SHARED})

    class RawModule:
        """A file of PTX."""

        def __init__(self, path):
            self._text = Path(path).read_text()

        def get_function(self, name):
            return SimpleNamespace(kernel=SimpleNamespace(ptr=(self._text, name)))

    def _stream(self, *, non_blocking):
        return _Stream(self)

    def _launch(self, text_and_name, blocks, _y, _z, threads, _ty, _tz, shared, stream, _, extra):
        marks = (ctypes.c_void_p * 5).from_address(extra)
        parameters = ctypes.string_at(marks[1], ctypes.c_size_t.from_address(marks[3]).value)
        program = _program(*text_and_name)
        assert threads == program.threads
        assert program.shared + shared <= MOST_SHARED
        launch = functools.partial(self._compute, program, blocks, shared, parameters)
        launch() if self._captured is None else self._captured.append(launch)

    def _compute(self, program, blocks, shared, parameters):
        self.programs[program.name] = program
        assert blocks % program.cluster == 0, f"{blocks} blocks are no clusters of {program.cluster}"
        kinds = compiling.KERNELS[program.name].parameters
        addresses = [
            int(np.frombuffer(parameters, dtype, 1, place)[0])
            for (_, dtype, place), kind in zip(program.parameters, kinds, strict=True)
            if kind.endswith("*")
        ]
        pieces = dict(fake_cupy.piece_at(address) for address in addresses if address)
        together = max(TOGETHER // program.threads // program.cluster, 1) * program.cluster
        with np.errstate(all="ignore"):
            for first in range(0, blocks, together):
                count = min(together, blocks - first)
                some = Blocks(program, first, count, blocks, parameters, list(pieces.items()), shared)
                some.run()
                self.launched.update(
                    {(program.name, part): int(visits) for part, visits in enumerate(some.visits) if visits}
                )


@functools.cache
def _program(text, name):
    return ptx.Program(text, name)


class _Stream:
    """A stream that is captured."""

    def __init__(self, gpu):
        self._gpu = gpu

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def begin_capture(self):
        self._gpu._captured = []

    def end_capture(self):
        launches, self._gpu._captured = self._gpu._captured, None
        return SimpleNamespace(launch=lambda: [launch() for launch in launches])


def install():
    """Make this a machine with this GPU, for good; nothing may have asked for one before."""
    module = Gpu()
    sys.modules |= {"cupy": module, "cupy.cuda": module.cuda}
    gpu.has_driver = lambda: True
    resident.most_blocks = lambda layout: BLOCKS
    return module
