"What `make check` selects: on a small tree with a map made up for it."
import ast, json, re, subprocess
import coverage, pytest
from hypothesis import given, strategies as st
import check, sources, touched
from check import changed_functions, choose, left_out
from paths import ROOT
from touched import Touched, numbers, owners, ranges, read_map, test_name as name_of, write_map

# --- the map ---

@given(st.sets(st.integers(0, 60)))
def test_ranges_round_trip(some): assert numbers(ranges(some)) == some

def test_ranges_are_short(): assert ranges({0, 1, 2, 3, 7, 9, 10}) == "0-3,7,9-10" and ranges(()) == ""

def test_the_map_is_read_as_it_was_written(tmp_path):
    t = Touched({"t.py::b": .26, "t.py::a": 2., "n.ipynb": 0.},
                {"fixture tests::server": (3.04, {"t.py::a", "t.py::b"})},
                {"m:f": {"t.py::a", "n.ipynb"}, "m:C.g": {"t.py::b"}, "m:never": set()})
    write_map(t, file := tmp_path/"touched.json")
    assert read_map(file) == Touched({"n.ipynb": 0., "t.py::a": 2., "t.py::b": .3},
                                     {"fixture tests::server": (3., {"t.py::a", "t.py::b"})},
                                     {"m:f": {"t.py::a", "n.ipynb"}, "m:C.g": {"t.py::b"}})
    assert '\n"m:f": "0-1"\n' in file.read_text() # a line each
    assert read_map(tmp_path/"none") == Touched()

@pytest.mark.parametrize("nodeid, name", [
    ("tests/test_x.py::test_y[a::b[0]]", "tests/test_x.py::test_y"),
    ("tests/test_x.py::TestZ::test_y", "tests/test_x.py::TestZ::test_y"),
    ("nbs/01_train.ipynb::Cell 3", "nbs/01_train.ipynb")])
def test_a_test_has_no_parameters_and_a_notebook_no_cells(nodeid, name): assert name_of(nodeid) == name

def test_a_header_is_executed_at_import_and_only_a_call_counts():
    owner = owners("import os\n@os.x\ndef f(a,\n      b=os.y):\n    def g(): return a\n    return g\n"
                   "class C:\n    def h(self): return 1\n")
    assert {n: name for n, name in owner.items() if n > 0} == {5: "f", 6: "f"}
    assert owner[-2] == owner[-5] == "f" and owner[-8] == "C.h" and -7 not in owner

def test_coverage_gives_a_function_the_contexts_that_call_it(tmp_path):
    (tmp_path/"churn_nb").mkdir()
    file, space = tmp_path/"churn_nb"/"m.py", {}
    file.write_text('"Doc."\ndef one(x): return x\ndef two(x):\n    return one(x)\n'
                    'def three(x):\n    return x\nthree(1)\n')
    data = str(tmp_path/"data")
    measuring = coverage.Coverage(data_file=data, branch=True, include=[f"{tmp_path}/*"], config_file=False)
    with measuring.collect():
        exec(compile(file.read_text(), str(file), "exec"), space)
        measuring.switch_context("a")
        space["two"](1)
        measuring.switch_context("b")
        space["one"](1)
    measuring.save()
    assert touched.executed(tmp_path/"data", tmp_path) == {"m:one": {"a", "b"}, "m:two": {"a"}, "m:three": {""}}

def test_fixtures_belong_to_their_users_and_imports_to_the_module():
    found = {"m:f": {"fixture x"}, "m:g": {"t1", ""}, "m:h": {"t3"}}
    uses = {"t1": set(), "t2": {"fixture x"}, "t3": set()}
    assert touched.by_test(found, uses) == {"m:f": {"t2"}, "m:g": {"t1", "t2", "t3"}, "m:h": {"t3"}}

# --- what changed ---

SOURCE = '''"A module."
import os
__all__ = ["f"]
LIMIT = 3

@os.decorated
def f(x, y=1):
    "Doc."
    return x + y # sum

class C:
    size = 1
    def g(self): return LIMIT
'''
EVERYTHING = {"", "f", "C.g"}

@pytest.mark.parametrize("old, new, changed", [
    ("# sum", "# a sum", set()), ("x + y", "(x +\n            y)", set()), ('"A module."', '"Another."', set()),
    ('["f"]', '["f", "C"]', set()), ("x + y", "x - y", {"f"}), ("y=1", "y=2", {"f"}),
    ("os.decorated", "os.other", {"f"}), ("return LIMIT", "return 4", {"C.g"}),
    ("LIMIT = 3", "LIMIT = 4", EVERYTHING), ("size = 1", "size = 2", EVERYTHING),
    ("import os", "import os, re", EVERYTHING), ("class C:", "class C(int):", EVERYTHING),
    ("class C:", "def new(): pass\n\nclass C:", {"new"}), ("def g(self)", "def h(self)", {"C.g", "C.h"})])
