"""A million rows of 20 columns scored from file to file: `churn score`'s work against scikit-learn, treelite, tl2cgen and the model's bare run.

    python bench/score.py            all of it; seconds are noisy where other programs run
    python bench/score.py --quick    a two-hundredth of the rows, one round, into a temporary folder

Every run is a process of its own, and rounds are interleaved: what disturbs one disturbs all. There are two ceilings. One is what ONNX Runtime takes for the
same matrix in memory, in the same chunks, two at a time: no file, no decision, no output. The other is the barest script from file to file: read all,
run once, write all; no check, no rejected row, no restart, and the whole file in memory. Probabilities are compared with scikit-learn's before anything is
reported. Seconds count the work, without imports and without loading the model, after a thousand rows to warm up; memory is the process's peak with all of that. tl2cgen compiles the trees
to machine code, which takes its own seconds (reported, not counted) and gcc. Writes score.json, score.md and score.png.
"""
import importlib.metadata, json, os, pickle, shutil, statistics, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from peers import ROOT, TELEMETRY_OFF, environment
from report import bars, folder, goal, growth_table, grown, options, peak_mb, recorded, spread, table, where, write

COLUMNS, CHUNK = 20, 50_000
TABLES = {"numbers": (0, "20 numbers"), "categories": (4, "16 numbers and 4 categories of 5 texts")}
ENGINES = {"ceiling": "ceiling: InferenceSession.run in memory, chunks, two workers", "files": "ceiling: the barest script, parquet to parquet, two intra-op threads", "run": "InferenceSession.run in memory, one thread", "run_intra": "InferenceSession.run in memory, two intra-op threads",
           "sklearn": "scikit-learn, predict_proba in memory", "ours": "churn_nb, parquet to parquet, two workers", "ours_one": "churn_nb, parquet to parquet, one worker",
           "ours_intra": "churn_nb, one worker, two intra-op threads", "ours_csv": "churn_nb, CSV to parquet, two workers", "ours_reasons": "churn_nb, parquet to parquet, with reasons",
           "tl2cgen": "tl2cgen in memory, two threads", "treelite": "treelite GTIL in memory, two threads"}
DISTRIBUTION = {"sklearn": "scikit-learn"}
PEERS = {"tl2cgen": "tl2cgen", "treelite": "treelite"} # of an environment of their own

def dictionary(kind:str):
    from churn_nb.data.encoding import Dictionary
    c = TABLES[kind][0]
    return Dictionary([f"x{j}" for j in range(COLUMNS)], [None]*(COLUMNS - c) + [[f"value {i}" for i in range(5)]]*c)

def prepare(folder:Path, kind:str, n:int):
    "The model, the matrix and the same rows as files."
    import numpy as np, pyarrow as pa, pyarrow.csv, pyarrow.parquet as pq
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from churn_nb.modeling.onnx_export import OneHot, to_onnx
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
    (folder/"trees.pickle").write_bytes(pickle.dumps(trees))
    np.save(folder/"X.npy", X := rows(n))
    t = pa.table({"customer": np.arange(n)} | {name: pa.array(v) for name, v in d.decode(X).items()})
    (few := folder/"few").mkdir() # to warm up with
    for to, k in ((folder, n), (few, 1000)):
        pq.write_table(t[:k], to/"in.parquet")
        pyarrow.csv.write_csv(t[:k], to/"in.csv")
        np.save(to/"X.npy", X[:k])
    for f in ("model.onnx", "model.pickle"): shutil.copy(folder/f, few)
    np.save(folder/"p.npy", model.predict_proba(X)[:, 1])
    np.save(folder/"T.npy", model[:-1].transform(X).astype(np.float32) if d.any else X) # what the trees see: categories as columns of 0 and 1

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
        with ThreadPoolExecutor(workers) as pool: return np.concatenate([*pool.map(one, [X[i:i + CHUNK] for i in range(0, len(X), CHUNK)])])
    return run

