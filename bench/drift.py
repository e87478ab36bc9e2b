"""K-S (statistic and p-value) and PSI of 10 columns, 200,000 rows against 200,000: this project against the sorting alone, SciPy, Evidently and others.

    python bench/drift.py            all of it, also at a million rows, and growth; seconds are noisy where other programs run
    python bench/drift.py --quick    a fortieth of the rows, one round, into a temporary folder

Every run is a process of its own. It reads the columns, runs the engine once on 2,000 rows (imports, caches), then is timed. Rounds are
interleaved: what disturbs one disturbs all. The ceiling are the 20 sorts that K-S by its definition needs. Statistics are compared with ours
column by column before anything is reported. Writes drift.json (every measurement), drift.md and drift.png.
"""
import importlib.metadata, json, os, statistics, subprocess, sys, tempfile, time, warnings
from pathlib import Path
from peers import ROOT, TELEMETRY_OFF, environment
from report import bars, folder, goal, growth_table, grown, options, peak_mb, recorded, spread, table, where, write

BINS = 10
COLUMNS = {"normal": lambda r, s, n: r.normal(s, 1, n), "gamma": lambda r, s, n: r.gamma(2, 50, n)*(1 + s), "log-normal": lambda r, s, n: r.lognormal(3 + s, 1, n),
           "Cauchy, heavy tails": lambda r, s, n: r.standard_cauchy(n) + s, "exponential, float32": lambda r, s, n: r.exponential(1 + s, n).astype("float32"),
           "money, rounded to cents": lambda r, s, n: r.lognormal(3 + s, .8, n).round(2), "30 % zeros": lambda r, s, n: r.gamma(2, 50, n)*(r.random(n) > .3 + s/10),
           "Poisson": lambda r, s, n: r.poisson(3 + s, n), "whole numbers to 10^6": lambda r, s, n: r.integers(0, int(1e6*(1 + s)), n),
           "normal, 5 % missing": lambda r, s, n: r.normal(s, 1, n)}
ENGINES = {"sorts": "ceiling: numpy sorts all 20 columns", "ours": "churn_nb, one thread", "ours2": "churn_nb, two threads", "plain": "two sorts and searchsorted",
           "scipy": "SciPy, loop of ks_2samp", "evidently_ks": "Evidently, K-S preset", "evidently_psi": "Evidently, PSI preset", "alibi": "alibi-detect, KSDrift",
           "frouros_ks": "frouros, KSTest", "frouros_psi": "frouros, PSI", "nannyml": "NannyML, kolmogorov_smirnov"}
GIVES = {"sorts": "", "ours": "D, p, PSI", "ours2": "D, p, PSI", "plain": "D, PSI", "evidently_ks": "p", "evidently_psi": "PSI", "frouros_psi": "PSI", "nannyml": "D"} # the others: D, p
DISTRIBUTION = {"ours": "numpy", "ours2": "numpy", "sorts": "numpy", "plain": "numpy", "evidently_ks": "evidently", "evidently_psi": "evidently", "alibi": "alibi-detect",
                "frouros_ks": "frouros", "frouros_psi": "frouros"}
PEERS = {"alibi": "alibi-detect", "frouros_ks": "frouros", "frouros_psi": "frouros", "nannyml": "nannyml"}

# The engines: (reference, current), name -> column -> a function to be timed that gives [D, p, PSI] a column, None for what it doesn't give

def sorts(ref, cur):
    import numpy as np
    def run():
        np.empty(1 << 21) # as in `tally`: memory stays with the process
        for side in (ref, cur):
            for v in side.values(): np.sort(v)
        return []
    return run

def ours(ref, cur, threads=1):
    from concurrent.futures import ThreadPoolExecutor
    from churn_nb.monitoring.empirical_cdf import tally
    def one(k): return [(t := tally(ref[k], cur[k], BINS)).statistic, t.pvalue, t.psi]
    def many():
        with ThreadPoolExecutor(threads) as pool: return list(pool.map(one, ref)) # numpy lets go of the interpreter's lock while it counts and sorts
    return many if threads > 1 else lambda: [one(k) for k in ref]

