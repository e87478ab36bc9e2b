"A small bundle with categories, by the names and values of a German table, and a formula that says what it must answer."
from pathlib import Path
import numpy as np, onnx
from onnx import TensorProto, helper as h, numpy_helper
from churn_nb.core.manifest import Feature, Manifest, SelfTest, Store
from churn_nb.registry.bundle import switch_current, write_bundle

FEATURES = [Feature(name="Vertragsart", type="string", nullable=True, values=["jährlich", "monatlich"], description="Laufzeit"),
            Feature(name="Alter", min=18, max=90, description="Jahre"),
            Feature(name="Vorwahl", type="string", values=["408", "415", "True"]), # a file's texts that JSON may send as a number or true
            Feature(name="Größe", nullable=True, min=0, max=200)]
EXAMPLE = {"Vertragsart": "monatlich", "Alter": 42., "Vorwahl": "415", "Größe": 100.}
W = {"Alter": .03, "Größe": -.01}
TABLES = {"Vertragsart": {"jährlich": -1., "monatlich": 1., None: .25, "unseen": -.5}, # what a text adds
          "Vorwahl": {"408": .5, "415": -.25, "True": .75, None: 0., "unseen": 2.}}

def expected(row):
    "The probability of a row by name."
    z = sum(w*(row[n] or 0) for n, w in W.items()) + sum(t.get(row[n], t["unseen"]) for n, t in TABLES.items())
    return 1 / (1 + np.exp(-z))

def graph(only=None):
    "`features` float [N, 2], `categories` string [N, 2] -> `probability` float [N]; only=\"categories\": without the numbers."
    const = lambda name, v: numpy_helper.from_array(np.asarray(v, np.float32), name)
    nodes, constants, parts = [], [const("zero", 0), const("w", [*W.values()])], []
    for i, f in enumerate([f for f in FEATURES if f.values]):
        size, place = len(f.values), numpy_helper.from_array(np.array(i), f"place{i}")
        table = [TABLES[f.name][v] for v in (*f.values, None, "unseen")]
        nodes += [h.make_node("Gather", ["categories", f"place{i}"], [f"text{i}"], axis=1),
                  h.make_node("LabelEncoder", [f"text{i}"], [f"row{i}"], domain="ai.onnx.ml", keys_strings=[*f.values, ""],
                              values_int64s=[*range(size + 1)], default_int64=size + 1),
                  h.make_node("Gather", [f"table{i}", f"row{i}"], [f"part{i}"], axis=0)]
        constants += [place, const(f"table{i}", table)]
        parts.append(f"part{i}")
    if only is None:
        nodes += [h.make_node(op, ins, [out]) for op, ins, out in (("IsNaN", ["features"], "gap"), ("Where", ["gap", "zero", "features"], "x"),
                                                                   ("MatMul", ["x", "w"], "wx"))]
        parts.append("wx")
    nodes += [h.make_node("Sum", parts, ["z"]), h.make_node("Sigmoid", ["z"], ["probability"])]
    value = lambda name, kind, *dims: h.make_tensor_value_info(name, kind, [None, *dims])
    inputs = [value("features", TensorProto.FLOAT, 2)]*(only is None) + [value("categories", TensorProto.STRING, 2)]
    g = h.make_graph(nodes, "own", inputs, [value("probability", TensorProto.FLOAT)], constants)
    m = h.make_model(g, opset_imports=[h.make_opsetid("", 17), h.make_opsetid("ai.onnx.ml", 3)], ir_version=8)
    onnx.checker.check_model(m)
    return m.SerializeToString()

def own_manifest(version="1", **kw):
    rows = [["jährlich", 20., "408", 180.], [None, 60., "415", None], ["wöchentlich", 30., "999", 10.]] # the last: unseen
    names = [f.name for f in FEATURES]
    return Manifest(**{**dict(name="churn_predictor", version=version, run_id="r", git_sha="g", created="2026-01-01T00:00:00Z", dataset="kunden",
        data_hash="md5:0", features=FEATURES, threshold=.5, example=EXAMPLE, reference=["monatlich", 40., "408", 90.],
        store=Store(entity="customer_id", feature_service="churn_v1", key="text"),
        self_test=SelfTest(rows=rows, probability=[float(expected(dict(zip(names, r)))) for r in rows])), **kw})

def put_own(workspace, version="1", model=None, **kw):
    "Write a version into a workspace and switch to it; its folder."
    write_bundle(Path(workspace)/"bundle", model or graph(), own_manifest(version, **kw))
    return switch_current(Path(workspace)/"bundle", version)
