"What holds for the repository as a whole."
import ast, base64, io, json, os, re, shutil, subprocess, sys, tokenize, zipfile
from pathlib import Path
import compared, pytest, sources
import matplotlib.pyplot as plt, numpy as np
from compared import alike
from deadlines import allow
from paths import PYTHON, ROOT

BIN = Path(sys.executable).parent
TRACKED = [Path(f) for f in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines() if (ROOT/f).exists()]
NOTEBOOKS = [ROOT/nb for nb in sources.notebook_files(ROOT)]
SETTINGS, DATA, PIPELINE, REGISTRY, BATCHING = (sources.notebook_of(ROOT, m) for m in ("churn_nb.core.settings", "churn_nb.data.datasets", "churn_nb.ops.step_runner", "churn_nb.registry.model_registry", "churn_nb.serving.batching"))
COURSE = [*(nb for nb in NOTEBOOKS if nb.name[0] == "0"), SETTINGS, DATA, PIPELINE]


def copy_of_tracked(to):
    for f in TRACKED:
        (to/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/f, to/f, follow_symlinks=False)
    return to

@pytest.mark.fast
def test_export_clean_and_readme_are_in_step(tmp_path):
    "Exporting, cleaning and rendering README again changes no file."
    top = copy_of_tracked(tmp_path)
    for command in ([BIN/"ruff", "format", "nbs"], [BIN/"nbdev-export"], [BIN/"ruff", "format", "churn_nb"], [BIN/"nbdev-clean"], ["make", "readme", f"BIN={BIN}"]):
        subprocess.run(command, cwd=top, check=True, capture_output=True)
    differ = [str(f) for f in TRACKED if (f.parts[0] in ("nbs", "churn_nb") or f.name == "README.md") and (top/f).read_bytes() != (ROOT/f).read_bytes()]
    assert not differ, f"run `make export`: {differ}"
    assert sorted(str(f) for f in TRACKED if f.parts[0] == "churn_nb" and f.suffix == ".py") == sources.files(top, "churn_nb", "*.py")

def test_the_notebooks_of_every_folder_are_found():
    "Who looks for notebooks asks `sources.notebook_files`; names are unique, as nbdev's and the site's lists show them without folders."
    assert sorted(str(f) for f in TRACKED if f.suffix == ".ipynb") == sources.notebook_files(ROOT)
    assert len({nb.name for nb in NOTEBOOKS}) == len(NOTEBOOKS) >= compared.least()[1]

def test_notebooks_and_modules_belong_together():
    "The exporter adds modules and deletes none: what was moved or renamed would stay, and be imported."
    exporting = {nb: m for nb in sources.notebook_files(ROOT) if (m := sources.module_of(ROOT, nb))}
    modules = {m: f for m, f in sources.modules(ROOT).items() if not f.endswith("__init__.py")}
    assert sorted(exporting.values()) == sorted(modules) and len(exporting) == len(NOTEBOOKS) - 1 # all but the index
    for nb, module in exporting.items(): # the header is the last word on where a module comes from
        origin = re.search(r"File to edit: (\S+)\.$", sources.read(ROOT, modules[module]), re.M)[1]
        assert os.path.normpath((ROOT/modules[module]).parent/origin) == str(ROOT/nb), module
    packages = {str(Path(f).parent) for f in modules.values()}
    assert packages <= {str(Path(f).parent) for f in sources.files(ROOT, "churn_nb", "__init__.py")}, "a folder without __init__.py is in no wheel"

