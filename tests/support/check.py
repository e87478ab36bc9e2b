"""`make check`: judges a change in about two minutes. Lint, types, notebooks and package in step, and of the tests
those that touch what changed (by tests/touched.json, see touched.py), the fastest first, until a budget is spent.
`make test` runs the rest. It is a first answer: a test that is not selected may still fail.

    python check.py [--base REVISION] [--seconds BUDGET]"""
import argparse, ast, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
import sources
from paths import ROOT
from touched import Touched, read_map

SECONDS = 1050. # Of the selected tests, as recorded: with coverage, four workers on two cores and other work beside them; alone they take about a sixth of it
UNKNOWN = 3.   # Seconds of a test without a known duration
IN_STEP = "tests/unit/test_repository.py::test_export_clean_and_readme_are_in_step"
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]

@dataclass
class Change:
    "Tests by what changed (a function, a file), and files that no test is known for."
    groups: dict[str, set[str]] = field(default_factory=dict)
    untested: list[str] = field(default_factory=list)
    def tests(self) -> set[str]: return set().union(*self.groups.values())

# What changed

def git(root:Path, *args:str) -> str:
    return subprocess.run(["git", *args], cwd=root, check=True, capture_output=True, text=True).stdout

def exists(root:Path, *args:str) -> bool:
    return subprocess.run(["git", *args], cwd=root, capture_output=True).returncode == 0

def default_base(root:Path) -> str:
    for branch in ("origin/main", "main"):
        if exists(root, "rev-parse", "--verify", "-q", branch): return git(root, "merge-base", "HEAD", branch).strip()
    return "HEAD"

def changed_files(root:Path, base:str) -> list[str]:
    "Of the commits since `base` and of the tree, new files included."
    tracked = git(root, "diff", "--name-only", "--no-renames", base)
    return sorted({*tracked.splitlines(), *git(root, "ls-files", "--others", "--exclude-standard").splitlines()})

def text_at(root:Path, base:str, path:str) -> str: # Empty: there was none
    return git(root, "show", f"{base}:{path}") if exists(root, "cat-file", "-e", f"{base}:{path}") else ""

def outside(body:list[ast.stmt]) -> list[str]:
    "Code that is in no function: imports, constants, class bodies. What nbdev writes into `__all__` changes nothing."
    found = []
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
        if isinstance(node, ast.ClassDef):
            inside, node.body = node.body, []
            found += [ast.dump(node), *outside(inside)]
        elif not ast.unparse(node).startswith("__all__ = "): found.append(ast.dump(node))
    return found

def parts(source:str) -> dict[str, str]: # Function -> its code; "": what is outside of functions
    "Without comments, layout and the module's docstring."
    tree, found = ast.parse(source), {}
    for name, node in sources.functions(tree): found[name] = found.get(name, "") + ast.dump(node)
    found[""] = "\n".join(outside(tree.body[ast.get_docstring(tree) is not None:]))
    return found

def changed_functions(before:str, after:str) -> set[str]:
    "Of a module; all of them, and \"\", where code outside of functions changed."
    a, b = parts(before), parts(after)
    changed = {f for f in {*a, *b} if a.get(f) != b.get(f)}
    return {*a, *b} if "" in changed else changed

# Which tests that concerns

def tests_of(root:Path, touched:Touched, module:str, function:str) -> set[str]:
    "By the map; of a function that is not in it, its module's; of a module that is not in it, those that import it."
    if (known := touched.functions.get(f"{module}:{function}")) is not None: return known
    siblings = [ts for f, ts in touched.functions.items() if f.startswith(f"{module}:")]
    return set().union(*siblings) if siblings else importing(root, sources.modules(root).get(module, ""))

def importing(root:Path, path:str) -> set[str]: return in_files(root, sources.importers(root, path))

def in_files(root:Path, paths:set[str]) -> set[str]:
    return set().union(*(names for f, names in sources.tests(root).items() if f in paths))

def of_module(root:Path, base:str, path:str, touched:Touched) -> dict[str, set[str]]:
    module = sources.module_name(path)
    changed = changed_functions(text_at(root, base, path), sources.read(root, path))
    if not changed: return {}
    groups = {f"{module}:{f}": tests_of(root, touched, module, f) for f in changed}
    return groups | {f"new tests of {module}": importing(root, path) - set(touched.seconds)}

def of_file(root:Path, path:str) -> set[str]:
    "Tests of a changed file that is no module."
    if path in (tests := sources.tests(root)): return tests[path]
    if path.endswith("conftest.py") or path.startswith("tests/e2e/"): return set()
    name, top = Path(path).name, Path(path).parts[0]
    if path.startswith("tests/support/"):
        return in_files(root, sources.importers(root, path) | sources.naming(root, name))
    return in_files(root, sources.naming(root, path, name, *({top} - {path, "churn_nb", "tests", "nbs"})))

def change(root:Path, base:str, touched:Touched) -> Change:
    found, there = Change(), set().union(*sources.tests(root).values())
    for path in changed_files(root, base):
        if path in ("tests/touched.json", "churn_nb/_modidx.py"): continue
        if path.startswith("churn_nb/") and path.endswith(".py"): groups = of_module(root, base, path, touched)
        else: groups = {path: of_file(root, path)}
        if groups and not any(groups.values()): found.untested.append(path)
        found.groups |= {what: {t for t in ts if known_name(t, there)} - {IN_STEP} for what, ts in groups.items()}
    return found

