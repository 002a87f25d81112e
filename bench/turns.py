"""One half of a contender's turn: the task once, or as often as fills a while."""

import time

# Threads that have just woken may share a core for some milliseconds; a task that is shorter says little done once.
SECONDS = 0.05


def half_turn(function, seconds=SECONDS):
    """Call ``function`` once, and again until so many seconds have passed; return how long one call took."""
    calls = 0
    start = now = time.perf_counter()
    while calls == 0 or now - start < seconds:
        function()
        calls += 1
        now = time.perf_counter()
    return (now - start) / calls