@pytest.mark.parametrize("nb", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_find_files_from_any_folder(nb):
    "A kernel starts in its notebook's folder: `repository_file` says where the files of the repository are."
    code = "\n".join("".join(c["source"]) for c in json.loads(nb.read_text())["cells"] if c["cell_type"] == "code")
    assert not re.findall(r"""["']\.\./(?:bench|tests|data|docs|nbs|k8s|triton)\b""", code)

@pytest.mark.parametrize("nb", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_of_notebooks_lead_somewhere(nb):
    prose = "\n".join("".join(c["source"]) for c in json.loads(nb.read_text())["cells"] if c["cell_type"] == "markdown")
    links = [x for x in re.findall(r"\]\(([^)#\s]+)\)", prose) if "://" not in x]
    assert [x for x in links if not (nb.parent/x).exists()] == []

def test_the_index_lists_every_notebook_by_its_title():
    prose = "".join("".join(c["source"]) for c in json.loads((ROOT/"nbs/index.ipynb").read_text())["cells"])
    listed = re.findall(r"^\|[^|]*\| \[(.+?)\]\((.+?\.ipynb)\) \||^\| \[(.+?)\]\((.+?\.ipynb)\) \|", prose, re.M)
    title = lambda nb: "".join(json.loads(nb.read_text())["cells"][0]["source"]).partition("\n")[0].removeprefix("# ")
    assert sorted((a or c, b or d) for a, b, c, d in listed) == sorted((title(nb), str(nb.relative_to(ROOT/"nbs"))) for nb in NOTEBOOKS if nb.stem != "index")

def test_duckdb_is_opened_in_one_place():
    "`open_duckdb` switches off what makes a COPY that fails wait for ever."
    opened = [f for f in sources.modules(ROOT).values() if re.search(r"duckdb\.(connect|sql|execute|query|default_connection)\(", sources.read(ROOT, f))]
    assert [Path(f).name for f in opened] == ["workspace.py"]

def slow_comparisons(code):
    "Arguments of test_eq that are the bytes of a file or a model: it compares them byte by byte in Python, 20 MB in minutes."
    calls = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "test_eq"]
    name = lambda n: getattr(n.func, "attr", getattr(n.func, "id", "")) if isinstance(n, ast.Call) else ""
    return [ast.unparse(c) for c in calls if {name(a) for a in c.args} & {"read_bytes", "to_onnx", "reference_file", "tobytes", "getvalue"}]

def test_a_slow_comparison_is_found():
    assert slow_comparisons("test_eq(f.read_bytes(), g)") and not slow_comparisons("test_eq(f.read_bytes() == g, True)")

@pytest.mark.parametrize("nb", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_step_compares_files_byte_by_byte(nb):
    cells = ["".join(c["source"]) for c in json.loads(nb.read_text())["cells"] if c["cell_type"] == "code"]
    assert [x for c in cells if "test_eq" in c and not c.startswith("%") for x in slow_comparisons(c)] == []

def logical_lines(source):
    "Lines of code however the formatter wraps them: a statement, or the head of a compound one."
    return sum(t.type == tokenize.NEWLINE for t in tokenize.generate_tokens(io.StringIO(source).readline))

def test_wrapped_lines_count_once():
    assert logical_lines("x = [\n    1,\n    2,\n]\n\n# a comment\nif x:\n    y = 1\n") == 3

@pytest.mark.parametrize("nb", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_lessons(nb):
    cells = json.loads(nb.read_text())["cells"]
    head = "".join(cells[0]["source"])
    assert head.startswith("# ") and "\n> " in head, "title and one-sentence summary"
    assert nb.stem == "index" or "will be able to" in re.sub(r"\s+", " ", head), "what its reader will be able to do"
    assert len(cells) <= 90
    for c in cells:
        src = "".join(c["source"])
        for o in c.get("outputs", []):
            text = json.dumps(o)
            assert o["output_type"] != "error" and "Warning" not in text
            assert not re.search(r"/(home|root|tmp|work|Users)/", text), f"a path of a machine in an output: {text[:200]}"
            for k, v in o.get("data", {}).items():
                if k.startswith("image/png"): assert len("".join(v)) * 3 / 4 <= 60_000, "picture over 60 kB"
        if c["cell_type"] == "code": # nbdev processes imports apart from other code
            lines = [ln for ln in src.splitlines() if ln.strip() and not ln.startswith(("#", " ", ")"))]
            imports = [ln for ln in lines if ln.startswith(("import ", "from "))]
            assert not imports or len(imports) == len(lines), f"imports mixed with code: {lines[:3]}"
            if (n := logical_lines(src)) > 25 and not imports: # only what can't be cut: one function, one class, one table
                assert any(logical_lines(ast.unparse(x)) >= .75*n for x in ast.parse(src).body), f"a cell of {n} lines holds several things: {lines[:3]}"

@pytest.mark.parametrize("nb", COURSE, ids=lambda p: p.stem)
def test_course_notebooks_end_with_summary_and_three_exercises(nb):
    cells = json.loads(nb.read_text())["cells"]
    *_, short, exercises = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    assert short.startswith("## In short") and short.count("\n|") > 5
    assert exercises.startswith("## Exercises") and re.findall(r"^\d\. \*\*", exercises, re.M) == [f"{i}. **" for i in (1, 2, 3)]
    solutions = [c for c in cells if "solution" in c["metadata"].get("tags", [])]
    assert solutions == cells[-3:] and all(c["metadata"]["jupyter"]["source_hidden"] and "test_" in "".join(c["source"]) for c in solutions)

def test_steps_have_parameters():
    steps = [nb for nb in NOTEBOOKS if nb.stem[0] == "0"]
    assert len(steps) == 5
    for nb in steps:
        tagged = [c for c in json.loads(nb.read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1, nb.name

def test_lock_pins_everything_by_hash_and_names_no_address():
    text = (ROOT/"requirements.lock").read_text()
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    pins = re.findall(r"^([a-z0-9._-]+)==\S+", text, re.M)
    assert len(pins) > 200 and all("==" in ln for ln in text.splitlines() if re.match(r"[a-z]", ln))
    assert text.count("--hash=sha256:") >= len(pins)

def test_no_tracked_file_names_a_machine():
    for f in TRACKED:
        if (ROOT/f).suffix in (".csv", ".lock") or "remote" in f.parts: continue
        text = (ROOT/f).read_text(errors="replace")
        assert not re.search(r"/(root|home/\w+)/\.?\w+", text.replace("/home/user", "")), f

def test_wheel_carries_the_settings_and_every_module(tmp_path):
    top = copy_of_tracked(tmp_path/"src")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, top], check=True, capture_output=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    names = set(wheel.namelist())
    assert {n for n in names if n.startswith("churn_nb/") and n.endswith(".py")} == set(sources.files(ROOT, "churn_nb", "*.py"))
    assert {"churn_nb/py.typed", "churn_nb/ops/run_report.html", "churn_nb/ops/post-receive.sh", "churn_nb/ops/churn-api.service"} <= names
    assert wheel.read("churn_nb/core/settings.ini") == (ROOT/"settings.ini").read_bytes()
    wheel.extractall(tmp_path/"bare")
    shown = subprocess.run([sys.executable, "-c", "from churn_nb.core.settings import load_settings; import churn_nb; s = load_settings(environ={}); print(churn_nb.__file__, s.serve.port, s.paths.workspace)"],
                           cwd=tmp_path, env={"PYTHONPATH": str(tmp_path/"bare")}, capture_output=True, text=True, check=True).stdout.split()
    assert shown == [str(tmp_path/"bare/churn_nb/__init__.py"), "8000", str(tmp_path/"work")]

def test_workflows_are_valid():
    flows = sorted((ROOT/".github/workflows").glob("*.yaml"))
    assert flows
    subprocess.run([BIN/"check-jsonschema", "--builtin-schema", "vendor.github-workflows", *flows], check=True)
    subprocess.run([BIN/"actionlint", *flows], check=True)

def test_nbdev_commands_answer_to_both_names():
    for name in ("test", "export", "clean", "prepare"):
        assert all((BIN/f"nbdev{sep}{name}").exists() for sep in "-_"), name

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_lessons_never_reach_for_the_configured_services(path):
    "A demonstration in a notebook that writes to a registry or store takes its settings from `step_settings`."
    code = "\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")
    if path == SETTINGS: return # where it is made
    assert "workspace or temporary_workspace()" not in code, "use step_settings(workspace)"
    assert 'load_settings({"paths.workspace": temporary_workspace()})' not in code, "use step_settings()"

def test_a_lesson_run_beside_a_configured_server_leaves_it_alone(tmp_path):
    "The lesson on the registry registers, promotes and rolls back models called churn_predictor: in a registry of its own."
    server = tmp_path/"company.db"
    env = {**os.environ, "CHURN_STORES_TRACKING_URI": f"sqlite:///{server}", "PYTHONWARNINGS": "ignore"}
    r = subprocess.run([PYTHON, "-m", "papermill", "--cwd", REGISTRY.parent, REGISTRY, tmp_path/"out.ipynb"], env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    assert not server.exists()

@pytest.mark.parametrize("nb", [SETTINGS, BATCHING], ids=lambda p: p.stem) # a plain one, and one with event loops
def test_the_nbdev_test_command_runs_a_notebook(nb):
    "nbval runs all of them and compares; `make test-notebooks` is nbdev's own way over all."
    done = subprocess.run([BIN/"nbdev_test", nb.relative_to(ROOT)], cwd=ROOT, capture_output=True, text=True, timeout=allow(600))
    assert done.returncode == 0 and "Success" in done.stdout + done.stderr, done.stdout + done.stderr

@pytest.mark.fast # what fails most often is run first
@pytest.mark.parametrize("command", [["ruff", "check"], ["mypy"], ["lint-imports", "--no-logo"], ["typos"], ["hadolint", "Dockerfile"]], ids=["ruff", "mypy", "imports", "typos", "hadolint"])
def test_linters_find_nothing(command):
    done = subprocess.run([BIN/command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=allow(600))
    assert done.returncode == 0, done.stdout + done.stderr

@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "k8s/README.md", "data/README.md", "bench/RESULTS.md", "bench/CAPACITY.md"])
def test_links_lead_somewhere(page):
    links = [x for x in re.findall(r"\]\(([^)#]+)\)", (ROOT/page).read_text()) if "://" not in x]
    assert [x for x in links if not ((ROOT/page).parent/x).exists()] == []

def test_the_count_of_compared_outputs_does_not_fall(capsys):
    assert compared.main() == 0, capsys.readouterr().out

def test_notebooks_in_folders_are_counted(tmp_path, capsys):
    "One that is moved into a room counts as before, Jupyter's copy of it does not; one that is gone is missed."
    cell = {"cell_type": "code", "metadata": {}, "source": "1", "outputs": [{"data": {"text/plain": "1"}}]}
    places = ["nbs/00_a.ipynb", "nbs/room/10_b.ipynb", "nbs/room/.ipynb_checkpoints/10_b-checkpoint.ipynb"]
    for place in places:
        (tmp_path/place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/place).write_text(json.dumps({"cells": [cell]}))
    (tmp_path/"nbs/.compared").write_text("2 outputs\n2 notebooks\n")
    assert compared.main(tmp_path) == 0 and "2 stored outputs of 2 notebooks" in capsys.readouterr().out
    (tmp_path/places[1]).unlink()
    assert compared.main(tmp_path) == 1

def test_pictures_are_compared_as_they_are_seen():
    "One pixel more is the same picture, a bar that is longer is not; another size neither."
    def png(bar, dot=0, size=100):
        x = np.ones((size, 100, 3))
        x[40:60, :bar] = 0
        x[:1, :dot] = 0
        out = io.BytesIO()
        plt.imsave(out, x, format="png")
        return base64.b64encode(out.getvalue()).decode()
    assert alike(png(50), png(50, dot=1)) and not alike(png(50), png(52)) and not alike(png(50), png(50, size=90))
