"""PTX on NumPy: what `ptx.py` and `numpy_gpu.py` make of kernels written by hand, and which faults they find."""

import re
from types import SimpleNamespace

import fake_cupy
import numpy as np
import numpy_gpu
import ptx
import pytest

WARPS = 2
REGISTERS = ".reg .pred %p<9>; .reg .b32 %r<99>; .reg .b32 %f<99>; .reg .b64 %rd<99>;"
# Where this thread's number is: %rd2 in the array, %rd4 in shared memory; %r1 is the thread.
BEGIN = """
    ld.param.u64 %rd1, [k_param_0];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd5, %r1, 4;
    add.s64 %rd2, %rd1, %rd5;
    mov.u64 %rd6, memory;
    add.s64 %rd4, %rd6, %rd5;
"""


def run(body, array, *, threads=32 * WARPS, cluster=1, blocks=1, shared=0):
    """Run a kernel that gets an array, and return what it has made of it."""
    text = f""".version 9.0
.target sm_90
.extern .shared .align 16 .b8 memory[];
.visible .entry k(
    .param .u64 .ptr .align 1 k_param_0
)
.maxntid {threads}, 1, 1
.reqnctapercluster {cluster}, 1, 1
{{
{REGISTERS}
{BEGIN}{body}
    ret;
}}
"""
    program, array = ptx.Program(text, "k"), np.array(array)
    piece = array.ctypes.data, array.reshape(-1).view(np.uint8)
    with np.errstate(all="ignore"):
        parameters = np.uint64(array.ctypes.data).tobytes()
        numpy_gpu.Blocks(program, 0, blocks, blocks, parameters, [piece], shared).run()
    return array


def test_blocks_may_have_one_thread():
    """As the last kernel of a step that is recorded has: such a thread is a warp."""
    body = "mov.u32 %r2, 7; st.global.u32 [%rd2], %r2;"
    assert run(body, np.zeros(1, np.uint32), threads=1, blocks=3).tolist() == [7]