def test_changed_functions(old, new, changed):
    assert SOURCE.count(old) == 1 and changed_functions(SOURCE, SOURCE.replace(old, new)) == changed

def test_a_new_and_a_deleted_module_change_in_all():
    assert changed_functions("", SOURCE) == changed_functions(SOURCE, "") == EVERYTHING

# --- which tests that concerns ---

A, B, N, NB = "tests/unit/test_a.py", "tests/unit/test_b.py", "tests/unit/test_n.py", "nbs/01_a.ipynb"
OF_A = {f"{A}::test_f", f"{A}::test_both", f"{A}::test_slow"}
CELLS = [{"cell_type": "code", "source": [s]} for s in ("#| default_exp a\n", "%magic\n")]
TREE = {
    "churn_nb/__init__.py": "",
    "churn_nb/a.py": "def f(): return 1\ndef g(): return 2\n",
    "churn_nb/new.py": "def n(): return 1\n",
    "churn_nb/sub/__init__.py": "",
    "churn_nb/sub/b.py": "from ..a import f\ndef h(): return f()\n",
    A: "from churn_nb.a import f\nfrom helper import help\n"
       "def test_f(): assert f()\ndef test_both(): pass\ndef test_slow(): pass\n",
    B: "def test_b():\n    from churn_nb.sub import b\n    assert b.h() and ROOT/'Dockerfile'\ndef test_new(): pass\n",
    N: "from churn_nb import new\ndef test_n(): assert new.n()\n",
    "tests/e2e/test_e.py": "def test_e(): 'Dockerfile'\n",
    "tests/support/helper.py": "import deeper\nhelp = 1\n",
    "tests/support/deeper.py": "",
    "tests/conftest.py": "",
    "Dockerfile": "FROM x\n",
    "k8s/base.yaml": "a: 1\n",
    NB: json.dumps({"cells": CELLS})}
KNOWN = Touched(
    {NB: 8., f"{A}::test_f": .5, f"{A}::test_both": 1., f"{A}::test_slow": 70., f"{B}::test_b": 2.,
     f"{A}::test_gone": 0.},
    {},
    {"a:f": {NB, f"{A}::test_f", f"{A}::test_both", f"{A}::test_gone", f"{B}::test_b"},
     "a:g": {NB, f"{A}::test_both", f"{A}::test_slow"},
     "sub.b:h": {f"{B}::test_b"}})

@pytest.fixture
def selected(tmp_path):
    "Write files over the committed tree; what `check.change` selects, by what changed."
    def git(*args):
        git = ["git", "-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run([*git, *args], cwd=tmp_path, check=True, capture_output=True)
    def write(files):
        for f, text in files.items():
            (tmp_path/f).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path/f).write_text(text)
    write(TREE)
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "base")
    def select(files):
        write(files)
        return check.change(tmp_path, check.default_base(tmp_path), KNOWN)
    return select

def test_nothing_changed(selected): assert selected({}) == check.Change({}, [])

def test_a_function_has_the_tests_of_the_map_and_no_test_that_is_gone(selected):
    c = selected({"churn_nb/a.py": "def f(): return 3\ndef g(): return 2\n"})
    assert c.groups["a:f"] == {NB, f"{A}::test_f", f"{A}::test_both", f"{B}::test_b"} and "a:g" not in c.groups
    assert c.groups["new tests of a"] == {f"{B}::test_new"} # not in the map; its file imports the module through sub.b

def test_an_unknown_function_has_the_tests_of_its_module(selected):
    c = selected({"churn_nb/a.py": TREE["churn_nb/a.py"] + "def unknown(): pass\n"})
    assert c.groups["a:unknown"] == {NB, f"{B}::test_b"} | OF_A

def test_an_unknown_module_has_the_tests_that_import_it(selected):
    assert selected({"churn_nb/new.py": "def n(): return 2\n"}).tests() == {f"{N}::test_n"}

def test_layout_alone_selects_nothing(selected):
    assert selected({"churn_nb/a.py": "# same\n" + TREE["churn_nb/a.py"]}).tests() == set()

