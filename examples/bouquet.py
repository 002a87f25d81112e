"""The story of the bouquets: a network learns what makes a bouquet beautiful from bouquets of three flowers.

Then it is asked about a dozen, about the same dozen in another order, about six million flowers, about fractions, and
about a garden without end. Run it as ``python examples/bouquet.py``; it takes about a minute on two cores.
"""

import numpy as np
from tqdm import tqdm

import fastperm

# A flower is two numbers: how red it is, and how tall.
BEGONIA, DAFFODIL, PEONY = FLOWERS = np.array([[0.9, 0.3], [0.1, 0.5], [0.6, 0.8]])


def beauty(flowers, weights=None):
    """Return what we happen to find beautiful: contrast of colour, and tall flowers. Any order, any number."""
    redness, height = np.moveaxis(flowers, -1, 0)
    mean = np.average(redness, axis=-1, weights=weights)
    contrast = np.average((redness - mean[..., None]) ** 2, axis=-1, weights=weights)
    return 4 * contrast + np.average(height, axis=-1, weights=weights) / 2


def ask(question, flowers, weights=None):
    """Put one question to the network, and print its answer beside the truth."""
    sets = fastperm.Sets.ragged([flowers], None if weights is None else [weights])
    answer = net(sets)[0, 0]
    print(f"{question:58} {answer:.6f}   truth {beauty(flowers, weights):.3f}")
    return answer


generator = np.random.default_rng(0)
net = fastperm.DeepSet(in_features=2, width=64, depth=2, out_features=1, invariance="bitwise", seed=0)
optimizer = fastperm.Adam(learning_rate=2e-3)
print("Learning from bouquets of three flowers.")
for step in tqdm(range(12000), unit="step"):
    optimizer.learning_rate = 2e-3 * (1 - step / 12000)
    bouquets = generator.random((256, 3, 2))
    loss = fastperm.train_step(net, bouquets, beauty(bouquets)[:, None], optimizer)
print(f"Typical error on bouquets of three: {np.sqrt(loss):.4f}\n")

dozen = np.concatenate([np.tile(BEGONIA, (4, 1)), np.tile(DAFFODIL, (6, 1)), np.tile(PEONY, (2, 1))])
first = ask("4 begonias, 6 daffodils, 2 peonies", dozen)
again = ask("the same, in another order", generator.permutation(dozen))
print("  bit for bit the same\n" if first == again else "  not the same!\n")

ask("2,000,000 begonias, 3,000,000 daffodils, 1,000,000 peonies", FLOWERS, np.array([2e6, 3e6, 1e6]))
ask("1/3 begonias, 1/2 daffodils, 1/6 peonies", FLOWERS, np.array([1 / 3, 1 / 2, 1 / 6]))


def garden():
    """Give ever more flowers of a garden that need not end; it is walked through once for every layer."""
    walk = np.random.default_rng(1)
    for _ in range(30):
        yield FLOWERS[walk.choice(3, size=100_000, p=[1 / 3, 1 / 2, 1 / 6])]


# A stream cannot be sorted, which is how the order comes to change no bit: the same network, without that promise.
reader = fastperm.DeepSet(**{**net.config(), "invariance": "rounding"})
reader.parameters.update(net.parameters)
print(f"{'a garden, seen flower by flower: the first 3,000,000':58} {reader.predict_stream(garden)[0]:.6f}")
