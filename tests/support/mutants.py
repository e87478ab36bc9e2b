"""How many mistakes do the tests of `make check` find? Random mutants of functions of churn_nb, one at a time, in a
copy of the tree, each judged by the tests that check.py selects for it. Left out are lint and the comparison of
notebooks with the package, which find every mutant, and the module's own notebook, whose kernel defines the functions itself.

    python mutants.py 30 SEED"""
import ast, copy, os, random, re, shutil, signal, subprocess, sys, tempfile
from dataclasses import dataclass
from pathlib import Path
import sources
from check import PYTEST, git
from paths import ROOT
from touched import read_map, test_name

LIMIT = 600 # seconds; a mutant may run for ever
OVER = f"more than {LIMIT} s"
FLIPS = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
         ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
         ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}

@dataclass
class Mutant:
    path: str
    function: str
    node: ast.AST # What is replaced
    text: str     # By this
    def __str__(self): return f"line {self.node.lineno}: {ast.unparse(self.node)} -> {self.text}"

def changed(node:ast.AST) -> str: # Empty: no operator is for it
    n = copy.deepcopy(node)
    match n:
        case ast.Compare() if type(n.ops[0]) in FLIPS: n.ops[0] = FLIPS[type(n.ops[0])]()
        case ast.BinOp() | ast.BoolOp() if type(n.op) in FLIPS: n.op = FLIPS[type(n.op)]()
        case ast.Constant(value=bool()): n.value = not n.value
        case ast.Constant(value=int() | float()): n.value += 1
        case ast.UnaryOp(op=ast.Not()): n = n.operand
        case ast.Return(value=ast.expr()) if ast.unparse(n) != "return None": return "return None"
        case _: return ""
    return f"({ast.unparse(n)})"

def nodes(tree:ast.AST):
    "All of a tree, but for the inside of f-strings and of patterns: no text of its own, or no place for parentheses."
    if isinstance(tree, (ast.JoinedStr, ast.pattern)): return
    yield tree
    for child in ast.iter_child_nodes(tree): yield from nodes(child)

def mutants(root:Path, path:str, function:str, definition:ast.AST) -> list[Mutant]:
    found = [Mutant(path, function, n, changed(n)) for statement in definition.body for n in nodes(statement)]
    return [m for m in found if m.text]

def all_mutants(root:Path) -> list[Mutant]:
    "Of every function that a test touches, other than its own notebook."
    functions, books, found = read_map().functions, sources.notebooks(root), []
    for module, path in sources.modules(root).items():
        for f, definition in sources.functions(ast.parse(sources.read(root, path))):
            if functions.get(f"{module}:{f}", set()) - {books.get(module)}: found += mutants(root, path, f, definition)
    return found

def mutated(source:str, m:Mutant) -> str:
    lines, n = source.encode().splitlines(keepends=True), m.node # columns count bytes
    before = b"".join(lines[:n.lineno - 1]) + lines[n.lineno - 1][:n.col_offset]
    after = lines[n.end_lineno - 1][n.end_col_offset:] + b"".join(lines[n.end_lineno:])
    return (before + m.text.encode() + after).decode()

def copy_tree(to:Path) -> Path:
    "What git knows or would add, the data sets and the environment; committed, so that a mutant is what changed."
    names = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    names += [str(f.relative_to(ROOT)) for f in (ROOT/"data").glob("*.csv")]
    for name in names:
        (to/name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT/name).exists(): shutil.copy2(ROOT/name, to/name, follow_symlinks=False)
    (to/".venv").symlink_to(ROOT/".venv")
    git(to, "init", "-q")
    (to/".git"/"info"/"exclude").write_text(".venv\n")
    git(to, "add", "-A")
    git(to, "-c", "user.name=mutants", "-c", "user.email=mutants", "commit", "-qm", "the tree as it is")
    return to

def run(tree:Path, *command:str) -> tuple[int, str]: # Exit code, output
    env = os.environ | {"PYTHONPATH": str(tree)}
    with subprocess.Popen(command, cwd=tree, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          start_new_session=True) as p:
        try: said, _ = p.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            said = OVER
    return p.returncode, said

def failures(said:str) -> set[str]: # Tests, or files that can't be imported
    found = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", said, re.M)
    return {test_name(f) if "::" in f else f for f in found}

def killer(tree:Path, m:Mutant) -> str: # Empty: no test found it
    "A test that fails without the mutant as well has found nothing."
    source, book = sources.read(tree, m.path), sources.notebooks(tree).get(sources.module_name(m.path), "")
    (tree/m.path).write_text(mutated(source, m))
    try: code, said = run(tree, sys.executable, "tests/support/check.py", "--tests-only", "--without", book)
    finally: (tree/m.path).write_text(source)
    if not code or said == OVER: return said if code else ""
    failed = failures(said)
    if not failed: raise SystemExit(f"check.py failed, and no test did:\n{said}")
    _, said = run(tree, *PYTEST, "--nbval", "--nbval-sanitize-with", "nbs/.nbval.cfg", *failed)
    return min(failed - failures(said), default="")

def main(n:int, seed:int) -> int:
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copy_tree(Path(folder).resolve())
        _, where = run(tree, sys.executable, "-c", "import churn_nb; print(churn_nb.__file__)")
        assert where.startswith(str(tree)), f"the copy is not what is imported: {where}"
        chosen, killed = random.Random(seed).sample(all_mutants(tree), n), 0
        for m in chosen:
            by = killer(tree, m)
            killed += bool(by)
            print(f"{'killed' if by else 'ALIVE '}  {m.path}  {m.function}  {m}  {by}", flush=True)
    print(f"== {killed} of {n} mutants killed")
    return 0

if __name__ == "__main__": sys.exit(main(*map(int, sys.argv[1:])))
