"""A first look: train a network on the power-spectrum task, and see how far it is from the best possible answer.

Run it as ``python examples/tutorial.py``; it takes about a minute on two cores. With matplotlib installed
(``pip install "fastperm[plot]"``) it leaves the picture errors.png.
"""

import fastperm
from fastperm import estimation, figures

# Random functions with the frequencies 1 to 4, each seen at 128 random positions: a set of 128 pairs (x, f(x)). To be
# estimated is log p_k, the logarithm of the power at each frequency.
task = fastperm.PowerSpectrum(k_max=4, k_fin=4, set_size=128)
sets, log_powers = task.sample(3, seed=0)
print(sets)
print(log_powers.round(2))

# Four equivariant layers, a mean over the elements, and a dense layer to the four answers.
net = fastperm.DeepSet(in_features=2, width=64, depth=4, out_features=4, seed=0)
fastperm.train(net, task, steps=8000, batch=32, optimizer=fastperm.Adam(learning_rate=2e-3))

# On functions that the network has not seen; beside it the optimum, which no estimator can beat, and what people use.
names = ("optimum", "least-squares", "lomb-scargle", "periodogram", "prior-mean")
comparison = estimation.compare(net, task, names, sets=500)
print("mean squared error of log p_k:")
for name, evaluation in comparison.evaluations.items():
    print(f"{name:>14}", "  ".join(f"k = {k}: {error:.2g}" for k, error in enumerate(evaluation.mean, start=1)))
if figures.available():
    errors = {name: evaluation.mean for name, evaluation in comparison.evaluations.items()}
    figures.errors("errors.png", task.frequencies, errors)

# The order of the samples does not matter, and neither does how they are listed.
x, y = sets[0].values.T
print(estimation.estimate_log_powers(net, task, x, y).round(2))
print(estimation.estimate_log_powers(net, task, x[::-1], y[::-1]).round(2))