def ours2(ref, cur): return ours(ref, cur, 2)

def plain(ref, cur):
    import numpy as np
    from churn_nb.monitoring.statistical_tests import psi_of_shares, shares
    def one(x, y):
        (x, y), gone = [np.sort(v[~np.isnan(v)]) for v in (x, y)], [int(np.isnan(v).sum()) for v in (x, y)]
        z = np.concatenate([x, y])
        H = np.abs(np.searchsorted(x, z, "right")*len(y) - np.searchsorted(y, z, "right")*len(x)).max()
        q = x[np.maximum(-(-np.arange(BINS + 1)*len(x)//BINS) - 1, 0)]
        tied, cut = np.unique(q[1:][q[1:] == q[:-1]]), np.unique(q[1:-1])
        count = lambda v, g: np.diff(np.concatenate([[0], np.sort(np.append(np.searchsorted(v, tied), np.searchsorted(v, cut, "right"))), [len(v), len(v) + g]]))
        return [H/(len(x)*len(y)), None, psi_of_shares(*shares(count(x, gone[0]), count(y, gone[1])))]
    return lambda: [one(ref[k], cur[k]) for k in ref]

def scipy(ref, cur):
    from scipy.stats import ks_2samp
    def one(x, y):
        r = ks_2samp(x[x == x], y[y == y])
        return [r.statistic, r.pvalue, None]
    return lambda: [one(ref[k], cur[k]) for k in ref]

def evidently(ref, cur, method):
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset
    side = lambda columns: Dataset.from_pandas(pd.DataFrame(columns).astype(float), DataDefinition(numerical_columns=list(columns)))
    def run():
        found = Report([DataDriftPreset(num_method=method)]).run(side(cur), side(ref)).dict()["metrics"]
        p = {m["config"]["column"]: float(m["value"]) for m in found if m["metric_name"].startswith("ValueDrift")}
        return [[None, p[k], None] if method == "ks" else [None, None, None] for k in ref] # its PSI has bins of its own
    return run

def evidently_ks(ref, cur): return evidently(ref, cur, "ks")

def evidently_psi(ref, cur): return evidently(ref, cur, "psi")

def alibi(ref, cur):
    import numpy as np
    from alibi_detect.cd import KSDrift
    X, Y = (np.column_stack([np.nan_to_num(v.astype(float)) for v in side.values()]) for side in (ref, cur)) # it has no missing values
    def run():
        data = KSDrift(X, p_val=.05).predict(Y)["data"]
        return [[D, p, None] if not k.endswith("missing") else [None]*3 for k, D, p in zip(ref, data["distance"].tolist(), data["p_val"].tolist())]
    return run

def frouros(ref, cur, make, read):
    def one(x, y):
        detector = make()
        detector.fit(X=x[x == x])
        return read(detector.compare(X=y[y == y])[0])
    return lambda: [one(ref[k], cur[k]) for k in ref]

def frouros_ks(ref, cur):
    from frouros.detectors.data_drift import KSTest
    return frouros(ref, cur, KSTest, lambda r: [float(r.statistic), float(r.p_value), None])

def frouros_psi(ref, cur):
    from frouros.detectors.data_drift import PSI
    return frouros(ref, cur, lambda: PSI(num_bins=BINS), lambda r: [None]*3) # bins of its own

def nannyml(ref, cur):
    import nannyml as nml, pandas as pd
    X, Y = (pd.DataFrame(side).astype(float) for side in (ref, cur))
    def run():
        calc = nml.UnivariateDriftCalculator(column_names=list(ref), continuous_methods=["kolmogorov_smirnov"], chunk_number=1)
        calc.fit(X)
        calc.calculate(Y)
        return [[None]*3 for _ in ref] # it cuts large samples into bins
    return run

# One run

def make_columns(folder:Path, n:int) -> Path:
    import numpy as np
    rng, path = np.random.default_rng(0), folder/f"columns-{n}.npz"
    sides = {side: {k: f(rng, shift, n) for k, f in COLUMNS.items()} for side, shift in (("ref", 0), ("cur", .02))}
    for columns in sides.values(): columns["normal, 5 % missing"][rng.random(n) < .05] = np.nan
    np.savez(path, **{f"{side}/{k}": v for side, columns in sides.items() for k, v in columns.items()})
    return path

def run_here(engine:str, path:str):
    "In a process of its own: time one engine; quick ones several times, and the median is taken. Prints one line of JSON."
    import numpy as np
    warnings.simplefilter("ignore")
    data = np.load(path)
    ref, cur = ({k: data[f"{side}/{k}"] for k in COLUMNS} for side in ("ref", "cur"))
    few = lambda columns: {k: v[:2000] for k, v in columns.items()}
    globals()[engine](few(ref), few(cur))()
    seconds, work = [], globals()[engine](ref, cur)
    while sum(seconds) < 1 and len(seconds) < 15:
        start = time.perf_counter()
        values = work()
        seconds.append(time.perf_counter() - start)
    package = DISTRIBUTION.get(engine, engine)
    print(json.dumps({"seconds": round(statistics.median(seconds), 5), "repeats": len(seconds), "peak_mb": peak_mb(), "values": values, "version": f"{package} {importlib.metadata.version(package)}"}))

def run(engine:str, path:Path, python:str) -> dict:
    env = {k: os.environ[k] for k in ("PATH", "HOME") if k in os.environ} | TELEMETRY_OFF | {"NML_DISABLE_USAGE_LOGGING": "1", "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    r = subprocess.run([python, __file__, "--run", engine, path], capture_output=True, text=True, env=env, check=False, timeout=900)
    if r.returncode: raise RuntimeError(" ".join((r.stderr.strip().splitlines() or ["no message"])[-1].split())[:200])
    return json.loads(r.stdout.splitlines()[-1])

def check(engine:str, values:list, ours:list):
    "D to 1e-12 and p to 1e-5 (ours is asymptotic above 10,000 rows), PSI to 1e-12; what an engine doesn't give is None."
    for k, theirs, mine in zip(COLUMNS, values, ours):
        for a, b, eps in zip(theirs, mine, (1e-6 if engine == "alibi" else 1e-12, 1e-5, 1e-12)): # alibi-detect keeps float32
            if a is not None and abs(a - b) > eps: sys.exit(f"{engine} differs from ours in {k}: {theirs} against {mine}")

def peers() -> tuple[dict, dict]:
    "Python for each engine of another environment, and why those that are missing are left out."
    try: python = str(environment("drift", "bench/drift.requirements.txt"))
    except subprocess.CalledProcessError as e: return {}, {p: f"could not be installed: {e}" for p in PEERS}
    return dict.fromkeys(PEERS, python), {}

def growth(folder:Path, sizes:list[int], times:int) -> dict:
    "Ours on one thread, at growing numbers of rows a side; the memory of a process holds its columns, too."
    runs = {}
    for n in sizes:
        path = make_columns(folder, n)
        runs[n] = [{k: v for k, v in run("ours", path, sys.executable).items() if k in ("seconds", "peak_mb")} for _ in range(times)]
        print(f"{n:,} rows: {runs[n][0]}", flush=True)
        path.unlink()
    return grown(runs)

def rounds(folder:Path, n:int, times:int, engines:dict) -> dict:
    path, runs, left_out = make_columns(folder, n), {}, {}
    for r in range(times):
        for e, python in engines.items():
            if e in left_out: continue
            try: found = run(e, path, python)
            except (RuntimeError, subprocess.TimeoutExpired) as why:
                left_out[e] = str(why)
                continue
            values = found.pop("values")
            if e == "ours": mine = values
            if values: check(e, values, mine)
            runs.setdefault(e, []).append(found)
        print(f"{n:,} rows, round {r + 1}: " + ", ".join(f"{e} {x[-1]['seconds']:.3f}" for e, x in runs.items()), flush=True)
    path.unlink()
    return {"rows": n, "runs": runs, "left_out": left_out}

def ratio(part:dict, a:str, b:str) -> list[float]: return [x["seconds"]/y["seconds"] for x, y in zip(part["runs"][a], part["runs"][b])]

def goals(found:dict) -> list[list]:
    out, first, mid = [], found["parts"][0], statistics.median
    for part in found["parts"]:
        x = ratio(part, "ours", "sorts")
        out.append(goal(f"K-S, p and PSI on one thread against the 20 sorts, {part['rows']:,} rows", "<= 0.65 x (1.5 x is the floor)", f"{spread(x)} x", mid(x) <= .65))
    for e, least in (("scipy", 40), ("evidently_ks", 150)):
        if e in first["runs"]: out.append(goal(f"against {ENGINES[e]}, {first['rows']:,} rows", f">= {least} x faster", f"{spread(x := ratio(first, e, 'ours'), 1)} x", mid(x) >= least))
    k = found["growth"]["exponent_last_decade"]
    return [*out, goal("growth in the rows, last decade", "<= ^1.1", f"^{k:.2f}", k <= 1.1)]

def markdown(found:dict) -> str:
    out = ["<!-- made by bench/drift.py -->", "### Goals, drift", table(["", "goal", "measured: median (min..max)", ""], goals(found))]
    for part in found["parts"]:
        runs = part["runs"]
        times = lambda a, b: spread(ratio(part, a, b))
        out += [f"### 10 columns, {part['rows']:,} rows against {part['rows']:,}", table(
            ["", "gives", "seconds: median (min..max)", "times the 20 sorts", "times ours, one thread", "version"],
            [[ENGINES[e], GIVES.get(e, "D, p"), spread([r["seconds"] for r in rs], 4), times(e, "sorts"), times(e, "ours"), rs[0]["version"]] for e, rs in runs.items()]),
            f"Ratios are taken within a round; rounds: {len(runs['ours'])}.", *(f"**Left out: {ENGINES[e]}** ({why})." for e, why in part["left_out"].items())]
    out += ["### Growth, one thread", growth_table(found["growth"], "rows a side"), "Columns: " + "; ".join(COLUMNS) + ". D, p and PSI are compared with ours before this table is made; Evidently's, frouros' and NannyML's bins are their own, so their PSI or binned D can't be.", where(found)]
    return "\n\n".join(out) + "\n"

def plot(found:dict, path:Path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    runs = found["parts"][0]["runs"]
    seconds = {ENGINES[e]: statistics.median(r["seconds"] for r in rs) for e, rs in runs.items()}
    fig, ax = plt.subplots(figsize=(6.8, 3.6), layout="constrained")
    bars(ax, dict(sorted(seconds.items(), key=lambda x: -x[1])), lambda v: f"{v:.3g} s", xscale="log", xlabel="seconds, one run over all columns (median)",
         title=f"K-S and PSI of 10 columns, {found['parts'][0]['rows']:,} rows a side")
    fig.savefig(path, dpi=100)

def main():
    p = options(__doc__)
    p.add_argument("--run", nargs=2, help="(of this script to itself)")
    a = p.parse_args()
    if a.run: return run_here(*a.run)
    out, found = folder(a), recorded("drift", p, a)
    here = {e: sys.executable for e in ("ours", "sorts", "ours2", "plain", "scipy", "evidently_ks", "evidently_psi")}
    others, left_out = ({}, {}) if a.quick else peers()
    with tempfile.TemporaryDirectory(dir=ROOT/".bench") as tmp: # on disk; /tmp may be memory
        found["parts"] = [rounds(Path(tmp), 5000 if a.quick else 200_000, 1 if a.quick else a.rounds, here | others)]
        if not a.quick: found["parts"].append(rounds(Path(tmp), 10**6, 3, {e: here[e] for e in ("ours", "sorts", "ours2", "plain", "scipy")}))
        found["growth"] = growth(Path(tmp), [1000, 10_000] if a.quick else [10**4, 10**5, 10**6, 10**7], 1 if a.quick else 3)
    found["parts"][0]["left_out"] |= left_out
    write(out, "drift", found, markdown, plot)

if __name__ == "__main__": main()
