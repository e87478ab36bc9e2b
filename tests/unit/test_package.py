"""`churn_nb/__init__.py`, the one module that no notebook writes: what users import from the top, and when."""
import ast, subprocess, sys
from pathlib import Path
import pytest
import churn_nb

PACKAGE = Path(churn_nb.__file__).parent
TREES = {str(f.relative_to(PACKAGE)): ast.parse(f.read_text()) for f in sorted(PACKAGE.rglob("*.py")) if f.name != "_modidx.py"}

@pytest.mark.parametrize("name", churn_nb.__all__)
def test_every_name_of_the_top_is_there(name):
    assert getattr(churn_nb, name) is not None and name in dir(churn_nb)

def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(churn_nb.__file__).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    typed = {n.names[0].asname: n.module for n in block.body}
    assert typed == churn_nb._PLACES and all(n.level == 1 and n.names[0].name == n.names[0].asname for n in block.body)

def test_a_name_comes_from_the_module_that_defines_it():
    for name, module in churn_nb._PLACES.items(): assert getattr(churn_nb, name).__module__ == f"churn_nb.{module}", name

def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'churn_nb' has no attribute 'forecast'"): getattr(churn_nb, "forecast") # noqa: B009

def test_importing_the_package_imports_nothing_else():
    "Not even numpy: what a name needs is imported when the name is used."
    shown = subprocess.run([sys.executable, "-c", "import sys; before = set(sys.modules); import churn_nb; print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"],
                           capture_output=True, text=True, check=True).stdout.split()
    assert set(shown) <= {"churn_nb", *sys.stdlib_module_names}, shown

# Every public name

def definitions():
    "Module, name and node of every public function and class."
    for file, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"): yield file, node.name, node

def test_every_public_name_has_a_docstring():
    assert [f"{file}: {name}" for file, name, node in definitions() if not ast.get_docstring(node)] == []

# What the package itself doesn't use, and who does: anything else belongs to the lesson that shows it, or to churn_nb/teaching.
FOR_OTHERS = {
    "repository_file": "tests and lessons: where the files of the repository are",
    "step_settings": "the steps' notebooks: settings with their parameters", "customers_to_use": "the steps' notebooks: their parameter `customers`",
    "same_age_today": "the step 03_drift", "can_retrain": "the step 50_retraining",
    "evaluate_and_promote": "programs of others: metrics in, stage out", "register_source": "programs of others: a kind of source of their own",
    "profit": "programs of others: a metric", "replay_plot": "programs of others: a picture of what `churn replay` prints", "profit_curve": "programs of others: a metric", "ks": "programs of others: a test of one column", "permutation_pvalues": "programs of others: a test of several columns",
    "log_likelihood": "programs of others: how well a BG/NBD model fits",
    "read_shadow": "programs of others: a challenger in shadow mode, judged", "with_labels": "as read_shadow", "judge_live": "as read_shadow",
    "control_group_sql": "who sends offers from a database: the customers who get none",
    "DuckDBFilesOfflineStore": "Feast, by name", "DuckDBFilesOfflineStoreConfig": "Feast, by name", "WholeRegistryStore": "Feast, by name",
    "WorkspaceArtifacts": "MLflow, by its entry point", "end_with_parent": "the first line of a kernel, as text", "entry_point": "the shell, by pyproject.toml"}

def test_every_public_name_is_used_or_is_for_somebody():
    used = {n.id if isinstance(n, ast.Name) else n.attr for tree in TREES.values() for n in ast.walk(tree) if isinstance(n, (ast.Name, ast.Attribute))}
    used |= {a.name for tree in TREES.values() for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    decorated = {name for _, name, node in definitions() if node.decorator_list and not isinstance(node, ast.ClassDef)} # commands, features
    by_name = {name for _, name, _ in definitions() if name.startswith("check_")} # `churn doctor` finds its checks by their names
    idle = {name for file, name, _ in definitions() if not file.startswith("teaching/")} - used - decorated - by_name - {*churn_nb._PLACES}
    assert idle == {*FOR_OTHERS}
