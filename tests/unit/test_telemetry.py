"ONNX Runtime writes a device id below the home folder and reports from there, unless it is told not to before it is imported: it is told everywhere."
import json, os, re, subprocess, sys
from pathlib import Path
import churn_nb, pytest, sources
from deadlines import allow
from paths import ROOT

OWN_IMPORT = r"^\s*(from|import) (churn_nb|peers)\b"
CALLERS = "onnxruntime|mlflow|dvc|evidently" # what calls home as soon as it is imported or used
CALLER_IMPORT = re.compile(rf"^\s*(from ({CALLERS})\b|import [^#\n]*\b({CALLERS})\b)", re.M)
SESSION = """
import numpy as np, onnxruntime as ort
from onnx import TensorProto, helper as h
ends = [h.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
graph = h.make_model(h.make_graph([h.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:]), opset_imports=[h.make_opsetid("", 17)], ir_version=8)
ort.InferenceSession(graph.SerializeToString()).run(None, {"x": np.zeros(1, np.float32)})"""

def device_files(home, first):
    "What ONNX Runtime leaves below a home folder in a process without our environment that runs `first` before it; in CI it is silent by itself."
    env = {k: v for k, v in os.environ.items() if k not in (*churn_nb.TELEMETRY_OFF, "CI") and not k.startswith(("XDG_", "GITHUB_"))} | {"HOME": str(home)}
    subprocess.run([sys.executable, "-c", first + SESSION], env=env, check=True, timeout=allow(300))
    return [f for f in home.rglob("*") if "icrosoft" in str(f)]

def test_onnxruntime_leaves_a_device_id_unless_forbidden(tmp_path):
    "Or the next test could not fail."
    assert device_files(tmp_path, "")

@pytest.mark.parametrize("first", ["import churn_nb", "import churn_nb.modeling.onnx_export", "import churn_nb.serve"])
def test_onnxruntime_leaves_nothing_behind_after_an_import_of_the_package(tmp_path, first):
    assert not device_files(tmp_path, first)

def late(code, *first):
    "True where a text imports one of CALLERS before any of the patterns `first`."
    caller, before = CALLER_IMPORT.search(code), [m.start() for p in first if (m := re.search(p, code, re.M))]
    return bool(caller) and not (before and min(before) < caller.start())

def test_notebooks_import_the_package_before_what_calls_home():
    "A kernel that somebody starts by hand has no environment of ours."
    code = lambda nb: "\n".join("".join(c["source"]) for c in json.loads(nb.read_text())["cells"] if c["cell_type"] == "code")
    notebooks = [ROOT/nb for nb in sources.notebook_files(ROOT)]
    assert len(notebooks) > 50 and [nb.stem for nb in notebooks if late(code(nb), OWN_IMPORT)] == []

def test_scripts_switch_telemetry_off_before_what_calls_home():
    "In the package itself, its __init__ comes first."
    scripts = [f for d in ("tests", "bench", "docs") for f in sorted((ROOT/d).rglob("*.py")) if f != Path(__file__)]
    assert len(scripts) > 70 and [f.name for f in scripts if late(f.read_text(), OWN_IMPORT, "ORT_DISABLE_TELEMETRY")] == []

def test_images_makefile_and_measurements_have_the_same_switches():
    sys.path.insert(0, str(ROOT/"bench"))
    from peers import TELEMETRY_OFF
    assert TELEMETRY_OFF == churn_nb.TELEMETRY_OFF
    images = [m[1] for m in re.finditer(r"^ENV (PATH=(?:.*\\\n)*.*)", (ROOT/"Dockerfile").read_text(), re.M)]
    assert len(images) == 2
    makefile = (ROOT/"Makefile").read_text()
    for name, value in churn_nb.TELEMETRY_OFF.items():
        assert all(f" {name}={value}" in image for image in images) and f"export {name} ?= {value}\n" in makefile
