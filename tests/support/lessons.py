"Functions that a lesson defines and does not export, for the tests of them: the notebook is their only source."
import ast
from importlib import import_module
from types import SimpleNamespace
import sources
from paths import ROOT

def of_lesson(notebook:str, *names:str) -> SimpleNamespace: # `modeling/40_bgnbd`, below nbs
    "They see what the lesson imports and what its module defines, and nothing else of its cells. Raises KeyError for a name that the lesson doesn't define."
    path = f"nbs/{notebook}.ipynb"
    nodes = [n for cell in sources.code(ROOT, path) for n in cell.body]
    defined = {n.name: n for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    body = [n for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))] + [defined[name] for name in names]
    space = dict(vars(import_module(f"churn_nb.{sources.module_of(ROOT, path)}")))
    exec(compile(ast.Module(body, []), path, "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in names})
