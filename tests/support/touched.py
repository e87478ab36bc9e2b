"""Which test executes which function of churn_nb: recorded by a full run, kept in tests/touched.json, read by check.py.

    RECORD_TOUCHED=FILE pytest --cov ...   as a plugin: durations and fixtures go to FILE; coverage.py records lines,
                                           each with its context, which is the test that executed it
    python touched.py FILE                 afterwards: both become tests/touched.json

A test is named without its parameters, a notebook is one test. What a fixture of wider scope executes, once, belongs
to every test that uses it. Processes that a test starts are measured by COVERAGE_PROCESS_START, and COVERAGE_TEST tells
them their context (pyproject.toml)."""
import ast, functools, inspect, itertools, json, os, sqlite3, sys, time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
import coverage, pytest
import sources
from paths import ROOT

MAP = ROOT/"tests"/"touched.json"
RECORD = {"seconds": defaultdict(float), "fixtures": defaultdict(dict)} # Of tests; test -> fixture -> worker -> seconds

# Recording

def test_name(nodeid:str) -> str:
    path, _, rest = nodeid.partition("::")
    return path if path.endswith(".ipynb") else f"{path}::{rest.partition('[')[0]}"

def switch(name:str) -> str: # The name before
    "What this process and those that it starts execute from here on is executed for `name`."
    before = os.environ.get("COVERAGE_TEST", "")
    os.environ |= {"COVERAGE_TEST": name, "COVERAGE_PROCESS_START": str(ROOT/"pyproject.toml"),
                   "COVERAGE_FILE": str(ROOT/".coverage")}
    coverage.Coverage.current().switch_context(name)
    return before

def is_shared(fixturedef) -> bool: # By several tests, and not a plugin's
    return fixturedef.scope != "function" and bool(fixturedef.baseid)

def fixture_name(fixturedef) -> str: return f"fixture {fixturedef.baseid}::{fixturedef.argname}"

def shared_fixtures(item) -> set[str]:
    definitions = item._fixtureinfo.name2fixturedefs.values() if hasattr(item, "_fixtureinfo") else () # a cell has none
    return {fixture_name(d) for d in itertools.chain.from_iterable(definitions) if is_shared(d)}

def forget_caches():
    "What is cached for the process would be executed for its first test only."
    for name, module in list(sys.modules.items()):
        for f in vars(module).values() if name.startswith("churn_nb") else ():
            if hasattr(f, "cache_clear"): f.cache_clear()

def executed_for(name:str, f):
    "A fixture may give a function that makes something at its first call: that belongs to all who use the fixture."
    @functools.wraps(f)
    def call(*args, **kw):
        before = switch(name)
        try: return f(*args, **kw)
        finally: switch(before)
    return call

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    item.touched = dict.fromkeys(shared_fixtures(item), 0.) # -> seconds of set-up
    item.user_properties.append(("fixtures", item.touched)) # travels from worker to controller with each report
    switch(test_name(item.nodeid))
    forget_caches()
    return (yield)

@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    if not is_shared(fixturedef): return (yield)
    name, began = fixture_name(fixturedef), time.perf_counter()
    before = switch(name)
    try: value = yield
    finally:
        switch(before)
        request._pyfuncitem.touched[name] = time.perf_counter() - began
    if inspect.isfunction(value):
        value = executed_for(name, value)
        fixturedef.cached_result = (value, *fixturedef.cached_result[1:])
    return value

def pytest_runtest_logreport(report):
    "Durations of a test's items, and apart from them those of its shared fixtures."
    name = test_name(report.nodeid)
    RECORD["seconds"][name] += report.duration
    if report.when != "teardown": return
    for fixture, seconds in dict(report.user_properties).get("fixtures", {}).items():
        took, worker = RECORD["fixtures"][name].setdefault(fixture, {}), getattr(report, "worker_id", "")
        took[worker] = took.get(worker, 0.) + seconds
        RECORD["seconds"][name] -= seconds

def pytest_configure():
    from nbval.kernel import RunningKernel
    RunningKernel.stop, os._exit = end_kernel, functools.partial(save_and_leave, os._exit)

def end_kernel(kernel):
    "nbval kills a kernel, and what coverage measured in it would be lost: it is asked to end."
    kernel.kc.stop_channels()
    kernel.km.shutdown_wait_time = 60.
    kernel.km.shutdown_kernel(now=False)
    del kernel.km

def save_and_leave(leave, code):
    "A process that a test forks ends by `os._exit`, which saves nothing."
    if measuring := coverage.Coverage.current(): measuring.save()
    leave(code)

def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"): Path(os.environ["RECORD_TOUCHED"]).write_text(json.dumps(RECORD))

# From what was recorded to functions and tests

def owners(source:str) -> dict[int, str]: # Number that coverage records -> function
    """A line that is executed has its own number. Lines of a header (decorators, defaults) are executed at import, and
    don't count; but each call has a number as well, that of the called code's first line, negative."""
    owner = {}
    for name, f in sources.functions(ast.parse(source)):
        inside = [x for x in (*f.decorator_list, *ast.walk(f.args), f.returns) if hasattr(x, "lineno")]
        header = {f.lineno}.union(*(range(x.lineno, x.end_lineno + 1) for x in inside))
        owner |= {-n: name for n in range(min(header), f.end_lineno + 1)}
        owner |= {n: name for n in range(f.body[0].lineno, f.end_lineno + 1) if n not in header}
    return owner

