"""One word for one thing, the field's: what the prose of notebooks, docstrings, comments, messages and pages must not say, and names that mean one thing."""
import ast, io, json, re, tokenize
from collections import defaultdict
import pytest, sources
from paths import ROOT

INSTEAD = { # pattern -> what to write
    r"lanes?": "fast path", r"(the )?(long|short) way": "standard path, fast path", r"guard rails?": "leakage and data-quality checks",
    r"told": "message, description", r"portions?": "chunk", r"mend(s|ed|ing)?": "fix, normalise, repair", r"whoever|nobody|everybody|no one": "the caller, the client, no request",
    r"resting": "cooldown", r"bur(y|ied)": "mark lost", r"rivals?": "reference model", r"staircases?": "empirical CDF", r"rulers?": "scale and zero point", r"eight bits": "INT8",
    r"ailments?": "failed check", r"ageing": "cohort comparison", r"at once fits": "run_parallel", r"a row a customer": "one row per customer", r"a (field|column) a feature": "one field per feature",
    r"(one|such) that (is|are) none": "an invalid one", r"waiting for company": "micro-batching", r"company of rows|in company": "batch", r"perishable": "expiring",
    r"(is|are|was|were) no illness": "is not an error", r"flatter": "is evaluated on rows it was not fitted on",
}
WORDS = re.compile(r"\b(" + "|".join(f"(?P<w{i}>{p})" for i, p in enumerate(INSTEAD)) + r")\b", re.I)

def strings_and_comments(source:str) -> str:
    "What a reader reads of code: comments, docstrings, messages."
    try: return "\n".join(t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type in (tokenize.COMMENT, tokenize.STRING, tokenize.FSTRING_MIDDLE if hasattr(tokenize, "FSTRING_MIDDLE") else tokenize.STRING))
    except (tokenize.TokenError, IndentationError): return source

def prose(path:str) -> str:
    text = sources.read(ROOT, path)
    if path.endswith(".md"): return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    cells = json.loads(text)["cells"]
    return "\n".join("".join(c["source"]) if c["cell_type"] == "markdown" else strings_and_comments("".join(c["source"])) for c in cells)

READ = [*sources.notebook_files(ROOT), "README.md", "CONTRIBUTING.md", "SECURITY.md", "k8s/README.md", "data/README.md"]

@pytest.mark.parametrize("path", READ)
def test_prose_uses_the_words_of_the_field(path):
    found = [(m[0], list(INSTEAD.values())[next(int(k[1:]) for k, v in m.groupdict().items() if v)], prose(path)[max(0, m.start() - 40):m.end() + 30].replace("\n", " ")) for m in WORDS.finditer(prose(path))]
    assert found == []

def public(file:str) -> list[str]:
    "Functions, classes and constants that a module defines, and not what it imports."
    out = []
    for n in ast.parse(sources.read(ROOT, file)).body:
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef): out.append(n.name)
        if isinstance(n, ast.Assign): out += [t.id for t in n.targets if isinstance(t, ast.Name)]
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name): out.append(n.target.id)
    return [n for n in dict.fromkeys(out) if not n.startswith("_")]

def test_a_public_name_means_one_thing():
    places = defaultdict(list)
    for module, file in sources.modules(ROOT).items():
        if not file.endswith(("__init__.py", "_modidx.py")):
            for name in public(file): places[name].append(module)
    assert {name: where for name, where in sorted(places.items()) if len(where) > 1 and name not in ("log", "logger")} == {}
