"""How a set lies in the shared memory of a block, and how the threads share the work; part of ``resident.py``.

Activations lie there with their features in lines, h (K, N). A warp computes a strip of elements with all features, and
a group of warps a tile of dW_self over its share of the elements. Each thread has 8 elements of a strip, and some
features, in registers: ``sums[r * held_columns + j]`` for element r and feature j.

What tensor cores multiply is rounded when it is written to shared memory: it is read several times. In bfloat16 a line
has two features, f and f + 8 of each 16, so that a word is a pair of steps of a product along the features. The weights
of a layer lie in the same way, (K, N), and, for the way back, (N, K).
"""

from typing import NamedTuple

from fastperm.kernels.cuda.compiling import SIMULATED
from fastperm.kernels.cuda.tensor_cores import TENSOR_CORES

VECTORS = 5  # in shared memory, of one float for each feature: m, c, G, dm and dy
EXCHANGED = 2  # more of them, which the other blocks of a cluster read


class Places(NamedTuple):
    """Where in shared memory a block has what it needs, in floats; behind h, or g, the weights of the elements."""

    weights: int  # of a layer
    work: int  # sums of threads, and stages
    stages: int  # of h, and then dW_self
    m: int  # vectors
    c: int
    G: int
    dm: int
    dy: int
    exchanged: int
    h: int