def known_name(test:str, there:set[str]) -> bool: # The map may know tests that are gone, or were made by an object
    return test in there or "::".join(test.split("::")[:2]) in there

# Which of them fit into the budget

def choose(changed:Change, touched:Touched, budget:float) -> list[str]:
    "The fastest first; of every function or file that changed at least one. A fixture that several share is paid once."
    shared = {t: {f for f, (_, ts) in touched.fixtures.items() if t in ts} for t in changed.tests()}
    own = lambda t: touched.seconds.get(t, UNKNOWN)
    cost = lambda t, paid=frozenset(): own(t) + sum(touched.fixtures[f][0] for f in shared[t] - paid)
    order = lambda t: (cost(t), t)
    needed = {min(ts, key=order) for ts in changed.groups.values() if ts}
    chosen, paid, spent = [], set(), 0.
    for t in sorted(needed, key=order) + sorted(changed.tests() - needed, key=order):
        if t not in needed and spent + cost(t, paid) > budget: continue
        spent += cost(t, paid)
        paid |= shared[t]
        chosen.append(t)
    return chosen

def left_out(changed:Change, chosen:list[str], touched:Touched) -> str:
    seconds = {t: touched.seconds.get(t, UNKNOWN) for t in changed.tests() - set(chosen)}
    if not seconds: return f"== every test of the change fits into the budget: {len(chosen)}"
    longest = sorted(seconds, key=lambda t: (-seconds[t], t))[:5]
    rest = f"{len(seconds)} that take {sum(seconds.values()):.0f} s"
    said = f"== {len(chosen)} tests run; left out, for `make test`: {rest}. The longest:"
    return "\n".join([said, *(f"     {seconds[t]:6.1f} s  {t}" for t in longest)])

# Running

def run(part:str, command:list[str], shown:str) -> bool:
    "Whether it passed; a line about it, and where it failed all that it said."
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    passed = done.returncode == 0
    print(("" if passed else done.stdout) + f"== {part}: {'passed' if passed else 'FAILED'} "
          f"in {time.monotonic() - began:.0f} s: {shown}", flush=True)
    return passed

def place(test:str) -> tuple[str, int]:
    "Tests of a file run in the order in which they are written: some go on where the one before has ended."
    file, _, name = test.partition("::")
    return file, sources.read(ROOT, file).find(f"def {name.rpartition('::')[2]}(")

def in_order(chosen:list[str], touched:Touched) -> list[str]:
    "The longest file first, as a worker takes a whole one: what comes last should be short, or three workers wait for the fourth."
    cost = {}
    for t in chosen: cost[t.partition("::")[0]] = cost.get(t.partition("::")[0], 0.) + touched.seconds.get(t, UNKNOWN)
    for f, (seconds, users) in touched.fixtures.items():
        for file in {t.partition("::")[0] for t in users & {*chosen}}: cost[file] += seconds
    return sorted(chosen, key=lambda t: (-cost[t.partition("::")[0]], *place(t)))

def commands(files:list[str], chosen:list[str], tests_only:bool) -> list[tuple[str, list[str], str]]:
    others = any(f == "Dockerfile" or f.startswith(".github/") for f in files)
    lint = "lint" if others else "lint-python"
    found = [] if tests_only else [("lint and types", ["make", "--no-print-directory", lint], f"make {lint}"),
                                   ("in step", [*PYTEST, IN_STEP], "export, clean and README change nothing")]
    options = ["-n", "4", "--dist", "loadfile", "--no-loadscope-reorder",
               "--nbval", "--nbval-sanitize-with", "nbs/.nbval.cfg"]
    books = sum(t.endswith(".ipynb") for t in chosen)
    if chosen: found.append(("tests", [*PYTEST, *options, *chosen], f"{len(chosen) - books} tests, {books} notebooks"))
    return found

def main() -> int:
    ask = argparse.ArgumentParser()
    ask.add_argument("--base", default="")
    ask.add_argument("--seconds", type=float, default=SECONDS)
    ask.add_argument("--tests-only", action="store_true", help="for mutants.py")
    ask.add_argument("--without", nargs="*", default=[], help="tests that are not run, for mutants.py")
    given = ask.parse_args()
    base, touched = given.base or default_base(ROOT), read_map()
    changed, files = change(ROOT, base, touched), changed_files(ROOT, base)
    changed.groups = {what: ts - set(given.without) for what, ts in changed.groups.items()}
    chosen = choose(changed, touched, given.seconds)
    print(f"== check: {len(files)} files changed since {base[:12]}")
    for path in changed.untested: print(f"     no test is known for {path}")
    if files: print(left_out(changed, chosen, touched), flush=True)
    with ThreadPoolExecutor() as pool:
        passed = list(pool.map(lambda c: run(*c), commands(files, in_order(chosen, touched), given.tests_only)))
    return int(not all(passed))

if __name__ == "__main__": sys.exit(main())
