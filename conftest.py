"What nbval is told about the notebooks: `nbdev-clean` removes execution counts, and nbval takes a cell with outputs but no count for one that was never run; and pictures are compared, too."
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent/"tests"))
from compared import comparing_pictures # noqa: E402

def pytest_collection_modifyitems(items):
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is None: continue
        if cell.get("execution_count", 0) is None: cell["execution_count"] = 0
        item.compare_outputs = comparing_pictures(item)
