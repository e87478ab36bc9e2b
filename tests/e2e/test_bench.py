"Every measurement runs, small and once: not how fast, but that it measures, compares results with its peers and writes its report."
import json
import shutil
import subprocess
import sys

import pytest
from deadlines import allow
from paths import ROOT

WRITES = {"quantize": "quantize.md", "drift": "drift.md", "features": "features.md", "score": "score.md", "batching": "batching.md", "serve": "serve.md", "pipeline": "pipeline.md", "capacity": "CAPACITY.md"}

@pytest.mark.parametrize("what", WRITES)
def test_quick(what, tmp_path):
    if what in ("serve", "capacity") and not shutil.which("wrk"): pytest.skip("wrk is not installed: serving is not measured")
    r = subprocess.run([sys.executable, ROOT/"bench"/f"{what}.py", "--quick", "--out", tmp_path], capture_output=True, text=True, timeout=allow(600))
    assert r.returncode == 0, r.stdout[-1000:] + r.stderr[-3000:]
    found, text = json.loads((tmp_path/f"{what}.json").read_text()), (tmp_path/WRITES[what]).read_text()
    assert found["command"] if what != "features" else {"engines", "growth", "dates", "join", "online"} <= found.keys()
    assert text.startswith("<!-- made by") and "| --- |" in text and "nan" not in text

def test_the_report_is_that_of_the_measurements(tmp_path):
    "RESULTS.md in the repository is what results.py writes of the measurements beside it."
    shutil.copytree(ROOT/"bench", tmp_path/"bench", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, tmp_path/"bench"/"results.py"], check=True, capture_output=True)
    assert (tmp_path/"bench"/"RESULTS.md").read_text() == (ROOT/"bench"/"RESULTS.md").read_text()
