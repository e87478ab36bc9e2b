"A cell that draws data asserts what its picture is to show, where the picture is seen."
import ast, json, re
import pytest
from paths import ROOT

BOOKS = sorted(p for p in (ROOT/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
SCHEMATIC = { # boxes, arrows and roles that are typed in, no data: (notebook, first line) -> what it is
    ("modeling/10_search", 'dates = ["Oct", "Nov", "Dec", "Jan", "Feb", "Mar"]'): "which dates a fold trains on and judges",
    ("monitoring/65_drift_report", 'fig, ax = plt.subplots(figsize=(7, 2.3), layout="constrained")'): "boxes and arrows of the functions",
    ("monitoring/68_background_writer", "steps = ["): "a sequence in time",
    ("monitoring/85_logged_traffic", "bars = ["): "who reads what, and when"}
DRAWS = {"plot", "step", "bar", "barh", "hist", "scatter", "errorbar", "loglog", "semilogx", "semilogy", "imshow", "fill_between", "pcolormesh", "stairs"}
ASSERTS = re.compile(r"test(_[a-z]+)?$")

def calls(tree): return {getattr(n.func, "attr", getattr(n.func, "id", "")) for n in ast.walk(tree) if isinstance(n, ast.Call)}

def shows(cell, source):
    "Whether a picture stands under the cell: an image, or a drawing that the cell itself writes as SVG."
    return "<svg" in source or any(k.startswith("image/") for o in cell["outputs"] for k in o.get("data", {}))

def draws(tree):
    "Whether code that runs in the cell draws on axes; a function that is only defined does not."
    ran = [n for n in tree.body if not isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    return any(isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and n.func.attr in DRAWS and "ax" in ast.unparse(n.func.value) for part in ran for n in ast.walk(part))

def pictures():
    for book in BOOKS:
        for cell in json.loads(book.read_text())["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or source.startswith(("#| export", "%")): continue
            tree = ast.parse(source)
            if shows(cell, source) or draws(tree): yield book.relative_to(ROOT/"nbs").with_suffix("").as_posix(), source.splitlines()[0], tree

PICTURES = list(pictures())

def test_pictures_are_found():
    assert len(PICTURES) > 30 and {(book, first) for book, first, _ in PICTURES} >= SCHEMATIC.keys()

@pytest.mark.parametrize(("book", "first", "tree"), [p for p in PICTURES if p[:2] not in SCHEMATIC], ids=lambda x: x if isinstance(x, str) else "")
def test_a_picture_of_data_asserts_what_it_shows(book, first, tree):
    assert any(isinstance(n, ast.Assert) for n in ast.walk(tree)) or any(ASSERTS.match(c) for c in calls(tree))
