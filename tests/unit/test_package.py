"""`churn_nb/__init__.py`, the one module that no notebook writes: what users import from the top, and when."""
import ast, subprocess, sys
from pathlib import Path
import pytest
import churn_nb

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