def ours(folder:Path, d, workers:int=2, intra:int=1, source:str="in.parquet", reasons:int=0):
    "A function to be timed: from file to file."
    import pyarrow.parquet as pq
    from churn_nb.batch.job import ScoreOptions, score_file
    s = session(folder, intra)
    features = [SimpleNamespace(name=n, nullable=False, values=v, missing=None, type="string" if v else "float32") for n, v in zip(d.names, d.values)]
    card = SimpleNamespace(features=features, reference=[v[0] if v else 0. for v in d.values], threshold=.5, version="1", run_id="bench", dataset="bench", files={})
    model, settings = SimpleNamespace(manifest=card, predict=lambda X: s.run(["probability"], d.feed(X))[0]), SimpleNamespace(data=SimpleNamespace(dataset="bench", description=None))
    def run():
        done = score_file(settings, model, folder/source, folder/"out.parquet", ScoreOptions(reasons=reasons, threads=workers, chunk_rows=CHUNK))
        assert done.rejected == 0
        return lambda: pq.read_table(folder/"out.parquet", columns=["probability"])["probability"].to_numpy()
    return run

def files(folder:Path, d):
    "What one writes in ten minutes."
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq
    s = session(folder, 2)
    def run():
        t = pq.read_table(folder/"in.parquet")
        X = np.column_stack([t[n].to_numpy() if v is None else np.array([v.index(x) for x in t[n].to_pylist()]) for n, v in zip(d.names, d.values)]).astype(np.float32)
        p = s.run(["probability"], d.feed(X))[0]
        pq.write_table(t.append_column("probability", pa.array(p.ravel())).append_column("churn_risk", pa.array(p.ravel() >= .5)), folder/"bare.parquet")
        return p
    return run

def trees(folder:Path):
    import treelite
    return treelite.sklearn.import_model(pickle.loads((folder/"trees.pickle").read_bytes()))

def tl2cgen(folder:Path, d):
    import numpy as np, tl2cgen
    start, X = time.perf_counter(), np.load(folder/"T.npy")
    tl2cgen.export_lib(trees(folder), toolchain="gcc", libpath=folder/"trees.so", params={"parallel_comp": 8})
    compiled, p = time.perf_counter() - start, tl2cgen.Predictor(folder/"trees.so", nthread=2)
    def run(): return p.predict(tl2cgen.DMatrix(X, dtype="float32")).ravel()
    run.more = {"compile_s": round(compiled, 2)}
    return run

def treelite(folder:Path, d):
    import numpy as np, treelite
    model, X = trees(folder), np.load(folder/"T.npy").astype(np.float64) # it wants the type of the thresholds
    return lambda: treelite.gtil.predict(model, X, nthread=2).ravel()

def sklearn(folder:Path, d):
    import numpy as np
    model, X = pickle.loads((folder/"model.pickle").read_bytes()), np.load(folder/"X.npy")
    return lambda: model.predict_proba(X)[:, 1]

MAKE = {"files": files, "tl2cgen": tl2cgen, "treelite": treelite, "ceiling": lambda f, d: bare(f, d, 2, 1), "run": lambda f, d: bare(f, d, 1, 1), "run_intra": lambda f, d: bare(f, d, 1, 2), "sklearn": sklearn, "ours": ours,
        "ours_one": lambda f, d: ours(f, d, 1, 1), "ours_intra": lambda f, d: ours(f, d, 1, 2), "ours_csv": lambda f, d: ours(f, d, source="in.csv"), "ours_reasons": lambda f, d: ours(f, d, reasons=3)}

