"nbval: `nbdev-clean` removes execution counts, and nbval takes a cell with outputs but no count for one that was never run."

def pytest_collection_modifyitems(items):
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is not None and cell.get("execution_count", 0) is None: cell["execution_count"] = 0
