"""How long a test waits before it calls something broken: the one place. A deadline is written for a quiet machine and stretched by how much slower this one is
just now, which is measured by a fixed piece of Python when a test process starts. No test asserts that something is fast; a deadline only ends a wait for what never comes."""
import time

REFERENCE_SECONDS = .06 # of `_work` on a quiet machine of 2024

def _work():
    total = 0
    for i in range(600_000): total += i*i % 7
    return total

def _slowness() -> float:
    "This machine's time for the work over the reference; the worst of three, as load comes and goes."
    took = []
    for _ in range(3):
        began = time.perf_counter()
        _work()
        took.append(time.perf_counter() - began)
    return max(1., max(took)/REFERENCE_SECONDS)

SLOWNESS = _slowness()

def allow(quiet:float) -> float:
    "A deadline of so many seconds on a quiet machine."
    return quiet*SLOWNESS
