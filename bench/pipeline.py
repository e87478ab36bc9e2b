"""The whole pipeline on CDNOW, from raw purchases to a bundle that may serve: how long, and who spends it.

    python bench/pipeline.py            all of it, and nbdev-test (some minutes)
    python bench/pipeline.py --quick    300 customers, once, into a temporary folder

`churn run` into an empty folder, warm: a run before it filled the file cache. The ceiling is what the run can't do without: the samples (py-spy, 100 a second, all
processes of a run of its own) in which scikit-learn trains, or Feast or MLflow does what they were called for, imports included. What is left are kernels,
papermill and this project's own code. Beside it the import of `churn_nb.serve` against `import onnxruntime, fastapi`, in turns. Writes pipeline.json,
pipeline.md and pipeline.png.
"""
import json, os, re, resource, statistics, subprocess, sys, tempfile, time
from collections import Counter
from pathlib import Path
from peers import ROOT, TELEMETRY_OFF, environment
from report import bars, folder, goal, growth_table, grown, options, recorded, spread, table, where, write

BIN = Path(sys.executable).parent
IMPORTS = {"peer": "import onnxruntime, fastapi", "ours": "import churn_nb.serve"}
# A sample belongs to the first line that fits a file of its stack.
OWNERS = [("Feast", r"/feast/"), ("MLflow", r"/(mlflow|alembic|sqlalchemy)/"), ("training", r"/(sklearn|scipy|joblib)/|churn_nb/(train|modeling/calibration)\.py"),
          ("export to ONNX", r"/(skl2onnx|onnx|onnxruntime)/"), ("figures", r"/(matplotlib|PIL)/"), ("own code and data frames", r"churn_nb/|/(pandas|numpy|pyarrow|duckdb)/|ipykernel_\d+"),
          ("kernels and papermill", r"")]
PARTS = ("training", "Feast", "MLflow")

def environ() -> dict: return {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ} | TELEMETRY_OFF | {"PYTHONWARNINGS": "ignore"}

def run(folder:Path, customers:int, *before:str) -> dict:
    "One run into a new folder: seconds, of each step, and the highest memory of one of its processes so far."
    with tempfile.TemporaryDirectory(dir=folder) as ws:
        start = time.perf_counter()
        r = subprocess.run([*before, str(BIN/"churn"), "run", "--workspace", ws, *(("-p", f"customers={customers}") if customers else ())], capture_output=True, text=True, cwd=ROOT, env=environ(), check=False)
        seconds = time.perf_counter() - start
        if r.returncode not in (0, 1): sys.exit(f"churn run failed with code {r.returncode}:\n{r.stdout[-1500:]}{r.stderr[-1500:]}") # 1: the gate refused, as it should with few customers
        books = sorted(Path(ws).glob("runs/*/*.ipynb"), key=lambda f: f.stat().st_mtime)
        steps = {f.stem: round(json.loads(f.read_text())["metadata"]["papermill"]["duration"], 2) for f in books}
    return {"seconds": round(seconds, 2), "steps": steps, "code": r.returncode, "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss//1024}

def owner(stack:list[str]) -> str:
    return next(name for name, pattern in OWNERS if any(re.search(pattern, frame) for frame in stack))

def profile(folder:Path, customers:int) -> tuple[dict, dict[str, int]]:
    "One run, and the samples of all its processes by who spends them."
    spy, found = environment("pipeline", "bench/pipeline.requirements.txt").parent/"py-spy", folder/"samples"
    took = run(folder, customers, str(spy), "record", "--subprocesses", "--full-filenames", "--format", "raw", "--rate", "100", "--nonblocking", "--output", str(found), "--")
    spent = Counter()
    for line in re.sub(r'process \d+:"[^"]*"', "process", found.read_text()).splitlines(): # a command line may name modules, and hold a ;
        stack, _, n = line.rpartition(" ")
        if n.isdigit(): spent[owner(stack.split(";"))] += int(n)
    return took, dict(spent.most_common())

def imports(times:int) -> dict[str, list[float]]:
    "Seconds from the start of Python to its end, in turns."
    out = {k: [] for k in IMPORTS}
    for r in range(times + 1): # the first fills the file cache
        for k, code in IMPORTS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, env=environ())
            if r: out[k].append(round(time.perf_counter() - start, 4))
    return out

def notebooks() -> dict:
    "`nbdev-test` over all notebooks on two workers, as `make test-notebooks` runs it."
    start = time.perf_counter()
    r = subprocess.run([BIN/"nbdev-test", "--n-workers", "2", "--timing"], cwd=ROOT, capture_output=True, text=True, env=environ() | {"PATH": f"{BIN}:{os.environ['PATH']}"}, check=False)
    if r.returncode: sys.exit(f"nbdev-test failed:\n{r.stdout[-2000:]}{r.stderr[-2000:]}")
    each = {name: int(s) for name, s in re.findall(r"^(\d\w+)\.ipynb: (\d+) secs", r.stdout, re.M)}
    numbered = [f for f in (ROOT/"nbs").rglob("[0-9]*.ipynb") if ".ipynb_checkpoints" not in f.parts]
    if len(each) != len(numbered): sys.exit(f"nbdev-test ran {len(each)} of {len(numbered)} notebooks")
    return {"seconds": round(time.perf_counter() - start, 1), "notebooks": len(each), "each": each}

