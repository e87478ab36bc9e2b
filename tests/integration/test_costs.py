"""What hot functions cost, counted (see counts.py) and not timed, so that a slow machine fails nothing and a slow change does. Bounds are half as much again as
was counted on Python 3.11; whoever makes one faster lowers its bound."""
import json
import os
import subprocess
import sys

import pytest
from deadlines import allow
from paths import SUPPORT as HERE

def count(name):
    r = subprocess.run([sys.executable, HERE/"counts.py", name], capture_output=True, text=True, timeout=allow(300), cwd=HERE, env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(HERE)})
    assert r.returncode == 0, r.stderr[-3000:]
    return json.loads(r.stdout.splitlines()[-1])

@pytest.mark.parametrize("name, most", [("predict", 3000), ("batch", 780), ("drift", [34_000, 1.75]), ("scoring", [20_000, .01]), ("features", [40, 7]), ("lookups", 2)])
def test_costs_no_more_than_it_did(name, most):
    found = count(name)
    assert all(x <= y for x, y in zip(*(v if isinstance(v, list) else [v] for v in (found, most)), strict=True)), (found, most)

def test_counting_detects_work_done_twice(): assert 1.9 < count("twice") < 2.1