def executed(data:Path, root:Path) -> dict[str, set[str]]: # Function -> contexts
    "From coverage's database, the schema of which is in its documentation."
    with closing(sqlite3.connect(data)) as db:
        rows = db.execute("SELECT DISTINCT path, context, fromno FROM arc "
                          "JOIN file ON file.id = file_id JOIN context ON context.id = context_id").fetchall()
    modules = sources.modules(root).items()
    owner = {str(root/path): (module, owners(sources.read(root, path))) for module, path in modules}
    found = defaultdict(set)
    for path, context, number in rows:
        module, owned = owner.get(path, ("", {}))
        if number in owned: found[f"{module}:{owned[number]}"].add(context)
    return found

def add_rules(found:dict[str, set[str]], root:Path):
    """What no line shows, as a kernel defines the functions of its notebook itself: a notebook touches every function
    of its module, and a test that runs notebooks by papermill those of the pipeline's steps, which have parameters."""
    trees = {module: ast.parse(sources.read(root, f)) for module, f in sources.modules(root).items()}
    code = {module: dict(sources.functions(tree)) for module, tree in trees.items()}
    runners = [f"{m}:{f}" for m in code for f, node in code[m].items() if ".execute_notebook(" in ast.unparse(node)]
    running = set().union(*(found.get(f, set()) for f in runners))
    for module, nb in sources.notebooks(root).items():
        more = {nb} | (running if '"parameters"' in sources.read(root, nb) else set())
        for f in code.get(module, ()): found.setdefault(f"{module}:{f}", set()).update(more)

def by_test(found:dict[str, set[str]], uses:dict[str, set[str]]) -> dict[str, set[str]]: # Function -> tests
    """A context is a test, a fixture (`uses`: of which tests), or empty while modules are imported: what runs then is
    touched by every test that touches its module."""
    users, of_module = defaultdict(set), defaultdict(set)
    for test, fixtures in uses.items():
        for context in {test, *fixtures}: users[context].add(test)
    tests = {f: set().union(*(users[c] for c in contexts)) for f, contexts in found.items()}
    for f, ts in tests.items(): of_module[f.partition(":")[0]] |= ts
    return {f: of_module[f.partition(":")[0]] if "" in found[f] else ts for f, ts in tests.items()}

# The file: a line a test, a shared fixture, a function

@dataclass
class Touched:
    seconds: dict[str, float] = field(default_factory=dict)                    # Of a test, without shared fixtures
    fixtures: dict[str, tuple[float, set[str]]] = field(default_factory=dict)  # Seconds, tests
    functions: dict[str, set[str]] = field(default_factory=dict)               # Tests

def ranges(numbers) -> str: # {0, 1, 2, 7} -> "0-2,7"
    runs = [[n for _, n in run] for _, run in itertools.groupby(enumerate(sorted(numbers)), lambda x: x[1] - x[0])]
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else f"{r[0]}" for r in runs)

def numbers(text:str) -> set[int]:
    bounds = [part.partition("-") for part in text.split(",") if part]
    return {n for low, _, high in bounds for n in range(int(low), int(high or low) + 1)}

def write_map(t:Touched, path:Path=MAP):
    place = {test: i for i, test in enumerate(sorted(t.seconds))}
    some = lambda tests: ranges(place[test] for test in tests if test in place)
    sections = {"tests": {test: round(max(t.seconds[test], 0.), 1) for test in place},
                "fixtures": {f: [round(s, 1), some(ts)] for f, (s, ts) in sorted(t.fixtures.items()) if s >= .05},
                "functions": {f: some(ts) for f, ts in sorted(t.functions.items()) if ts}}
    lines = lambda d: ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in d.items())
    path.write_text("{" + ",".join(f'\n"{name}": {{\n{lines(d)}\n}}' for name, d in sections.items()) + "\n}\n")

def read_map(path:Path=MAP) -> Touched:
    if not path.exists(): return Touched()
    m = json.loads(path.read_text())
    tests = list(m["tests"])
    some = lambda text: {tests[n] for n in numbers(text)}
    return Touched(m["tests"], {f: (s, some(ts)) for f, (s, ts) in m["fixtures"].items()},
                   {f: some(ts) for f, ts in m["functions"].items()})

def main(record:str):
    r = json.loads(Path(record).read_text())
    uses = {test: set(r["fixtures"].get(test, ())) for test in r["seconds"]}
    took = defaultdict(lambda: defaultdict(float)) # fixture -> worker -> seconds
    for fixture, workers in itertools.chain.from_iterable(fs.items() for fs in r["fixtures"].values()):
        for worker, seconds in workers.items(): took[fixture][worker] += seconds
    fixtures = {f: (max(s.values()), {test for test in uses if f in uses[test]}) for f, s in took.items()}
    found = executed(ROOT/".coverage", ROOT)
    add_rules(found, ROOT)
    write_map(t := Touched(r["seconds"], fixtures, by_test(found, uses)))
    print(f"== {MAP.relative_to(ROOT)}: {len(t.seconds)} tests, {len(t.functions)} functions")

if __name__ == "__main__": main(sys.argv[1])
