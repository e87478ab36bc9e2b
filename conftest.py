"""What pytest is told about notebooks: `nbdev-clean` removes execution counts, and nbval takes a cell with outputs but no count for one that was never run; and
pictures are compared, too. Tests get their markers by what they use. Where several workers run, a process with the slow imports done serves them (tests/support/warm.py)."""
import functools, json, os, sys
from pathlib import Path

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT/"tests"/"support"))
os.environ.setdefault("OMP_WAIT_POLICY", "passive") # several workers share the cores: a thread that waits for others sleeps; an eighth less processor time, no other results
import nbval.kernel, nbval.plugin, pytest # noqa: E402
import churn_nb # noqa: E402, F401 # telemetry is off before anything else is imported
import warm_process # noqa: E402
import sources # noqa: E402
from compared import comparing_pictures # noqa: E402

pytest_plugins = ["touched"] if "RECORD_TOUCHED" in os.environ else [] # records which test executes what

SERVICES = {"valkey", "redis_store", "own_valkey", "postgres", "registries", "triton_here", "s3"} # fixtures that start one
SLOW_SECONDS = 5

def twice(start):
    "Jupyter chooses ports that are free, and before the kernel has them another process may: then it is started once more."
    @functools.wraps(start)
    def again(*args, **kw):
        try: return start(*args, **kw)
        except RuntimeError: return start(*args, **kw)
    return again

def pytest_configure(config):
    nbval.kernel.start_new_kernel = twice(nbval.kernel.start_new_kernel)
    nbval.plugin.setup_coverage = nbval.plugin.teardown_coverage = lambda *args, **kw: None # its code for kernels hangs with coverage 7
    if getattr(config.option, "numprocesses", None) and config.option.markexpr != "fast" and config.args != ["tests/e2e"]:
        warm_process.start(config)
        warm_process.fork_workers(config)

def pytest_unconfigure(config): warm_process.stop(config)

def prepare_cell(item):
    "A cell of a notebook, as nbval must see it."
    if item.cell.get("execution_count", 0) is None: item.cell["execution_count"] = 0
    item.compare_outputs = comparing_pictures(item)

def mark(item, seconds:float):
    "Markers by what a test uses, where it lies and how long it took."
    if item.get_closest_marker("fast"): return
    used, path = set(getattr(item, "fixturenames", ())), item.path.relative_to(ROOT).parts
    marks = [name for name, holds in (("service", used & SERVICES), ("browser", "chromium" in used), ("root", path[:2] == ("tests", "e2e")), ("slow", seconds > SLOW_SECONDS)) if holds]
    for name in marks or ["fast"]*(path[:2] == ("tests", "unit")): item.add_marker(name)

def missed_notebooks(config, items) -> list[str]:
    "Where the whole of nbs is asked for: notebooks with code of which no cell was collected."
    asked = {(config.invocation_params.dir/a).resolve() for a in config.args}
    if not config.option.nbval or not asked & {ROOT, ROOT/"nbs"}: return []
    collected = {str(item.path.relative_to(ROOT)) for item in items if hasattr(item, "cell")}
    with_code = {nb for nb in sources.notebook_files(ROOT) if any(c["cell_type"] == "code" for c in json.loads((ROOT/nb).read_text())["cells"])}
    return sorted(with_code - collected)

def pytest_collection_modifyitems(config, items):
    "Files in the order of their length, longest first: with `--dist loadfile` no long one is left for the end."
    if missed := missed_notebooks(config, items): raise pytest.UsageError(f"notebooks that were not collected: {', '.join(missed)}")
    from touched import read_map # here: while it records, it is a plugin, which is imported by pytest
    known, shared, length = read_map(), {}, {}
    file = lambda item: item.nodeid.partition("::")[0]
    name = lambda item: item.nodeid.partition("[")[0] if not hasattr(item, "cell") else file(item)
    for seconds, tests in known.fixtures.values():
        for test in tests: shared[test] = shared.get(test, 0.) + seconds
        for f in {test.partition("::")[0] for test in tests}: length[f] = length.get(f, 0.) + seconds
    for item in items:
        if hasattr(item, "cell"): prepare_cell(item)
        else: mark(item, known.seconds.get(name(item), 0.) + shared.get(name(item), 0.))
    for n in sorted({name(item) for item in items}): length[n.partition("::")[0]] = length.get(n.partition("::")[0], 0.) + known.seconds.get(n, 1.)
    items.sort(key=lambda item: (-round(length[file(item)]), file(item))) # the same order in every worker
