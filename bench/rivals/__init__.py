"""What fastperm is measured against: each rival small, and as a good user of its framework would write it.

Every class here, and `contenders.Ours`, has ``n_parameters``, ``batch(x, targets)`` (a batch as the rival takes it),
``step(*batch) -> loss`` (what is timed: forward, mean squared error, backward, Adam) and ``evaluate(*batch) ->
(prediction, loss, gradients)``, by which ``tests/test_rivals.py`` proves that all of them compute the same thing.
"""
