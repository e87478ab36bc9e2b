"""A million rows of 20 columns scored from file to file: `churn score`'s work against scikit-learn and against the model's bare run in memory.

    python bench/score.py            all of it; seconds are noisy where other programs run
    python bench/score.py --quick    a fiftieth of the rows, one round, into a temporary folder

Every run is a process of its own, and rounds are interleaved: what disturbs one disturbs all. The ceiling is what ONNX Runtime takes for the same
matrix in memory, in the same portions, two at a time: no file, no decision, no output. Probabilities are compared with scikit-learn's before anything is
reported. Seconds count the work, without imports and without loading the model; memory is the process's peak with all of that. Writes score.json,
score.md and score.png.
"""
import argparse, importlib.metadata, json, os, pickle, statistics, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from features import machine, spread, table, where
from peers import ROOT

COLUMNS, PORTION = 20, 50_000
TABLES = {"numbers": (0, "20 numbers"), "categories": (4, "16 numbers and 4 categories of 5 texts")}
ENGINES = {"ceiling": "ceiling: InferenceSession.run in memory, portions, two workers", "run": "InferenceSession.run in memory, one thread", "run_intra": "InferenceSession.run in memory, two intra-op threads",
           "sklearn": "scikit-learn, predict_proba in memory", "ours": "churn_nb, parquet to parquet, two workers", "ours_one": "churn_nb, parquet to parquet, one worker",
           "ours_intra": "churn_nb, one worker, two intra-op threads", "ours_csv": "churn_nb, CSV to parquet, two workers", "ours_reasons": "churn_nb, parquet to parquet, with reasons"}
DISTRIBUTION = {"sklearn": "scikit-learn"}

def dictionary(kind:str):
    from churn_nb.categories import Dictionary
    c = TABLES[kind][0]
    return Dictionary([f"x{j}" for j in range(COLUMNS)], [None]*(COLUMNS - c) + [[f"value {i}" for i in range(5)]]*c)

def prepare(folder:Path, kind:str, n:int):
    "The model, the matrix and the same rows as files."
    import numpy as np, pyarrow as pa, pyarrow.csv, pyarrow.parquet as pq
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from churn_nb.export import OneHot, to_onnx
    d, rng = dictionary(kind), np.random.default_rng(0)
    def rows(n):
        X = rng.normal(size=(n, COLUMNS)).astype(np.float32)
        for j in d.texts: X[:, j] = rng.integers(0, 5, n)
        return X
    X, trees = rows(20_000), HistGradientBoostingClassifier(max_iter=100, random_state=0)
    y = X[:, 0] + X[:, 1]*X[:, 2] + (X[:, -1] > 1) + rng.normal(size=len(X)) > .8
    model = (make_pipeline(OneHot(d), trees) if d.any else trees).fit(X, y)
    (folder/"model.onnx").write_bytes(to_onnx(model, COLUMNS))
    (folder/"model.pickle").write_bytes(pickle.dumps(model)) # read by this script's own processes only
    np.save(folder/"X.npy", X := rows(n))
    t = pa.table({"customer": np.arange(n)} | {name: pa.array(v) for name, v in d.decode(X).items()})
    pq.write_table(t, folder/"in.parquet")
    pyarrow.csv.write_csv(t, folder/"in.csv")
    np.save(folder/"p.npy", model.predict_proba(X)[:, 1])

def session(folder:Path, threads:int):
    import onnxruntime as ort
    o = ort.SessionOptions()
    o.intra_op_num_threads = threads
    return ort.InferenceSession(folder/"model.onnx", o, providers=["CPUExecutionProvider"])

def bare(folder:Path, d, workers:int, intra:int):
    "A function to be timed: from the matrix to its probabilities."
    import numpy as np
    s, X = session(folder, intra), np.load(folder/"X.npy")
    one = lambda x: s.run(["probability"], d.feed(x))[0]
    if workers == 1: return lambda: one(X)
    def run():
        with ThreadPoolExecutor(workers) as pool: return np.concatenate([*pool.map(one, [X[i:i + PORTION] for i in range(0, len(X), PORTION)])])
    return run

def ours(folder:Path, d, workers:int=2, intra:int=1, source:str="in.parquet", reasons:int=0):
    "A function to be timed: from file to file."
    import pyarrow.parquet as pq
    from churn_nb.scoring import score_file
    s = session(folder, intra)
    features = [SimpleNamespace(name=n, nullable=False, values=v, type="string" if v else "float32") for n, v in zip(d.names, d.values)]
    card = SimpleNamespace(features=features, reference=[v[0] if v else 0. for v in d.values], threshold=.5, version="1", run_id="bench", dataset="bench", files={})
    model, settings = SimpleNamespace(manifest=card, predict=lambda X: s.run(["probability"], d.feed(X))[0]), SimpleNamespace(data=SimpleNamespace(dataset="bench", description=None))
    def run():
        done = score_file(settings, model, folder/source, folder/"out.parquet", reasons=reasons, threads=workers, portion=PORTION)
        assert done.rejected == 0
        return lambda: pq.read_table(folder/"out.parquet", columns=["probability"])["probability"].to_numpy()
    return run

def sklearn(folder:Path, d):
    import numpy as np
    model, X = pickle.loads((folder/"model.pickle").read_bytes()), np.load(folder/"X.npy")
    return lambda: model.predict_proba(X)[:, 1]

