"""Write samples.csv: 512 samples of one function that no network has been trained on, in no order.

Run it as ``python examples/make_samples.py > examples/samples.csv``.
"""

import fastperm

task = fastperm.PowerSpectrum(k_max=4, k_fin=4, set_size=512)
sets, log_powers = task.sample(1, 20261123)

print("# Samples of f(x) = sum over k = 1..4 of sqrt(p_k) cos(k x + phi_k)")
for k, log_power in zip(task.frequencies, log_powers[0], strict=True):
    print(f"# true log p_{k} = {log_power:.4f}")
print("x,y")
for x, y in sets.values:
    print(f"{x:.9f},{y:.9f}")