class Layout(NamedTuple):
    """A block for layers of up to ``width`` features, or a cluster of blocks, which share the strips of a set.

    A warp is a grid of ``rows`` × ``columns`` threads over a strip, each with 8 elements. For dW_self a group of
    threads has a tile of all features, ``across`` × ``down`` numbers of it each.

    Where a layout is ``wide``, its weights take so much of the shared memory that dW_self takes their place, too.
    """

    width: int
    rows: int
    columns: int
    warps: int
    across: int
    down: int
    stage: int  # elements of h that are in shared memory at once, for dW_self, where no tensor cores multiply
    precision: str = "float32"  # or, for tensor cores, what they round to
    wide: bool = False
    cluster: int = 1  # blocks that share a set

    @property
    def divisible(self):
        """Whether there are kernels for clusters: not for narrow layers on tensor cores, until it is known to pay."""
        return self.wide or self.precision == "float32"

    @property
    def clustered(self):
        """Whether its kernels are those for clusters, be it of one block."""
        return self.wide or self.cluster > 1

    @property
    def tensor_cores(self):
        """The `Cores` that multiply, or None."""
        return TENSOR_CORES.get(self.precision)

    @property
    def name(self):
        """What sets its kernels apart from those of other layouts."""
        name = f"{self.tensor_cores.name}_{self.width}" if self.tensor_cores else str(self.width)
        return f"{name}_clusters" if self.clustered else name

    @property
    def strip(self):
        """Number of elements of a strip."""
        return 8 * self.rows

    @property
    def threads(self):
        """Number of threads of a block."""
        return self.rows * self.columns * self.warps

    @property
    def blocks(self):
        """Number of blocks that a multiprocessor should hold: 512 threads have 128 registers each, 256 have 255."""
        return 1 if self.wide else max(512 // self.threads, 1)

    @property
    def held_columns(self):
        """Number of features of a thread."""
        return self.width // self.columns

    @property
    def held(self):
        """Number of sums of a thread."""
        return 8 * self.held_columns

    @property
    def words(self):
        """Number of words that take one bit for each sum of a thread."""
        return -(-self.held // (16 if SIMULATED and self.wide else 32))

    @property
    def columns_near(self):
        """Which features a thread has: u of them in a row, so far apart, and so far from the next u."""
        return (2, 8, 16) if self.tensor_cores else (4, 1, 4 * self.columns)

    @property
    def rows_at_once(self):
        """How many elements of a thread lie side by side."""
        return 2 if self.tensor_cores else 4

    @property
    def steps(self):
        """How many features a strip is multiplied by at once: the inner length of a product is rounded up to these."""
        return self.tensor_cores.steps if self.tensor_cores else 2

    @property
    def pack(self):
        """How many features a line has."""
        return self.tensor_cores.pack if self.tensor_cores else 1

    @property
    def lines(self):
        """Number of lines of all features."""
        return self.width // self.pack

    @property
    def pad(self):
        """Floats between rows of shared memory that keep its accesses off each other's banks."""
        return 8 if self.tensor_cores else 4

    @property
    def lead(self):
        """Floats from one line of the weights to the next."""
        return self.width + self.pad

    @property
    def stage_lead(self):
        """Floats from one line of a stage to the next."""
        return self.stage + 4 * self.pack

    @property
    def stage_size(self):
        """Floats of a stage."""
        return self.lines * self.stage_lead

    @property
    def tile(self):
        """Numbers of dW_self that a thread has."""
        return self.across * self.down

    @property
    def tile_lead(self):
        """Floats from one row of dW_self to the next; few in bfloat16, where two blocks are to find room."""
        return self.width + (4 if self.pack > 1 else self.pad)

    @property
    def group(self):
        """Number of threads of a group."""
        return self.width**2 // self.tile

    @property
    def groups(self):
        """Number of groups."""
        return self.threads // self.group

    @property
    def heaps(self):
        """How many tiles the groups leave in shared memory: two groups share one."""
        return max(self.groups // 2, 1)

    @property
    def most_fetched(self):
        """Numbers of h that a thread fetches at once for its tile on tensor cores: those of a strip."""
        return 2 * self.across * (self.strip // self.steps)

    @property
    def most_rows(self):
        """Numbers of g that a thread holds for its tile."""
        return self.down if self.tensor_cores else 4 * self.down

    @property
    def sums_rows(self):
        """Rows of threads that have sums of their own."""
        return self.rows * self.warps

    @property
    def sums_lead(self):
        """Floats from the sums of one row of threads to those of the next, which are in other banks."""
        return self.width + (8 if self.tensor_cores else 1)

    @property
    def lanes(self):
        """Threads that share a row of a matrix, for a product of its rows with a vector."""
        return min(self.width, 32)

    @property
    def lanes_lead(self):
        """Floats from the sums of one row to those of the next."""
        return self.lanes + 1

    @property
    def work(self):
        """Floats of shared memory for two stages of h, as far as weights do not lie there, or for sums of threads.

        On tensor cores there are no stages, and a narrow first layer has what they would take (`narrow_gradient_of`).
        """
        sums = max(self.sums_rows * self.sums_lead + self.threads, self.width * self.lanes_lead)
        stages = max(2 * self.stage_size, self.heaps * self.width * self.tile_lead)
        return max(stages - self.lines * self.lead if self.wide else stages, sums)

    @property
    def vectors(self):
        """Number of vectors in shared memory, of one float for each feature."""
        return VECTORS + EXCHANGED if self.clustered else VECTORS

    @property
    def places(self):
        """The `Places` of a block."""
        work = self.lines * self.lead
        m, c, G, dm, dy, exchanged = (work + self.work + i * self.width for i in range(VECTORS + 1))
        stages, h = 0 if self.wide else work, m + self.vectors * self.width
        return Places(0, work, stages, m, c, G, dm, dy, exchanged, h)

    def strips(self, longest):
        """Return how many strips a block has of sets of so many elements."""
        return -(-longest // (self.strip * self.cluster))

    def stride(self, longest):
        """Return the floats from one line to the next, for sets of so many elements: strips, and a pad."""
        return self.strips(longest) * self.strip + self.pad

    def signs(self, longest):
        """Return the words that take one bit for each number of a layer, for sets of so many elements."""
        return -(-self.strips(longest) // self.warps) * self.words * self.threads

    def kept(self, longest, depth):
        """Return the floats of h_1 … h_{D−1}, perhaps x, and m_0 … m_{D−1} of a block, for sets of so many elements."""
        return self.kept_layers(depth) * self.lines * self.stride(longest) + depth * self.width

    def kept_layers(self, depth):
        """Return how many layers there is room for: tensor cores have x where h_D would be, unless it is narrow."""
        return depth if self.tensor_cores else depth - 1

    def shared_bytes(self, longest):
        """Return the shared memory of a block for sets of so many elements."""
        elements, weights = (self.lines + 1) * self.stride(longest), self.lines * self.lead
        return 4 * (elements + weights + self.work + self.vectors * self.width)


LAYOUTS = (
    (
        Layout(4, 2, 1, 4, 4, 4, 32),
        Layout(8, 4, 2, 2, 4, 4, 32),
        Layout(16, 1, 2, 8, 4, 8, 32),
        Layout(32, 1, 4, 8, 8, 4, 16, wide=True),
    )
    if SIMULATED
    else (
        Layout(16, 8, 4, 8, 4, 4, 128),
        Layout(32, 4, 8, 8, 8, 4, 128),
        Layout(64, 4, 8, 16, 8, 8, 128),
        Layout(128, 4, 8, 8, 8, 8, 64, wide=True),
    )
)
TENSOR_LAYOUTS = {
    precision: (
        # The simulator's blocks of tensor cores have one warp.
        (Layout(16, 4, 8, 1, 2, 4, 32, precision), Layout(32, 4, 8, 1, 4, 8, 32, precision, wide=True))
        if SIMULATED
        else (
            Layout(16, 4, 8, 8, 2, 4, 128, precision),
            Layout(32, 4, 8, 8, 4, 8, 128, precision),
            # In bfloat16 a multiprocessor has room for two sets of 512 elements: while one waits, the other computes.
            Layout(64, 4, 8, 8 if precision == "bfloat16" else 16, 4, 16, 128, precision),
            Layout(128, 4, 8, 8, 4, 16, 64, precision, wide=True),
        )
    )
    for precision in TENSOR_CORES
}
