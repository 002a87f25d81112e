"""`explain`: what it says is what the kernels do."""

import numpy as np
import pytest

import fastperm
from fastperm.kernels import cuda
from fastperm.kernels.cpu import deep_set, workers
from fastperm.kernels.cuda import product_on_warpgroups, resident

TIMES = "\N{MULTIPLICATION SIGN}"


def network(backend, width=8):
    return fastperm.DeepSet(2, width, 2, 3, backend=backend, seed=0)


@pytest.fixture
def h100(monkeypatch):
    """Take the current device for an H100."""
    monkeypatch.setattr(resident, "most_shared_memory", lambda: 232448)
    monkeypatch.setattr(resident, "clusters", lambda: (1, 2, 4, 8))
    monkeypatch.setattr(resident, "clusters_run", lambda cluster, shared: True)


@pytest.mark.parametrize("numbers", [80, 800], ids=lambda n: f"{n}numbers")
def test_large_sets_take_the_path_that_is_said(numbers, monkeypatch):
    for name, value in (("LARGE_ELEMENTS", 5), ("LARGE_NUMBERS", numbers), ("LARGE_PART", 4)):
        monkeypatch.setattr(workers, name, value)
    taken = []
    monkeypatch.setattr(deep_set, "large_set_forward", lambda x, *_, **__: taken.append(len(x)))
    net, counts = network("cpu"), (3, 30, 2, 11, 1)
    sets = fastperm.Sets.ragged([np.ones((count, 2)) for count in counts])
    net(sets)
    found = {path.name: path.sets for path in fastperm.explain(net, sets).paths}
    assert [counts[s] for s in found.get("chunked", ())] == taken == ([30] if numbers == 80 else [])
    assert sorted(s for own in found.values() for s in own) == [0, 1, 2, 3, 4]


def test_it_says_why():
    said = str(fastperm.explain(network("cpu", 64), np.zeros((2, 10, 2))))
    assert said == (
        "backend cpu\n  set-resident: 2 sets, fewer than 10,000 elements, the largest of 4,096, 640,000 / 64 (the "
        "width) and 1/8 of the 20 elements of the batch: one worker takes a set through all layers in its cache"
    )
    assert "layer by layer: 1 set, NumPy" in str(fastperm.explain(network("reference"), np.zeros((1, 10, 2))))


def test_angular_layers_are_not_computed_on_chip_on_a_gpu(h100):
    batch = (np.array([0, 300]), (1, 32, 32, 4), "mean", "mean")
    ((name, _, why),) = cuda.paths(*batch, 3)
    assert name == "fused tiles"
    assert why.startswith("angular layers are not computed on chip: layer by layer")
    net = fastperm.DeepSet(2, 8, 2, 3, backend="cpu", symmetry="circle", orders=2)
    assert [path.name for path in fastperm.explain(net, np.ones((2, 5, 2))).paths] == ["set-resident"]


def test_cuda_names_the_tiles_of_the_widths(h100):
    ((name, sets, why),) = cuda.paths(np.array([0, 3, 5]), (2, 64, 16, 4), "max", "mean")
    assert (name, sets.tolist()) == ("fused tiles", [0, 1])
    assert why.startswith("only mean and sum are pooled on chip: ")
    assert "2 to 64 columns: a kernel for few features, 64 to 16 columns: tiles of 128" in why
    ((name, _, why),) = cuda.paths(np.array([0, 300, 500]), (2, 512, 512, 4), "mean", "mean")
    assert name == "fused tiles"
    assert why.startswith("a width of 512 is more than 128: ")
    assert why.endswith(
        "few features, 512 to 512 columns: NVIDIA's library, 512 to 4 columns: tiles of 128 \N{MULTIPLICATION SIGN} 32"
    )
    ((name, _, why),) = cuda.paths(np.array([0, 3, 5]), (2, 64, 4), "mean", "mean")
    assert "sets of 2.5 elements, on average, are fewer than 32" in why


