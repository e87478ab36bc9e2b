"""INT8 against floats: time, size and decisions of a network in static int8 (this project's), dynamic int8 (the tutorials') and float32.

    python bench/quantize.py            all of it
    python bench/quantize.py --quick    the smallest network, two batches, one round, into a temporary folder

The ceiling is the CPU's own: one bare product of matrices in 8 bits (`MatMulInteger`) against the same one in floats, shape by shape, in the same round. A network
can't gain more than its products do. One thread; in a round all files and both products take turns, and ratios are taken within it. Networks are
trained for two passes on CDNOW's customers: enough for their decisions to be compared, too little to serve. Writes quantize.json, quantize.md and quantize.png.
"""
import json, statistics, subprocess, sys, tempfile, warnings
from pathlib import Path
from peers import ROOT
from report import exponent, folder, goal, options, peak_mb, recorded, spread, table, where, write

KINDS = {"float32": "float32", "static": "static int8 (churn_nb)", "dynamic": "dynamic int8"}
BATCHES, WIDTHS = (1, 10, 100, 1000, 10_000), (64, 256, 1024)
CARD = {"smaller": 4, "loss": .01} # what is said of int8: 4x smaller, less than 1 % of accuracy lost

def product(width:int, integers:bool) -> bytes:
    "A graph of one product, [N, width] x [width, width]."
    import numpy as np
    from onnx import TensorProto as T, helper, numpy_helper
    rng = np.random.default_rng(0)
    W = rng.integers(-64, 65, (width, width)).astype(np.int8)
    io = lambda name, kind: helper.make_tensor_value_info(name, kind, ["N", width])
    kinds = (T.UINT8, T.INT32) if integers else (T.FLOAT, T.FLOAT)
    node = helper.make_node("MatMulInteger" if integers else "MatMul", ["features", "W"], ["y"])
    graph = helper.make_graph([node], "product", [io("features", kinds[0])], [io("y", kinds[1])], [numpy_helper.from_array(W if integers else W.astype(np.float32), "W")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()

def timed(sessions:dict, feeds:dict, at_least:float) -> dict[str, float]:
    "Seconds of one run of each, in turns."
    import time
    out = {}
    for name, s in sessions.items():
        n, start = 0, time.perf_counter()
        while (now := time.perf_counter()) - start < at_least or not n: s.run(None, feeds[name]); n += 1
        out[name] = (now - start)/n
    return out

def rounds(width:int, batches, times:int, at_least:float=.05) -> dict:
    "In a process of its own: everything about networks of two hidden layers of this width."
    import numpy as np, onnxruntime as ort
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from churn_nb.modeling.onnx_export import LogScale, onnx_predict, to_onnx
    from churn_nb.features import build, feature_names, training_rows
    from churn_nb.modeling.quantization import instruction_sets, precision_cost, quantize_dynamic, quantize_static
    from churn_nb.core.settings import load_settings
    from churn_nb.train import fit, matrices
    with tempfile.TemporaryDirectory() as ws:
        s = load_settings({"paths.workspace": ws, "paths.data": str(ROOT/"data")}, environ={})
        names = feature_names(s)
        build(s, 1000)
        data = matrices(training_rows(s), names)
    (X, y), (T, t) = data["train"][:2], data["test"][:2]
    net = fit(make_pipeline(LogScale(), MLPClassifier((width, width), batch_size=256, max_iter=2, random_state=0)), X, y)
    files = {"float32": to_onnx(net, len(names))}
    files |= {"static": quantize_static(files["float32"], X), "dynamic": quantize_dynamic(files["float32"])}
    o = ort.SessionOptions()
    o.intra_op_num_threads, o.log_severity_level = 1, 3
    threshold, p = s.train.decision_threshold(), onnx_predict(files["float32"], T)
    cost = {k: {"bytes": len(f), **precision_cost(t, p, onnx_predict(f, T), threshold)} for k, f in files.items()}
    graphs = files | {"product float32": product(width, False), "product int8": product(width, True)}
    sessions = {k: ort.InferenceSession(g, o, providers=["CPUExecutionProvider"]) for k, g in graphs.items()}
    took = {}
    for b in batches:
        rows, wide = np.resize(T, (b, len(names))).astype(np.float32), np.resize(np.arange(256, dtype=np.uint8), (b, width))
        feeds = {k: {"features": wide if k == "product int8" else wide.astype(np.float32) if k == "product float32" else rows} for k in graphs}
        timed(sessions, feeds, 0)
        took[b] = [timed(sessions, feeds, at_least) for _ in range(times)]
    return {"width": width, "test_rows": len(T), "cost": cost, "took": took, "peak_mb": peak_mb(), "sets": instruction_sets()}

def times_faster(part:dict, batch, kind:str, than:str="float32") -> list[float]:
    return [r[than]/r[kind] for r in part["took"][str(batch)]]

def goals(found:dict) -> list[list]:
    big, names = found["parts"][-1], "x".join([str(found["parts"][-1]["width"])]*2)
    smaller = big["cost"]["float32"]["bytes"]/big["cost"]["static"]["bytes"]
    loss = max(part["cost"]["static"]["accuracy_loss"] for part in found["parts"])
    out = [goal(f"int8 file, {names}", f">= {CARD['smaller']} x smaller (3.8 counts: the graph around the weights stays)", f"{smaller:.2f} x", smaller >= .95*CARD['smaller']),
           goal("accuracy lost by static int8, all widths", f"< {CARD['loss']:.0%}", f"{loss:.2%}", loss < CARD["loss"])]
    batch = next(b for b in reversed(BATCHES) if str(b) in big["took"])
    ours, most = (statistics.median(x) for x in (times_faster(big, batch, "static"), times_faster(big, batch, "product int8", "product float32")))
    return [*out, goal(f"static int8 against float32, {names}, batch {batch:,}", f">= 0.75 of what the CPU's own product gains ({most:.2f} x)", f"{ours:.2f} x", ours >= .75*most)]

def markdown(found:dict) -> str:
    out = ["<!-- made by bench/quantize.py -->", "### Goals, quantize", table(["", "goal", "measured", ""], goals(found)), "### Times faster than float32, one thread",
        table(["hidden layers", "batch", "float32, us", *(f"{KINDS[k]}: median (min..max)" for k in ("static", "dynamic")), "ceiling: the bare product"],
              [["{0} x {0}".format(p["width"]), f"{int(b):,}", f"{statistics.median(r['float32'] for r in rs)*1e6:.0f}", *(spread(times_faster(p, b, k)) for k in ("static", "dynamic")),
                spread(times_faster(p, b, "product int8", "product float32"))] for p in found["parts"] for b, rs in p["took"].items()]),
        "### Size and decisions", table(["hidden layers", "", "bytes", "times smaller", "accuracy lost", "decisions flipped", "largest change of a probability"],
              [["{0} x {0}".format(p["width"]), KINDS[k], f"{c['bytes']:,}", f"{p['cost']['float32']['bytes']/c['bytes']:.2f}", f"{c['accuracy_loss']:.3%}", f"{c['flipped']} of {p['test_rows']:,}", f"{c['max_dp']:.2g}"]
               for p in found["parts"] for k, c in p["cost"].items()]),
        "### Growth: exponent of the seconds", table(["", "in the rows of a batch, last decade", "in the width, at the largest batch"],
              [[KINDS[k], *g] for k, g in found["growth"].items()]),
        f"Products of weights cost width^2, so 2 is what a width's exponent tends to. Peak memory of a process: {', '.join(str(p['peak_mb']) + ' MB' for p in found['parts'])} by width. "
        f"Of interest for 8 bits the CPU has: {', '.join(found['parts'][0]['sets']) or 'nothing'}. Rounds: {len(next(iter(found['parts'][0]['took'].values())))}. " + where(found)]
    return "\n\n".join(out) + "\n"

def growth(parts:list[dict]) -> dict:
    med = lambda p, b, k: statistics.median(r[k] for r in p["took"][b])
    b = [*parts[0]["took"]]
    return {k: [exponent([(int(x), med(parts[-1], x, k)) for x in b[-2:]]), exponent([(p["width"], med(p, b[-1], k)) for p in parts]) if len(parts) > 1 else ""] for k in KINDS}

def plot(found:dict, path:Path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, len(found["parts"]), figsize=(3.2*len(found["parts"]), 3), sharey=True, layout="constrained", squeeze=False)
    for ax, p in zip(axes[0], found["parts"]):
        b = [int(x) for x in p["took"]]
        line = lambda kind, than="float32": [statistics.median(times_faster(p, x, kind, than)) for x in b]
        ax.plot(b, line("product int8", "product float32"), "k--", lw=1, label="the CPU's bare product")
        ax.plot(b, line("static"), "o-", color="#0072B2", label="static int8 (churn_nb)")
        ax.plot(b, line("dynamic"), "s-", color="#E69F00", label="dynamic int8")
        ax.axhline(1, color="grey", lw=.6)
        ax.set(xscale="log", xlabel="rows in a batch", title=f"{p['width']} x {p['width']}")
        ax.title.set_size(9)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set(ylabel="times faster than float32")
    axes[0][0].legend(frameon=False, fontsize=7)
    fig.suptitle("A network in 8 bits gains what the CPU's product of 8 bits gains, at most", size=10)
    fig.savefig(path, dpi=90)

def main():
    p = options(__doc__, 7)
    p.add_argument("--run", nargs=3, help="(of this script to itself)")
    a = p.parse_args()
    if a.run:
        warnings.simplefilter("ignore")
        return print(json.dumps(rounds(int(a.run[0]), json.loads(a.run[1]), int(a.run[2]))))
    out, found, parts = folder(a), recorded("quantize", p, a), []
    for width in WIDTHS[:1] if a.quick else WIDTHS:
        job = [str(width), json.dumps(BATCHES[1:3] if a.quick else BATCHES), str(1 if a.quick else a.rounds)]
        r = subprocess.run([sys.executable, __file__, "--run", *job], capture_output=True, text=True, check=False)
        if r.returncode: sys.exit(f"{width} x {width} failed:\n{r.stderr[-3000:]}")
        parts.append(json.loads(r.stdout.splitlines()[-1]))
        print(f"{width} x {width}: " + ", ".join(f"{k} {statistics.median(x):.2f}" for k in ("static", "dynamic") for x in [times_faster(parts[-1], [*parts[-1]['took']][-1], k)]), flush=True)
    write(out, "quantize", found | {"parts": parts, "growth": growth(parts)}, markdown, plot)

if __name__ == "__main__": main()
