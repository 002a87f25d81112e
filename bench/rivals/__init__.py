"""What fastperm is measured against: each rival small, and as a good user of its framework would write it.

Every class here, and `contenders.Ours`, has ``n_parameters`` and ``batch(x, targets)``, which returns sets and targets
as the rival takes them. Timed are ``step(sets, targets) -> loss`` (forward, mean squared error, backward, Adam) and
``predict(sets) -> ndarray``. By ``evaluate(sets, targets) -> (prediction, loss, gradients)``, and by predictions,
``tests/test_rivals.py`` proves that all of them compute the same thing. `matrix_products` is a yardstick and no
network: it has no parameters, answers nothing, and cannot be evaluated.
"""