def test_threads_go_different_ways_and_meet():
    found = run(
        """
    mov.u32 %r2, 0;
    mov.u32 %r3, %r1;
    and.b32 %r4, %r1, 3;
    setp.eq.s32 %p1, %r4, 0;
    @%p1 bra L_3;
L_1:
    add.s32 %r2, %r2, %r3;
    sub.s32 %r3, %r3, 1;
    setp.gt.s32 %p2, %r3, 0;
    @%p2 bra L_1;
    bra.uni L_4;
L_3:
    mov.u32 %r2, 7;
L_4:
    bar.sync 0;
    st.global.u32 [%rd2], %r2;
""",
        np.zeros(64, np.uint32),
    )
    wanted = [7 if i % 4 == 0 else i * (i + 1) // 2 for i in range(64)]
    np.testing.assert_array_equal(found, wanted)


EXCHANGE = """
    st.shared.u32 [%rd4], %r1;
    {barrier}
    xor.b32 %r2, %r1, {other};
    mul.wide.u32 %rd7, %r2, 4;
    add.s64 %rd8, %rd6, %rd7;
    ld.shared.u32 %r3, [%rd8];
    {second}
    st.shared.u32 [%rd4], %r3;
    st.global.u32 [%rd2], %r3;
"""
FOR_BLOCK, FOR_WARP, FOR_CLUSTER = (
    "bar.sync 0;",
    "bar.warp.sync -1;",
    "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;",
)


@pytest.mark.parametrize(
    ("barrier", "second", "other", "fault"),
    [
        (FOR_BLOCK, FOR_BLOCK, 32, None),
        (FOR_CLUSTER, FOR_BLOCK, 32, None),
        (FOR_WARP, FOR_WARP, 5, None),
        ("", FOR_BLOCK, 32, r"thread 0 reads what thread 32 writes"),
        ("", FOR_BLOCK, 5, r"thread 0 reads what thread 5 writes"),
        (FOR_WARP, FOR_BLOCK, 32, r"thread 0 reads what thread 32 writes"),
        (FOR_BLOCK, "", 32, r"thread 0 writes what thread 32, or one beside it, reads"),
        (FOR_BLOCK, FOR_WARP, 32, r"thread 0 writes what thread 32, or one beside it, reads"),
        (FOR_BLOCK, "", 5, r"thread 0 writes what thread 5, or one beside it, reads"),
    ],
)
def test_threads_must_wait_for_each_other(barrier, second, other, fault):
    body = EXCHANGE.format(barrier=barrier, second=second, other=other)
    if fault:
        with pytest.raises(numpy_gpu.GpuError, match=fault):
            run(body, np.zeros(64, np.uint32), shared=256)
    else:
        np.testing.assert_array_equal(run(body, np.zeros(64, np.uint32), shared=256), np.arange(64) ^ other)


def test_one_reader_of_many_is_not_forgotten():
    # All threads read what thread 63 writes next: it is the last of them that is remembered.
    body = "ld.shared.u32 %r2, [memory+252]; {wait} st.shared.u32 [%rd4], %r1;"
    run(body.format(wait=FOR_BLOCK), np.zeros(64, np.uint32), shared=256)
    with pytest.raises(numpy_gpu.GpuError, match="thread 63 writes what thread 63, or one beside it, reads"):
        run(body.format(wait=FOR_WARP), np.zeros(64, np.uint32), shared=256)


def test_two_threads_do_not_write_to_one_place():
    with pytest.raises(numpy_gpu.GpuError, match="thread 1 writes what thread 0 writes, word 0"):
        run("st.shared.u32 [memory], %r1;", np.zeros(64, np.uint32), shared=256)


SOME = "setp.gt.u32 %p1, %r1, 7; @%p1 bra L_1;"  # only these do what comes before L_1
MULTIPLY = (
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
    "{%f1,%f2,%f3,%f4}, {%r1,%r2,%r3,%r4}, {%r5,%r6}, {%f1,%f2,%f3,%f4};"
)
FAULTS = {
    "ld.global.u32 %r2, [%rd2+4];": "an access to 4 bytes beyond all arrays of the launch",
    "st.global.u32 [%rd2+-4], %r1;": "an access to 4 bytes beyond all arrays",
    "ld.global.v4.f32 {%f1, %f2, %f3, %f4}, [%rd2];": "an access to 16 bytes at an address that is no multiple",
    "st.shared.u32 [%rd4+4], %r1;": "an access to 4 bytes .*, beyond the shared memory of a block",
    "ld.shared.v2.u32 {%r2, %r3}, [%rd4];": "an access to 8 bytes at 0x404, .* no multiple",
    f"{SOME} bar.sync 0; L_1: bar.sync 0;": "threads wait for each other at different places",
    f"{SOME} bar.sync 0; L_1: bar.warp.sync -1;": "threads wait for others that will not come",
    f"{SOME} {MULTIPLY} L_1: bar.sync 0;": "a product on tensor cores without all threads of the warp",
}


@pytest.mark.parametrize(("body", "message"), FAULTS.items(), ids=map(str, range(len(FAULTS))))
def test_what_a_gpu_would_not_do_is_a_fault(body, message):
    with pytest.raises(numpy_gpu.GpuError, match=message):
        run(body, np.zeros(64, np.uint32), shared=256)


def test_an_unknown_instruction_is_named():
    with pytest.raises(NotImplementedError, match=re.escape("brev.b32 %r2, %r1")):
        run("brev.b32 %r2, %r1;", np.zeros(64, np.uint32))


COPY = """
    mul.wide.u32 %rd5, %r1, 16;
    add.s64 %rd2, %rd1, %rd5;
    add.s64 %rd4, %rd6, %rd5;
    cvt.u32.u64 %r2, %rd4;
    and.b32 %r4, %r1, 16;
    cp.async.cg.shared.global [%r2], [%rd2], 16, %r4;
    cp.async.commit_group;
    cp.async.commit_group;
    cp.async.wait_group {but};
    ld.shared.v4.f32 {{%f1, %f2, %f3, %f4}}, [%rd4];
    st.global.v4.f32 [%rd2], {{%f1, %f2, %f3, %f4}};
"""


def test_a_copy_is_there_when_it_has_been_waited_for():
    numbers = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    found = run(COPY.format(but=1), numbers, shared=1024)
    np.testing.assert_array_equal(found, numbers * (np.arange(64)[:, None] // 16 % 2))  # the others read nothing
    assert np.isnan(run(COPY.format(but=2), numbers, shared=1024)).all()


def test_blocks_of_a_cluster_read_each_others_memory():
    body = """
    mov.u32 %r2, %cluster_ctarank;
    mov.u32 %r7, %cluster_nctarank;
    mov.u32 %r8, %ctaid.x;
    mad.lo.s32 %r4, %r8, 64, %r1;
    st.shared.u32 [%rd4], %r4;
    {barrier}
    add.s32 %r3, %r2, 1;
    rem.u32 %r3, %r3, %r7;
    cvta.shared.u64 %rd9, %rd4;
    {{ .reg .u64 own; .reg .u32 at; cvta.to.shared.u64 own, %rd9; cvt.u32.u64 at, own;
       mapa.shared::cluster.u32 at, at, %r3; ld.shared::cluster.u32 %r5, [at]; }}
    mul.wide.u32 %rd7, %r4, 4;
    add.s64 %rd8, %rd1, %rd7;
    st.global.u32 [%rd8], %r5;
    {last}
"""
    how = {"blocks": 4, "cluster": 2, "shared": 256}
    found = run(body.format(barrier=FOR_CLUSTER, last=FOR_CLUSTER), np.zeros(256, np.uint32), **how)
    np.testing.assert_array_equal(found.reshape(4, 64), np.arange(256).reshape(4, 64)[[1, 0, 3, 2]])
    with pytest.raises(numpy_gpu.GpuError, match="thread 0 reads what thread 64 writes"):
        run(body.format(barrier=FOR_BLOCK, last=FOR_CLUSTER), np.zeros(256, np.uint32), **how)
    with pytest.raises(numpy_gpu.GpuError, match="a block ends while others of its cluster may still read"):
        run(body.format(barrier=FOR_CLUSTER, last=FOR_BLOCK), np.zeros(256, np.uint32), **how)


# Rows and columns of registers, of thread 4 g + t, as the manual of PTX has them.
TF32 = SimpleNamespace(
    code="m16n8k8.row.col.f32.tf32.tf32.f32",
    steps=8,
    numbers=1,
    a=lambda g, t, i, half: (g + 8 * (i in (1, 3)), t + 4 * (i >= 2)),
    b=lambda g, t, i, half: (t + 4 * i, g),
)
BF16 = SimpleNamespace(
    code="m16n8k16.row.col.f32.bf16.bf16.f32",
    steps=16,
    numbers=2,
    a=lambda g, t, i, half: (g + 8 * (i in (1, 3)), 2 * t + half + 8 * (i >= 2)),
    b=lambda g, t, i, half: (2 * t + half + 8 * i, g),
)


@pytest.mark.parametrize("kind", [TF32, BF16], ids=["tf32", "bf16"])
def test_a_product_on_tensor_cores(kind):
    generator = np.random.default_rng(0)
    A, B = (generator.integers(-9, 10, (WARPS, *shape)) for shape in ((16, kind.steps), (kind.steps, 8)))
    C = generator.integers(-9, 10, (WARPS, 16, 8))
    registers = np.zeros((WARPS, 32, 10), np.uint32)
    for matrix, place, first, count in ((A, kind.a, 0, 4), (B, kind.b, 4, 2)):
        for i in range(count):
            of_lanes = [[place(lane // 4, lane % 4, i, n) for n in range(kind.numbers)] for lane in range(32)]
            row, column = np.moveaxis(np.array(of_lanes), -1, 0)
            bits = matrix[:, row, column].astype(np.float32).view(np.uint32)  # (warps, 32, numbers)
            halves = bits if kind.numbers == 1 else (bits >> 16) << np.array([0, 16], np.uint32)
            registers[:, :, first + i] = halves.sum(axis=-1)
    of_C = [(lane // 4 + 8 * (i >= 2), 2 * (lane % 4) + i % 2) for lane in range(32) for i in range(4)]
    row, column = np.array(of_C).T
    registers[:, :, 6:] = C[:, row, column].astype(np.float32).view(np.uint32).reshape(WARPS, 32, 4)
    loads = "".join(f"ld.global.u32 %r{10 + i}, [%rd2+{4 * i}];" for i in range(6))
    loads += "".join(f"ld.global.f32 %f{i}, [%rd2+{24 + 4 * i}];" for i in range(4))
    stores = "".join(f"st.global.f32 [%rd2+{24 + 4 * i}], %f{i};" for i in range(4))
    body = f"""
    mul.wide.u32 %rd5, %r1, 40;
    add.s64 %rd2, %rd1, %rd5;
    {loads}
    mma.sync.aligned.{kind.code} {{%f0,%f1,%f2,%f3}}, {{%r10,%r11,%r12,%r13}}, {{%r14,%r15}}, {{%f0,%f1,%f2,%f3}};
    {stores}
"""
    found = run(body, registers)[:, :, 6:].copy().view(np.float32).reshape(WARPS, -1)
    np.testing.assert_array_equal(found, (A @ B + C)[:, row, column])


# Two warpgroups multiply 64 rows each by what lies in shared memory. Of each thread: four registers of A, four sums,
# and one word of B, of which the first 64 threads write theirs.
OF_WARPGROUPS = """
    mul.wide.u32 %rd5, %r1, 36;
    add.s64 %rd2, %rd1, %rd5;
    {loads}
    setp.lt.u32 %p1, %r1, 64;
    @%p1 st.shared.u32 [%rd4], %r18;
    {fence}
    bar.sync 0;
    cvt.u32.u64 %r19, %rd6;
    shr.u32 %r19, %r19, 4;
    cvt.u64.u32 %rd7, %r19;
    or.b64 %rd7, %rd7, {strides};
    {of_registers}
    wgmma.mma_async.sync.aligned.m64n8k{steps}.f32.{kind}.{kind}
        {{%f0,%f1,%f2,%f3}}, {{%r10,%r11,%r12,%r13}}, %rd7, {end};
    wgmma.commit_group.sync.aligned;
    {between}
    wgmma.wait_group.sync.aligned {but};
    {stores}
"""


def product_of_warpgroups(
    kind,
    name,
    *,
    fence="fence.proxy.async.shared::cta;",
    of_registers="wgmma.fence.sync.aligned;",
    between="",
    but=0,
    cluster=1,
):
    """Return what a kernel makes of the sums of two warpgroups, and what they should be."""
    generator = np.random.default_rng(0)
    A, B, C = (generator.integers(-9, 10, shape) for shape in ((2, 64, kind.steps), (kind.steps, 8), (2, 64, 8)))
    registers = np.zeros((2, 4, 32, 9), np.uint32)  # of warpgroups, warps and lanes
    of_warps, lanes = A.reshape(2, 4, 16, -1), np.arange(32)

    def words(numbers):
        bits = numbers.astype(np.float32).view(np.uint32)
        return bits[..., 0] if kind.numbers == 1 else bits[..., 0] >> 16 | bits[..., 1]

    for i in range(4):
        places = np.array([[kind.a(lane // 4, lane % 4, i, n) for n in range(kind.numbers)] for lane in lanes])
        registers[..., i] = words(of_warps[:, :, places[..., 0], places[..., 1]])
    rows, columns = np.array([(lane // 4 + 8 * (i >= 2), 2 * (lane % 4) + i % 2) for lane in lanes for i in range(4)]).T
    sums = C.reshape(2, 4, 16, 8)[:, :, rows, columns].astype(np.float32).view(np.uint32)
    registers[..., 4:8] = sums.reshape(2, 4, 32, 4)
    # Core matrices: eight columns of 16 bytes along k, for each half of the steps.
    halves = B.T.reshape(8, 2, 4, kind.numbers).transpose(1, 0, 2, 3)
    registers[0].reshape(-1, 9)[:64, 8] = words(halves).ravel()
    body = OF_WARPGROUPS.format(
        loads="".join(
            [
                *(f"ld.global.u32 %r{10 + i}, [%rd2+{4 * i}];" for i in range(4)),
                *(f"ld.global.f32 %f{i}, [%rd2+{16 + 4 * i}];" for i in range(4)),
                "ld.global.u32 %r18, [%rd2+32];",
            ]
        ),
        stores="".join(f"st.global.f32 [%rd2+{16 + 4 * i}], %f{i};" for i in range(4)),
        strides=hex(8 << 16 | 16 << 32),
        steps=kind.steps,
        kind=name,
        end="1, 1, 1" if name == "tf32" else "1, 1, 1, 0",
        fence=fence,
        of_registers=of_registers,
        between=between,
        but=but,
    )
    found = (
        run(body, registers, threads=256, shared=256, blocks=cluster, cluster=cluster)[..., 4:8].copy().view(np.float32)
    )
    return found.reshape(2, 4, -1), (A @ B + C).reshape(2, 4, 16, 8)[:, :, rows, columns]


@pytest.mark.parametrize(("kind", "name"), [(TF32, "tf32"), (BF16, "bf16")], ids=["tf32", "bf16"])
def test_a_product_of_warpgroups(kind, name):
    np.testing.assert_array_equal(*product_of_warpgroups(kind, name))


def test_a_product_of_warpgroups_must_see_what_registers_hold():
    with pytest.raises(AssertionError, match="a product without a fence for registers before"):
        product_of_warpgroups(TF32, "tf32", of_registers="")


def test_an_address_of_the_second_block_of_a_cluster_has_to_be_cut_for_a_descriptor():
    with pytest.raises(numpy_gpu.GpuError, match="a product reads beyond the shared memory of a block"):
        product_of_warpgroups(TF32, "tf32", cluster=2)


OTHER_B = "@%p1 st.shared.u32 [%rd4], %r10;"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"fence": ""}, "a product reads what was written without a fence"),
        ({"between": f"bar.sync 0; {OTHER_B} bar.sync 0;"}, "what a product reads was written to before it was done"),
        ({"between": OTHER_B}, r"thread 0 writes what thread \d+, or one beside it, reads"),
        ({"between": "add.u32 %r10, %r10, 1;"}, "a register of a product was written to before it was done"),
        ({"but": 1}, "a thread ends before its products are done"),
    ],
    ids=["fence", "overwritten", "race", "register", "wait"],
)
def test_a_product_of_warpgroups_reads_what_is_there_until_it_is_done(how, message):
    with pytest.raises(numpy_gpu.GpuError, match=message):
        product_of_warpgroups(TF32, "tf32", **how)


# Each of two blocks brings its half of an array to both, and copies what came to its own part of the array.
TO_BLOCKS = """
    cvt.u32.u64 %r2, %rd6;
    mov.u32 %r3, %cluster_ctarank;
    setp.eq.u32 %p1, %r1, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r2+256], 1;
    {fence}
    {cluster}
    mul.wide.u32 %rd7, %r3, 128;
    add.s64 %rd8, %rd1, %rd7;
    add.s64 %rd9, %rd6, %rd7;
    cvt.u32.u64 %r4, %rd9;
    add.u32 %r5, %r2, 256;
    cvt.u16.u32 %h1, {blocks};
    @%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], {count};
    @%p1 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes{how}
        [%r4], [%rd8], 128, [%r5]{last};
    {wait}
    ld.shared.u32 %r6, [%rd4];
    mul.wide.u32 %rd7, %r3, 256;
    add.s64 %rd8, %rd2, %rd7;
    st.global.u32 [%rd8+256], %r6;
"""
ARRIVED = """
again:
    mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r5], 0;
    @!%p2 bra again;
"""


MULTICAST = ".multicast::cluster"
ONE_WAITS = f"@!%p1 bra others; {ARRIVED} others: {FOR_CLUSTER}"


def test_one_thread_copies_to_all_blocks_of_a_cluster():
    def copied(
        array, *, blocks=3, count=256, wait=ARRIVED, fence="fence.mbarrier_init.release.cluster;", how=MULTICAST
    ):
        settings = {"cluster": FOR_CLUSTER, "blocks": blocks, "count": count, "wait": wait, "fence": fence}
        body = TO_BLOCKS.format(how=how, last=", %h1" if how else "", **settings)
        return run(".reg .b16 %h<9>;" + body, array, cluster=2, blocks=2, shared=272)

    array = np.random.default_rng(0).integers(0, 1 << 32, 192, dtype=np.uint32)
    np.testing.assert_array_equal(copied(array).reshape(3, 64), np.tile(array[:64], (3, 1)))
    for how, message in (
        ({"wait": ""}, "thread 1 reads what thread 0 writes"),
        ({"wait": FOR_CLUSTER}, "a block ends before what is copied to it has arrived"),
        ({"wait": ONE_WAITS}, "a thread reads what was copied without having waited for it"),
        ({"count": 272}, "threads wait for bytes that will not come"),
        ({"blocks": 5}, "to blocks that there are not"),
        ({"how": ""}, "threads wait for bytes that will not come"),  # each copies to itself alone
        ({"fence": ""}, "a barrier was made that copies do not see"),
    ):
        with pytest.raises(numpy_gpu.GpuError, match=message):
            copied(array, **how)


BITS = np.array([0x3F800000, 0x3F808000, 0x3F818000, 0x3F801000, 0x3F800FFF, 0x7F800000, 0xFFFFFFFF, 0x80000000], "u4")


@pytest.mark.parametrize(
    ("instruction", "wanted"),
    [
        ("cvt.rn.bf16x2.f32 %r3, %f1, %f1", [0x3F80, 0x3F80, 0x3F82, 0x3F80, 0x3F80, 0x7F80, 0x7FFF, 0x8000]),
        (
            "cvt.rna.tf32.f32 %r3, %f1",
            [0x3F800000, 0x3F808000, 0x3F818000, 0x3F802000, 0x3F800000, 0x7F800000, 0x7FFFFFFF, 0x80000000],
        ),
        ("max.NaN.f32 %f2, %f1, 0f3F808000; mov.b32 %r3, %f2", None),
        ("shf.l.wrap.b32 %r3, %r2, 0xFFFF, 8", [0xFFFF3F] * 5 + [0xFFFF7F, 0xFFFFFF, 0xFFFF80]),
        ("prmt.b32 %r3, %r2, 0x01020304, 0x7610", [0x0102 << 16 | int(bits) & 0xFFFF for bits in BITS]),
        ("setp.leu.f32 %p1, %f1, 0f3F800FFF; selp.b32 %r3, 1, 0, %p1", [1, 0, 0, 0, 1, 0, 1, 1]),
        ("setp.ne.f32 %p1, %f1, 0f3F800000; selp.b32 %r3, 1, 0, %p1", [0, 1, 1, 1, 1, 1, 0, 1]),
        ("shr.s32 %r3, %r2, 31", [0] * 6 + [0xFFFFFFFF] * 2),
        ("div.s32 %r3, %r2, 0x10000000", [3, 3, 3, 3, 3, 7, 0, (1 << 32) - 8]),
        ("cvt.s64.s32 %rd9, %r2; shr.u64 %rd9, %rd9, 32; cvt.u32.u64 %r3, %rd9", [0] * 6 + [0xFFFFFFFF] * 2),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_instructions(instruction, wanted):
    body = f"ld.global.u32 %r2, [%rd2]; mov.b32 %f1, %r2; {instruction}; st.global.u32 [%rd2], %r3;"
    if wanted is None:
        numbers = BITS.view(np.float32)
        wanted = np.maximum(numbers, np.float32(1.00390625)).view(np.uint32)
    wanted = np.array(wanted, np.uint32)
    if "bf16" in instruction:
        wanted = wanted << 16 | wanted
    np.testing.assert_array_equal(run(body, np.tile(BITS, 8)), np.tile(wanted, 8))


def test_an_array_of_the_device_is_found_by_its_address():
    device = numpy_gpu.Gpu()
    whole = device.asarray(np.arange(9, dtype=np.float32))
    start, memory = fake_cupy.piece_at(whole[3:].data.ptr)
    np.testing.assert_array_equal(memory.view(np.float32), np.arange(9))
    assert start == whole.data.ptr
    with pytest.raises(KeyError, match="no array on the device has the address 0x1"):
        fake_cupy.piece_at(1)