def run_here(engine:str, kind:str, folder:Path):
    "In a process of its own. Prints one line of JSON."
    import numpy as np
    d = None if engine in PEERS else dictionary(kind)
    if d: MAKE[engine](folder/"few", d)() # what is imported late, and the first use of a thing
    work = MAKE[engine](folder, d)
    start = time.perf_counter()
    p = work()
    seconds = time.perf_counter() - start
    peak = peak_mb()
    p = p() if callable(p) else p
    want, package = np.load(folder/"p.npy"), (DISTRIBUTION | PEERS).get(engine, "onnxruntime")
    if not len(p) == len(want) or not (off := np.abs(p - want).max()) <= 1e-5: sys.exit(f"{engine}: differs from scikit-learn by {off}")
    print(json.dumps({"seconds": round(seconds, 3), "peak_mb": peak, "at_risk": float((want >= .5).mean()), "version": f"{package} {importlib.metadata.version(package)}", **getattr(work, "more", {})}), flush=True)

def run(engine:str, kind:str, folder:Path, python:str=sys.executable) -> dict:
    env = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ} | TELEMETRY_OFF | {"OMP_NUM_THREADS": "2"}
    r = subprocess.run([python, __file__, "--run", engine, kind, folder], capture_output=True, text=True, env=env, check=False, timeout=900)
    if r.returncode: sys.exit(f"{engine}: {r.stderr.strip().splitlines()[-1:]}")
    return json.loads(r.stdout.splitlines()[-1])

def rounds(home:Path, kind:str, n:int, times:int, python:dict) -> dict:
    folder, runs = home/kind, {}
    folder.mkdir()
    prepare(folder, kind, n)
    for r in range(times):
        for e, p in python.items(): runs.setdefault(e, []).append(run(e, kind, folder, p))
        print(f"{TABLES[kind][1]}, {n:,} rows, round {r + 1}: " + ", ".join(f"{e} {x[-1]['seconds']:.2f}" for e, x in runs.items()), flush=True)
    shutil.rmtree(folder)
    return {"table": TABLES[kind][1], "rows": n, "runs": runs}

def growth(home:Path, sizes:list[int], times:int) -> dict:
    "From parquet to parquet at growing sizes, two workers."
    runs = {}
    for n in sizes:
        (folder := home/str(n)).mkdir()
        prepare(folder, "numbers", n)
        runs[n] = [run("ours", "numbers", folder) for _ in range(times if n < 10**7 else 1)]
        print(f"{n:,} rows: {runs[n][0]}", flush=True)
        shutil.rmtree(folder)
    return grown(runs)

def pythons(quick:bool) -> tuple[dict, dict]:
    "Python for each engine, and why those that are missing are left out."
    out, left_out = {e: sys.executable for e in ENGINES if e not in PEERS}, {}
    if quick and not (ROOT/".bench/score/made_from").exists(): return out, dict.fromkeys(PEERS, "its environment isn't made yet; a run without --quick makes it")
    if not shutil.which("gcc"): left_out["tl2cgen"] = "it compiles with gcc, and there is none"
    try: out |= {e: str(environment("score", "bench/score.requirements.txt")) for e in PEERS if e not in left_out}
    except subprocess.CalledProcessError as e: left_out = dict.fromkeys(PEERS, f"could not be installed: {e}")
    return out, left_out

def ratio(part:dict, e:str, to:str) -> list[float]: return [x["seconds"]/y["seconds"] for x, y in zip(part["runs"][e], part["runs"][to])]

def goals(found:dict) -> list[list]:
    part = found["parts"][0]
    if part["rows"] > found["growth"]["most"]: raise ValueError("growth ends at the rows of the table at least")
    of = lambda to: [1/x for x in ratio(part, "ours", to)]
    out = [goal(f"{what}, {part['rows']:,} rows", ">= 0.95 of its speed", f"{spread(x)}", statistics.median(x) >= .95)
           for what, x in (("parquet to parquet against the bare run in memory", of("ceiling")), ("against the barest script from parquet to parquet", of("files")))]
    x, k = of("sklearn"), found["growth"]["exponent_last_decade"]
    out += [goal("against scikit-learn in memory", ">= 1 x", f"{spread(x)} x", statistics.median(x) >= 1), goal("growth in the rows, last decade", "<= ^1.1", f"^{k:.2f}", k <= 1.1)]
    return out