def goals(found:dict) -> list[list]:
    total, spent = statistics.median(r["seconds"] for r in found["runs"]), found["spent"]
    share = sum(spent.get(k, 0) for k in PARTS)/sum(spent.values())
    over = statistics.median(a - b for a, b in zip(found["imports"]["ours"], found["imports"]["peer"]))
    out = [goal("churn run on CDNOW, warm", "<= 60 s", f"{total:.1f} s", total <= 60), goal(f"of it {', '.join(PARTS)} themselves", ">= 70 %", f"{share:.1%}", share >= .7),
           goal("import churn_nb.serve over onnxruntime and fastapi", "<= 0.5 s", f"{over:.2f} s", over <= .5)]
    nb = found["notebooks"]
    return [*out, goal("nbdev-test, two workers", "<= 120 s", f"{nb['seconds']:.0f} s for {nb['notebooks']} notebooks" if nb else "", nb["seconds"] <= 120 if nb else None)]

def markdown(found:dict) -> str:
    runs, total = found["runs"], sum(found["spent"].values())
    med = lambda values: statistics.median(values)
    return "\n\n".join(["<!-- made by bench/pipeline.py -->", "### Goals, pipeline", table(["", "goal", "measured", ""], goals(found)),
        "### Steps, all customers of CDNOW" if not found["customers"] else f"### Steps, {found['customers']} customers",
        table(["step", "seconds: median (min..max)", "of the run"], [[k, spread([r["steps"][k] for r in runs], 1), f"{med([r['steps'][k]/r['seconds'] for r in runs]):.0%}"] for k in runs[0]["steps"]]
              + [["between and around them", spread([r["seconds"] - sum(r["steps"].values()) for r in runs], 1), f"{med([1 - sum(r['steps'].values())/r['seconds'] for r in runs]):.0%}"],
                 ["whole", spread([r["seconds"] for r in runs], 1), "100%"]]),
        "### Who spends it: samples of all processes", table(["", "of the samples"], [[k, f"{n/total:.0%}"] for k, n in found["spent"].items()]),
        f"The profiled run is one of its own; {total:,} samples. A sample belongs to the first of these whose file is in its stack: " + ", ".join(k for k, _ in OWNERS) + ".",
        *(["### Growth", growth_table(found["growth"], "customers", 1)] if found["growth"] else []),
        *(["### Each notebook alone, one beside another", table(["", "seconds"], [[k, s] for k, s in list(found["notebooks"]["each"].items())[:8]]) + f"\n\nThe slowest eight; median {med(found['notebooks']['each'].values()):.0f} s."]
          if found["notebooks"] else []),
        "### Import, seconds", table(["", "median (min..max)"], [[f"`{IMPORTS[k]}`", spread(v)] for k, v in found["imports"].items()]), where(found)]) + "\n"

def plot(found:dict, path:Path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    spent, total = found["spent"], sum(found["spent"].values())
    share = sum(spent.get(k, 0) for k in PARTS)/total
    fig, ax = plt.subplots(figsize=(6.8, 2.8), layout="constrained")
    bars(ax, {k: spent[k]/total*100 for k in sorted(spent, key=spent.get)}, lambda v: f"{v:.0f}%", lambda k: "#E69F00" if k in PARTS else "#0072B2", xlabel="share of the processor's samples, %",
         title=f"Training, Feast and MLflow spend {share:.0%} of `churn run`")
    fig.savefig(path, dpi=100)

def main():
    p = options(__doc__, 3)
    p.add_argument("--skip-notebooks", action="store_true", help="no nbdev-test, which takes minutes")
    a = p.parse_args()
    out, found = folder(a), recorded("pipeline", p, a)
    sizes, times = ([300], 1) if a.quick else ([236, 2357, 0], a.rounds) # 0: all 23,570
    with tempfile.TemporaryDirectory(dir=ROOT/".bench") as tmp:
        tmp, runs = Path(tmp), {n: [] for n in sizes}
        if not a.quick: run(tmp, sizes[0])
        for r in range(times):
            for n in sizes if not a.quick else ():
                runs[n].append(run(tmp, n))
                print(f"round {r + 1}, {n or 'all'} customers: {runs[n][-1]}", flush=True)
        took, spent = profile(tmp, sizes[-1])
        if a.quick: runs[sizes[-1]].append(took) # one run for all
        found |= {"customers": sizes[-1], "runs": runs[sizes[-1]], "spent": spent, "imports": imports(1 if a.quick else 7)}
    found |= {"growth": None if a.quick else grown({n or 23_570: rs for n, rs in runs.items()}), "notebooks": None if a.quick or a.skip_notebooks else notebooks()}
    write(out, "pipeline", found, markdown, plot)

if __name__ == "__main__": main()
