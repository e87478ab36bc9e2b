"""What pytest is told about notebooks: `nbdev-clean` removes execution counts, and nbval takes a cell with outputs but no count for one that was never run; and
pictures are compared, too. Where several workers run, a process with the slow imports done serves them (tests/support/warm.py)."""
import os, sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent/"tests"/"support"))
import nbval.plugin # noqa: E402
import churn_nb # noqa: E402, F401 # telemetry is off before anything else is imported
import warm_process # noqa: E402
from compared import comparing_pictures # noqa: E402

pytest_plugins = ["touched"] if "RECORD_TOUCHED" in os.environ else [] # records which test executes what

def pytest_configure(config):
    nbval.plugin.setup_coverage = nbval.plugin.teardown_coverage = lambda *args, **kw: None # its code for kernels hangs with coverage 7
    if getattr(config.option, "numprocesses", None): warm_process.start(config)

def pytest_unconfigure(config): warm_process.stop(config)

def pytest_collection_modifyitems(items):
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None: continue
        if cell.get("execution_count", 0) is None: cell["execution_count"] = 0
        item.compare_outputs = comparing_pictures(item)