def markdown(found:dict) -> str:
    out = ["<!-- made by bench/score.py -->", "### Goals, score", table(["", "goal", "measured: median (min..max)", ""], goals(found))]
    for part in found["parts"]:
        runs = part["runs"]
        out += [f"### {part['rows']:,} rows of {part['table']}", table(
            ["", "seconds: median (min..max)", "times the bare run", "times the barest script", "rows/s", "peak memory, MB", "version"],
            [[ENGINES[e], spread([r["seconds"] for r in rs], 2), spread(ratio(part, e, "ceiling"), 2), spread(ratio(part, e, "files"), 2), f"{part['rows']/statistics.median(r['seconds'] for r in rs):,.0f}",
              max(r["peak_mb"] for r in rs), rs[0]["version"]] for e, rs in runs.items()]),
            f"Ratios are taken within a round; rounds: {len(runs['ours'])}. {runs['ours'][0]['at_risk']:.0%} of the rows are at risk and get reasons in one of the lines: one more pass over them for each feature that differs from the reference."]
        if "tl2cgen" in runs: out.append(f"tl2cgen compiled the trees in {statistics.median(r['compile_s'] for r in runs['tl2cgen']):.1f} s; treelite and tl2cgen get categories as columns of 0 and 1, made beforehand.")
        middle = {e: statistics.median(r["seconds"] for r in runs[e]) for e in ("ours", "ours_intra")}
        best = min(middle, key=middle.get)
        out.append(f"In parallel: two workers with a thread each take {middle['ours']:.2f} s, one worker whose session has two intra-op threads {middle['ours_intra']:.2f} s; "
                   + ("the first is the default." if best == "ours" else "the first is the default all the same: it was slower here."))
    out += ["### Growth, parquet to parquet, 20 numbers", growth_table(found["growth"], "rows", 3), *(f"**Left out: {ENGINES[e]}** ({why})." for e, why in found["left_out"].items()),
            "The model: HistGradientBoostingClassifier, 100 trees, exported as every model here. In-memory lines and the barest script hold the whole matrix, so their memory is no comparison."]
    return "\n\n".join([*out, where(found)]) + "\n"

def plot(found:dict, path:Path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for ax, part in zip(axes, found["parts"]):
        bars(ax, {ENGINES[e]: statistics.median(r["seconds"] for r in part["runs"][e]) for e in reversed(ENGINES) if e in part["runs"]}, lambda v: f"{v:.1f} s",
             xlabel="seconds (median)", title=part["table"])
        ax.title.set_size(8)
        ax.tick_params(axis="y", labelsize=7)
    fig.suptitle(f"{found['parts'][0]['rows']:,} rows scored: files cost less than the model, reasons cost more", size=10)
    fig.savefig(path, dpi=84)

def main():
    p = options(__doc__, 3)
    p.add_argument("--run", nargs=3, help="(of this script to itself)")
    a = p.parse_args()
    if a.run: return run_here(a.run[0], a.run[1], Path(a.run[2]))
    out, found = folder(a), recorded("score", p, a)
    python, left_out = pythons(a.quick)
    with tempfile.TemporaryDirectory(dir=ROOT/".bench") as tmp: # on disk; /tmp may be memory
        found["parts"] = [rounds(Path(tmp), kind, 5000 if a.quick else 10**6, 1 if a.quick else a.rounds, python) for kind in TABLES]
        sizes = [500, 5000] if a.quick else [10**4, 10**5, 10**6, 10**7]
        found["growth"] = growth(Path(tmp), sizes, 1 if a.quick else 3) | {"most": sizes[-1]}
    write(out, "score", found | {"left_out": left_out}, markdown, plot)

if __name__ == "__main__": main()