MAKE = {"ceiling": lambda f, d: bare(f, d, 2, 1), "run": lambda f, d: bare(f, d, 1, 1), "run_intra": lambda f, d: bare(f, d, 1, 2), "sklearn": sklearn, "ours": ours,
        "ours_one": lambda f, d: ours(f, d, 1, 1), "ours_intra": lambda f, d: ours(f, d, 1, 2), "ours_csv": lambda f, d: ours(f, d, source="in.csv"), "ours_reasons": lambda f, d: ours(f, d, reasons=3)}

def run_here(engine:str, kind:str, folder:Path):
    "In a process of its own. Prints one line of JSON."
    import numpy as np
    work = MAKE[engine](folder, dictionary(kind))
    start = time.perf_counter()
    p = work()
    seconds = time.perf_counter() - start
    peak = int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
    p = p() if callable(p) else p
    want, package = np.load(folder/"p.npy"), DISTRIBUTION.get(engine, "onnxruntime")
    if not len(p) == len(want) or not (off := np.abs(p - want).max()) <= 1e-5: sys.exit(f"{engine}: differs from scikit-learn by {off}")
    print(json.dumps({"seconds": round(seconds, 3), "peak_mb": peak//1024, "at_risk": float((want >= .5).mean()), "version": f"{package} {importlib.metadata.version(package)}"}), flush=True)

def run(engine:str, kind:str, folder:Path) -> dict:
    env = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ}
    r = subprocess.run([sys.executable, __file__, "--run", engine, kind, folder], capture_output=True, text=True, env=env, check=False, timeout=900)
    if r.returncode: sys.exit(f"{engine}: {r.stderr.strip().splitlines()[-1:]}")
    return json.loads(r.stdout.splitlines()[-1])

def rounds(home:Path, kind:str, n:int, times:int) -> dict:
    folder, runs = home/kind, {}
    folder.mkdir()
    prepare(folder, kind, n)
    for r in range(times):
        for e in ENGINES: runs.setdefault(e, []).append(run(e, kind, folder))
        print(f"{TABLES[kind][1]}, {n:,} rows, round {r + 1}: " + ", ".join(f"{e} {x[-1]['seconds']:.2f}" for e, x in runs.items()), flush=True)
    return {"table": TABLES[kind][1], "rows": n, "runs": runs}

def markdown(found:dict) -> str:
    out = ["<!-- made by bench/score.py -->"]
    for part in found["parts"]:
        runs = part["runs"]
        ratio = lambda e: spread([x["seconds"]/y["seconds"] for x, y in zip(runs[e], runs["ceiling"])], 2)
        out += [f"### {part['rows']:,} rows of {part['table']}", table(
            ["", "seconds: median (min..max)", "times the ceiling", "rows/s", "peak memory, MB", "version"],
            [[ENGINES[e], spread([r["seconds"] for r in rs], 2), ratio(e), f"{part['rows']/statistics.median(r['seconds'] for r in rs):,.0f}", max(r["peak_mb"] for r in rs), rs[0]["version"]] for e, rs in runs.items()]),
            f"Ratios are taken within a round; rounds: {len(runs['ours'])}. {runs['ours'][0]['at_risk']:.0%} of the rows are at risk and get reasons in the last line: one more pass over them for each feature that differs from the reference."]
        middle = {e: statistics.median(r["seconds"] for r in runs[e]) for e in ("ours", "ours_intra")}
        best = min(middle, key=middle.get)
        out.append(f"In parallel: two workers with a thread each take {middle['ours']:.1f} s, one worker whose session has two intra-op threads {middle['ours_intra']:.1f} s; "
                   + ("the first is the default." if best == "ours" else "the first is the default all the same: it was slower here."))
    out.append("The model: HistGradientBoostingClassifier, 100 trees, exported as every model here. In-memory lines hold the whole matrix, so their memory is no comparison.")
    return "\n\n".join([*out, where(found)]) + "\n"

def plot(found:dict, path:Path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for ax, part in zip(axes, found["parts"]):
        for i, e in enumerate(reversed(ENGINES)):
            s = statistics.median(r["seconds"] for r in part["runs"][e])
            ax.barh(i, s, color="#0072B2" if e.startswith("ours") else "black" if e == "ceiling" else "#E69F00", height=.7)
            ax.annotate(f"{s:.1f} s", (s, i), (3, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set_yticks(range(len(ENGINES)), [*reversed(ENGINES.values())], fontsize=7)
        ax.set(xlabel="seconds (median)", title=f"{part['rows']:,} rows of {part['table']}")
        ax.title.set_size(9)
        ax.margins(x=.15)
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=90)
    assert path.stat().st_size <= 60_000

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="for CI")
    p.add_argument("--rounds", type=int, default=5); p.add_argument("--out", type=Path)
    p.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.run: return run_here(a.run[0], a.run[1], Path(a.run[2]))
    out = a.out or (Path(tempfile.mkdtemp()) if a.quick else Path(__file__).parent)
    found = {"machine": machine(), "command": "python bench/score.py" + (" --quick" if a.quick else f" --rounds {a.rounds}" if a.rounds != 5 else ""), "measured": f"{datetime.now(timezone.utc):%F}"}
    for folder in (out, ROOT/".bench"): folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT/".bench") as tmp: # on disk; /tmp may be memory
        found["parts"] = [rounds(Path(tmp), kind, 20_000 if a.quick else 10**6, 1 if a.quick else a.rounds) for kind in TABLES]
    (out/"score.json").write_text(json.dumps(found, indent=1) + "\n")
    (out/"score.md").write_text(markdown(found))
    plot(found, out/"score.png")
    print(markdown(found), f"\n{out}/score.json, score.md, score.png", sep="")

if __name__ == "__main__": main()