@pytest.mark.parametrize("file, text, tests", [
    (A, "def test_other(): pass\n", {f"{A}::test_other"}),
    ("tests/test_new.py", "class TestX:\n    def test_y(self): pass\n", {"tests/test_new.py::TestX::test_y"}),
    (NB, '{"cells": []}', {NB}),
    ("tests/support/deeper.py", "x = 1", OF_A),
    ("Dockerfile", "FROM y\n", {f"{B}::test_b", f"{B}::test_new"}),
    ("tests/conftest.py", "x = 1", set()), ("k8s/base.yaml", "a: 2", set()), ("tests/e2e/test_e.py", "", set())])
def test_other_files(selected, file, text, tests):
    c = selected({file: text})
    assert c.tests() == tests and c.untested == ([] if tests else [file])

# --- the budget ---

F, F_AND_G = check.Change({"a:f": OF_A}), check.Change({"a:f": OF_A, "a:g": {f"{A}::test_slow"}})

def test_the_fastest_come_first_and_every_function_keeps_a_test():
    assert choose(F, KNOWN, 1.6) == [f"{A}::test_f", f"{A}::test_both"]
    assert choose(F, KNOWN, 0.) == [f"{A}::test_f"]
    assert choose(F_AND_G, KNOWN, 0.) == [f"{A}::test_f", f"{A}::test_slow"]

def test_what_is_left_out_is_named():
    said = left_out(F, choose(F, KNOWN, 1.6), KNOWN)
    assert "2 tests run" in said and "1 that take 70 s" in said and f"{A}::test_slow" in said
    assert "every test" in left_out(F, choose(F, KNOWN, 100.), KNOWN)

def test_a_shared_fixture_is_paid_once():
    t = Touched({"x": 1., "y": 1., "z": 9.}, {"fixture s": (10., {"x", "y"})}, {})
    assert choose(check.Change({"m:f": {"x", "y", "z"}}), t, 12.) == ["z"]
    assert choose(check.Change({"m:f": {"x", "y"}}), t, 12.) == ["x", "y"]

def test_linters_of_images_and_workflows_run_where_these_changed():
    lint = lambda files: check.commands(files, [], False)[0][1][-1]
    assert lint(["churn_nb/a.py"]) == "lint-python"
    assert lint(["Dockerfile"]) == lint([".github/workflows/ci.yaml"]) == "lint"

def test_modules_of_the_package_are_found_in_subpackages(tmp_path):
    (tmp_path/"churn_nb"/"sub").mkdir(parents=True)
    (tmp_path/"churn_nb"/"sub"/"b.py").write_text("")
    assert sources.modules(tmp_path) == {"sub.b": "churn_nb/sub/b.py"}

def test_the_recorded_map_is_of_this_tree():
    "A map of another tree would select little, in silence."
    t, there = read_map(), set().union(*sources.tests(ROOT).values())
    have = {f"{m}:{f}" for m, path in sources.modules(ROOT).items() for f, _ in sources.functions(ast.parse(sources.read(ROOT, path)))}
    gone, new = [x for x in t.seconds if not check.known_name(x, there)], have - set(t.functions)
    assert len(gone) <= .1*len(t.seconds) and len(new) <= .15*len(have), f"run `make touched`: {len(gone)} recorded tests are gone, {len(new)} of {len(have)} functions are not recorded"

def test_of_the_tests_that_touch_a_function_nearly_all_are_chosen():
    "By the recorded map and the budget as it is: 95 % on average over all functions, and never none."
    t, shares = read_map(), {}
    for function, tests in t.functions.items():
        if touching := tests - {check.IN_STEP}: shares[function] = len(choose(check.Change({function: touching}), t, check.SECONDS))/len(touching)
    assert len(shares) > 1000 and min(shares.values()) > 0
    assert sum(shares.values())/len(shares) >= .95, f"calibrate SECONDS of check.py: {sorted(shares.items(), key=lambda x: x[1])[:5]}"

def test_the_longest_file_runs_first_in_its_own_order():
    names = re.findall(r"^def (test_\w+)", (ROOT/"tests/integration/test_pipeline.py").read_text(), re.M)
    book, tests = "nbs/01_train.ipynb", [f"tests/integration/test_pipeline.py::{n}" for n in names]
    assert len(tests) > 10 and check.in_order([*tests[::-1], book], Touched({book: 900.})) == [book, *tests]
    made = Touched({book: 9.} | dict.fromkeys(tests, .1), {"fixture ran": (90., {tests[0], tests[3]})})
    assert check.in_order([book, *tests[::-1]], made) == [*tests, book]
    assert check.commands([], [*tests, book], True)[-1][1][-len(tests) - 1:] == [*tests, book]