@pytest.mark.parametrize(
    ("precision", "words", "wide", "most"),
    [("tf32", "TF32", "a cluster of 2 blocks, each of ", 512), ("bfloat16", "bfloat16", "a block of ", 1408)],
)
def test_cuda_says_what_is_rounded(precision, words, wide, most, h100, monkeypatch):
    ((name, _, why),) = cuda.paths(np.array([0, 512, 600]), (2, 64, 16, 4), "mean", "sum", precision=precision)
    assert name == "resident"
    assert why.endswith(f"as wide as 64, on tensor cores in {words}")
    ((name, _, why),) = cuda.paths(np.array([0, 300, 500]), (2, 130, 64, 4), "mean", "mean", precision=precision)
    assert name == "fused tiles"
    assert ": layer by layer, all sets in one launch; 2 to 130 columns: a kernel for few features, in float32, " in why
    assert why.endswith(f", 130 to 64 columns: NVIDIA's library, in {words}, 64 to 4 columns: tiles of 128 {TIMES} 32")
    widths = (2, 512, 64, 1024, 1024, 192, 4)
    for there in (True, False):
        monkeypatch.setattr(product_on_warpgroups, "are_there", lambda there=there: there)
        ((_, _, why),) = cuda.paths(np.array([0, 512]), widths, "mean", "mean", precision=precision)
        tiles = f"tiles of 128 {TIMES} 128 on tensor cores, in {words}"
        of_warpgroups = f"tiles of 128 {TIMES} 256 by warpgroups on tensor cores, in {words}"
        assert f", 512 to 64 columns: {tiles}, 64 to 1024 columns: {tiles}, " in why
        library = of_warpgroups if there else f"NVIDIA's library, in {words}"
        assert f"1024 to 1024 columns: {library}, 1024 to 192 columns: {of_warpgroups if there else tiles}, " in why
    monkeypatch.setattr(product_on_warpgroups, "are_there", lambda: True)
    shapes = {(2, 512, 192, 4): True} | dict.fromkeys(
        ((2, 512, 4), (2, 512, 1024, 64, 4), (2, 512, 196, 4), (9, 512, 512, 4)), False
    )
    ways = {("mean", "sum", 0): True} | dict.fromkeys(
        (("mean", "sum", 3), ("max", "sum", 0), ("sum", "max", 0), ("mean", None, 0)), False
    )
    for widths, of_width in shapes.items():
        for how, of_way in ways.items():
            ((_, _, why),) = cuda.paths(np.array([0, 512]), widths, *how, precision=precision)
            kept = of_width and of_way and precision == "bfloat16"
            assert why.endswith("; activations are kept in bfloat16") == kept, (widths, how)
    monkeypatch.setattr(product_on_warpgroups, "are_there", lambda: False)
    ((name, _, why),) = cuda.paths(np.array([0, 512]), (2, 128, 65, 4), "mean", "sum", precision=precision)
    assert name == "resident"
    assert why.startswith(wide)
    assert why.endswith(f"as wide as 128, on tensor cores in {words}")
    ((name, _, why),) = cuda.paths(np.array([0, most]), (2, 64, 16, 4), "mean", "sum", precision=precision)
    assert name == "resident"
    ((name, _, why),) = cuda.paths(np.array([0, most + 1]), (2, 64, 16, 4), "mean", "sum", precision=precision)
    assert name == "fused tiles"
    assert why.startswith(f"a set of {most + 1:,} elements needs ")


def test_two_blocks_of_the_headline_network_in_bfloat16_find_room_on_a_multiprocessor(h100):
    layout = resident.layout_for(np.array([0, 512, 1024]), (2, 64, 64, 4), "mean", "mean", "bfloat16")
    reserved, of_multiprocessor = 1024, 228 * 1024  # bytes, by CUDA's programming guide for compute capability 9.0
    assert layout.blocks == 2
    assert layout.blocks * (layout.shared_bytes(512) + reserved) <= of_multiprocessor


def test_where_clusters_do_not_run_a_block_has_to_hold_a_set(h100, monkeypatch):
    monkeypatch.setattr(resident, "clusters_run", lambda cluster, shared: False)
    ((name, _, why),) = cuda.paths(np.array([0, 512, 1024]), (2, 128, 4), "mean", "mean")
    assert name == "fused tiles"
    assert why.startswith("this GPU does not run clusters of 2 blocks with 2")


def test_without_clusters_a_block_has_to_hold_a_set(h100, monkeypatch):
    monkeypatch.setattr(resident, "clusters", lambda: ())
    ((name, _, why),) = cuda.paths(np.array([0, 545]), (2, 64, 16, 4), "mean", "sum", precision="tf32")
    assert name == "fused tiles"
    assert why.startswith("a set of 545 elements needs 245,280 bytes of shared memory, and a block has 232,448: layer")
    ((name, _, why),) = cuda.paths(np.array([0, 200]), (2, 65, 4), "mean", "sum")
    assert name == "fused tiles"
    assert why.startswith("a width of 65 is more than 64: ")


@pytest.mark.parametrize(
    ("widths", "count", "cluster", "threads"),
    [
        *(((2, 64, 4), 544, 1, 512), ((2, 64, 4), 1000, 2, 512), ((2, 16, 4), 20000, 8, 256)),
        *(((2, 128, 4), 256, 1, 256), ((2, 128, 4), 512, 2, 256), ((2, 128, 4), 2048, 8, 256)),
    ],
    ids=str,
)
def test_as_few_blocks_as_possible_share_a_set(h100, widths, count, cluster, threads):
    ((name, _, why),) = cuda.paths(np.array([0, count]), widths, "mean", "mean")
    assert name == "resident"
    block = "a block of" if cluster == 1 else f"a cluster of {cluster} blocks, each of"
    assert why.startswith(f"{block} {threads} threads and ")
    assert why.endswith(f" bytes of shared memory takes a set through all layers, as wide as {widths[1]}")


def test_small_sets_have_no_cluster(h100):
    ((name, _, why),) = cuda.paths(np.array([0, 10, 20, 30, 1030]), (2, 128, 4), "mean", "mean")
    assert name == "fused tiles"
    assert why.startswith("sets of 258 elements, on average, are fewer than 512 for a cluster of 4 blocks: ")


def test_cuda_says_what_fits_on_chip(h100):
    ((name, sets, why),) = cuda.paths(np.array([0, 512, 600]), (2, 64, 16, 4), "mean", "sum")
    assert (name, sets.tolist()) == ("resident", [0, 1])
    assert "a block of 512 threads and" in why
    ((name, _, why),) = cuda.paths(np.array([0, 5000]), (2, 64, 4), "mean", "mean")
    assert name == "fused tiles"
    assert "a set of 5,000 elements needs " in why
    assert " bytes of shared memory in each of 8 blocks, and a block has 232,448: " in why


def test_malformed_sets_are_refused():
    with pytest.raises(ValueError, match="expected K=2 features"):
        fastperm.explain(network("reference"), np.zeros((1, 10, 3)))
