"""What source text alone tells: functions of modules, tests of files, imports. Paths count from the top folder.

Answers are kept for the process: it looks at one state of the tree."""
import ast, json, re
from functools import cache
from pathlib import Path

def read(root:Path, path:str) -> str: # Empty: there is none
    return (root/path).read_text() if (root/path).is_file() else ""

def files(root:Path, folder:str, pattern:str) -> list[str]:
    return sorted(str(f.relative_to(root)) for f in (root/folder).rglob(pattern))

@cache
def modules(root:Path) -> dict[str, str]: # `serving.batching` -> churn_nb/serving/batching.py
    return {module_name(f): f for f in files(root, "churn_nb", "*.py") if not f.endswith("_modidx.py")}

def module_name(path:str) -> str: return ".".join(Path(path).with_suffix("").parts[1:])

def functions(tree:ast.Module) -> list[tuple[str, ast.AST]]:
    "Functions and methods of a module by their qualified names; what is defined inside of one belongs to it."
    def walk(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef): yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): yield prefix + node.name, node
    return list(walk(tree.body, ""))

def notebook_files(root:Path) -> list[str]:
    "Of nbs and every folder below it; Jupyter's own copies are none."
    return [nb for nb in files(root, "nbs", "*.ipynb") if ".ipynb_checkpoints" not in Path(nb).parts]

def module_of(root:Path, nb:str) -> str: # Empty: it exports none
    found = re.search(r"#\| *default_exp +([\w.]+)", read(root, nb))
    return found[1] if found else ""

def notebooks(root:Path) -> dict[str, str]: # Module -> its notebook
    return {m: nb for nb in notebook_files(root) if (m := module_of(root, nb))}

def notebook_of(root:Path, module:str) -> Path: # `churn_nb.core.settings` -> its notebook
    return root/notebooks(root)[module.removeprefix("churn_nb.")]

@cache
def tests(root:Path) -> dict[str, set[str]]:
    "Test files and notebooks, e2e left out, with the names of their tests; a notebook is one test."
    found = {nb: {nb} for nb in notebook_files(root)}
    for file in files(root, "tests", "test_*.py"):
        if file.startswith("tests/e2e/"): continue
        tree = ast.parse(read(root, file))
        names = [name.split(".") for name, _ in functions(tree)]
        names += [[t.id] for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
        found[file] = {"::".join([file, *n]) for n in names if n[-1].startswith("test") or n[0].startswith("Test")}
    return found

def code(root:Path, path:str) -> list[ast.Module]: # Of a notebook: its cells of plain Python
    if not path.endswith(".ipynb"): return [ast.parse(read(root, path))]
    cells = ["".join(c["source"]) for c in json.loads(read(root, path))["cells"] if c["cell_type"] == "code"]
    return [t for t in map(_parsed, cells) if t]

def _parsed(cell:str) -> ast.Module|None:
    try: return ast.parse(cell)
    except SyntaxError: return None # a magic

def imported(path:str, tree:ast.Module) -> set[str]:
    "Dotted names that a file imports; the last part may be a function of a module."
    names = set()
    for n in ast.walk(tree):
        if isinstance(n, ast.Import): names |= {a.name for a in n.names}
        if isinstance(n, ast.ImportFrom):
            package = Path(path).parent.parts[:len(Path(path).parent.parts) + 1 - n.level] if n.level else ()
            module = ".".join([*package, *([n.module] if n.module else [])])
            names |= {f"{module}.{a.name}" for a in n.names}
    return names

@cache
def imports(root:Path) -> dict[str, set[str]]:
    "File -> files of churn_nb and tests/support that it imports; a notebook with a module has its imports, too."
    place = {f"churn_nb.{m}".removesuffix(".__init__"): f for m, f in modules(root).items()}
    place |= {Path(f).stem: f for f in files(root, "tests/support", "*.py")}
    own = {nb: place.get(f"churn_nb.{m}") for m, nb in notebooks(root).items()}
    found = {}
    for file in [*place.values(), *tests(root)]:
        names = set().union(*(imported(file, t) for t in code(root, file)))
        names |= {".".join(n.split(".")[:k]) for n in names for k in range(1, n.count(".") + 1)} # a.b imports a
        found[file] = {place[n] for n in names if n in place} | ({own[file]} if own.get(file) else set())
    return found

def importers(root:Path, path:str) -> set[str]:
    "Files that import it, directly or through others."
    found, new = set(), {path}
    while new:
        found |= new
        new = {f for f, targets in imports(root).items() if targets & new} - found
    return found - {path}

def naming(root:Path, *names:str) -> set[str]:
    "Test files with one of the names as a quoted string or a part of a path."
    part = re.compile("[\"'/](?:" + "|".join(map(re.escape, names)) + ")[\"'/]")
    return {f for f in tests(root) if f.endswith(".py") and part.search(read(root, f))}
