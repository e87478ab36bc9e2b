"The hints that the package can print: commands between backticks or in <code>, as they stand in its source."
import ast, re
from paths import ROOT

PACKAGE = ROOT/"churn_nb"
TEXTS = [f for f in sorted(PACKAGE.rglob("*")) if f.suffix in (".py", ".html", ".js", ".sh") and f.name != "_modidx.py"]

def strings(tree):
    "The texts of a module, docstrings included; what is put in stands there as `{name}`."
    inside = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
    for n in ast.walk(tree):
        if isinstance(n, ast.JoinedStr): yield "".join(v.value if isinstance(v, ast.Constant) else "{" + ast.unparse(v.value) + "}" for v in n.values)
        elif isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in inside: yield n.value

def texts(file): return strings(ast.parse(file.read_text())) if file.suffix == ".py" else [file.read_text()]

def found(pattern):
    "(Module, what the pattern's group holds), each once."
    return sorted({(f.relative_to(PACKAGE).with_suffix("").as_posix(), m[1]) for f in TEXTS for text in texts(f) for m in re.finditer(pattern, text)})

def hints(pattern): return sorted({h for _, h in found(pattern)})
