"The guard: nothing gets to ONNX Runtime that is not a plain model, and what our own export makes always does."
import subprocess, sys, textwrap, threading, warnings
import numpy as np, onnx, pytest
from hypothesis import given, settings as hyp, strategies as st
from onnx import TensorProto, helper as h
from churn_nb.core.errors import BundleError
from churn_nb.registry.onnx_validation import check_onnx, memory_bound, parse_onnx, walk_messages, memory_allowance, bundle_requirements
from deadlines import allow
from paths import SUPPORT
from serving import manifest, onnx_model, settings_for

def run(code, *args):
    p = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, args)], check=False, capture_output=True, text=True, timeout=allow(120))
    assert p.returncode == 0, p.stderr
    return p.stdout.split()

def refusal(model, m=None, **how):
    with pytest.raises(BundleError, match="^model.onnx: ") as e: check_onnx(model if isinstance(model, bytes) else model.SerializeToString(), m or manifest(), **how)
    assert "\n" not in str(e.value) and len(str(e.value)) < 400
    return str(e.value)

# --- what must pass ---

def exports():
    from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from churn_nb.modeling.onnx_export import LogScale, to_onnx
    from churn_nb.modeling.quantization import quantize_static
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3)).astype(np.float32)
    X[::7, 2] = np.nan
    y, Z = (X[:, 0] > 0).astype(int), np.nan_to_num(X)
    for model, data in ((RandomForestClassifier(5), Z), (ExtraTreesClassifier(5), Z), (HistGradientBoostingClassifier(max_iter=5), X),
                        (make_pipeline(StandardScaler(), LogisticRegression()), Z), (make_pipeline(LogScale(), MLPClassifier((32, 32, 16), max_iter=5)), X)):
        with warnings.catch_warnings(action="ignore"): f = to_onnx(model.fit(data, y), 3) # five iterations are enough here
        yield f
    yield quantize_static(f, X)

def test_every_kind_of_model_that_we_export_passes():
    for f in exports(): check_onnx(f, manifest())
    check_onnx(onnx_model(), manifest())

# --- where numbers may hide ---

def paths(d, goal, seen=()):
    "Every way through the fields of the format from one message to another, each kind of message at most once on the way."
    for f in d.fields:
        if not (t := f.message_type): continue
        if t.name == goal: yield [f]
        if t.full_name not in seen: yield from ([f, *p] for p in paths(t, goal, (*seen, t.full_name)))

def placed(path, content):
    "The small model with a message at the end of a path."
    at = model = onnx.load_from_string(onnx_model())
    for f in path:
        at = getattr(at, f.name)
        if hasattr(at, "add"): at = at.add()
    at.CopyFrom(content)
    return model

def test_external_data_is_found_anywhere_in_the_format():
    secret = TensorProto(name="s", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    secret.external_data.add(key="location", value="/etc/passwd")
    half = TensorProto(name="s", data_type=1, dims=[1], float_data=[1.])
    half.external_data.add(key="location", value="/etc/passwd") # without saying that it is external
    found = list(paths(onnx.ModelProto.DESCRIPTOR, "TensorProto"))
    assert len(found) > 30 and {"functions", "training_info", "sparse_initializer", "tensors", "graphs"} <= {f.name for p in found for f in p}
    for path in found:
        for t in (secret, half): assert "external data" in refusal(placed(path, t)), [f.name for f in path]

def test_no_graph_and_no_function_inside_of_a_graph():
    g = h.make_graph([h.make_node("Identity", ["w"], ["v"])], "g", [], [])
    for path in paths(onnx.ModelProto.DESCRIPTOR, "GraphProto"):
        if [f.name for f in path] == ["graph"]: continue
        refusal(placed(path, g))
    m = onnx.load_from_string(onnx_model())
    m.graph.node[0].attribute.add(name="body", g=g)
    assert "graph inside of a graph" in refusal(m)
    assert "function of its own" in refusal(placed([onnx.ModelProto.DESCRIPTOR.fields_by_name["functions"]], onnx.FunctionProto(name="f")))

@pytest.mark.parametrize("change,says", [
    (lambda t: t.dims.__setitem__(0, 10**15), "by its shape"), (lambda t: t.dims.extend([0]), "by its shape"), (lambda t: t.dims.__setitem__(0, -3), "negative"),
    (lambda t: t.float_data.append(1.), None), (lambda t: setattr(t, "data_type", 0), "of type 0"), (lambda t: setattr(t, "data_type", 17), "of type 17"),
    (lambda t: setattr(t, "raw_data", t.raw_data[:-1]), "by its shape"), (lambda t: t.ClearField("raw_data"), "holds 0"), (lambda t: t.segment.SetInParent(), "segments")])
def test_a_tensor_holds_what_its_shape_declares(change, says):
    m = onnx.load_from_string(onnx_model())
    change(next(t for t in m.graph.initializer if t.name == "w"))
    if says: assert says in refusal(m)
    else: check_onnx(m.SerializeToString(), manifest()) # ONNX Runtime reads one of the two fields, and the self test sees which

@pytest.mark.parametrize("op,domain", [("Loop", ""), ("If", ""), ("Scan", ""), ("ConstantOfShape", ""), ("Range", ""), ("Expand", ""), ("Tile", ""), ("RandomNormal", ""),
                                       ("SequenceConstruct", ""), ("StringConcat", ""), ("Attention", "com.microsoft"), ("Add", "com.microsoft"), ("PyOp", "ai.onnx.contrib"),
                                       ("LinearRegressor", "ai.onnx.ml"), ("TfIdfVectorizer", ""), ("", ""), ("Add\n", ""), ("Add", "AI.ONNX"), ("add", "")])
def test_only_known_operators(op, domain):
    m = onnx.load_from_string(onnx_model())
    m.graph.node.add(op_type=op, domain=domain)
    assert "is not one that is served" in refusal(m)

def test_versions_have_bounds_and_names_two_spellings():
    for opsets in ([("", 10**9)], [("", 8)], [("", -1)], [("", 17), ("", 99)], [("", 17), ("com.evil", 1)], [("ai.onnx.ml", 6)]):
        m = onnx.load_from_string(onnx_model())
        m.ClearField("opset_import")
        m.opset_import.extend(h.make_opsetid(*o) for o in opsets)
        refusal(m)
    for ir in (-1, 0, 3, 15, 2**60):
        m = onnx.load_from_string(onnx_model())
        m.ir_version = ir
        assert "format version" in refusal(m)
    m = onnx.load_from_string(onnx_model())
    for n in m.graph.node: n.domain = "ai.onnx"
    check_onnx(m.SerializeToString(), manifest())

def test_the_signature_is_the_manifests():
    assert "features float [N, 4], the manifest says features float [N, 3]" in refusal(onnx_model(k=4))
    assert "the manifest says x float" in refusal(onnx_model(), manifest(input="x")) and "the manifest says p float" in refusal(onnx_model(), manifest(output="p"))
    for change in (lambda g: g.input.add(name="more"), lambda g: g.output.add(name="more"), lambda g: g.ClearField("input"), lambda g: g.ClearField("output"),
                   lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 10**6), lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 11),
                   lambda g: setattr(g.input[0].type.tensor_type.shape.dim[0], "dim_value", 5), lambda g: g.input[0].type.ClearField("tensor_type"),
                   lambda g: g.input[0].type.sequence_type.elem_type.SetInParent()):
        m = onnx.load_from_string(onnx_model())
        change(m.graph)
        assert "the manifest says" in refusal(m)

def test_two_readers_cannot_differ_and_size_has_a_limit():
    assert "does not know" in refusal(onnx_model() + b"\xfa\x3e\x01x")
    g = onnx.load_from_string(onnx_model()).graph
    assert "does not know" in refusal(onnx_model() + b"\x3a\x05\xfa\x3e\x02xy") and len(g.node) == 5 # in the graph, by way of a second one that is merged
    assert "at most" in refusal(onnx_model(), max_mb=1e-4)

@given(st.data())
@hyp(max_examples=300, deadline=None)
def test_a_damaged_file_is_judged_and_never_crashes_the_judge(data):
    blob = bytearray(onnx_model())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "twice"])):
            case "flip": blob[at] ^= data.draw(st.integers(1, 255))
            case "cut": blob = blob[:at] or bytearray(b"x")
            case "twice": blob = blob[:at] + blob[at // 2:]
    try: check_onnx(bytes(blob), manifest())
    except BundleError as e: assert str(e).startswith("model.onnx: ") and "\n" not in str(e)

# --- the reader itself ---

def test_import_order_does_not_duplicate_the_onnx_classes():
    first = "from churn_nb.registry.onnx_validation import _messages; a = _messages()"
    for lines in ((first, "import onnx"), ("import onnx", first), (first, "import onnx.checker, skl2onnx"), ("import onnxruntime", first, "import onnx")):
        out = run("\n".join([*lines, "import onnx", "m = onnx.parser.parse_model('<ir_version: 8, opset_import: [\"\": 17]> g (float[N] x) => (float[N] y) { y = Abs(x) }')",
                             "onnx.checker.check_model(m); b = a.ModelProto.FromString(m.SerializeToString())",
                             "print(a.ModelProto is onnx.ModelProto, a.TensorProto is onnx.TensorProto, b == m, isinstance(b, onnx.ModelProto))"]))
        assert out == ["True"] * 4

def test_the_server_imports_no_onnx_or_protobuf_without_a_model():
    out = run("""
        import sys, churn_nb.registry.onnx_validation, churn_nb.serve
        before = [m for m in sys.modules if m.split(".")[0] in ("onnx", "google", "cryptography")]
        churn_nb.registry.onnx_validation._messages()
        print(before, sorted(m for m in sys.modules if m.split(".")[0] in ("onnx", "cryptography")))
    """)
    assert out == ["[]", "[]"]

# --- memory ---

BOMB = """
    import resource, sys
    from churn_nb.core.manifest import BundleError
    from churn_nb.registry.onnx_validation import check_onnx, memory_bound
    from serving import manifest
    data = {"nodes": b"\\x3a\\x80\\xb4\\x89\\x13" + b"\\x0a\\x00" * 20_000_000, "depth": b"\\x3a" + b"\\x80\\x80\\x80\\x80\\x08"}[sys.argv[1]]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with memory_bound(600): check_onnx(data, manifest())
    except BundleError as e: print(str(e).replace(" ", "_"), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000)
"""

@pytest.mark.parametrize("kind", ["nodes", "depth"])
def test_reading_a_file_that_expands_stops_at_the_bound(kind, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT))
    said, grown = run(BOMB, kind)
    assert said.startswith("model.onnx:_") and int(grown) < 700

def test_the_bound_holds_inside_and_is_gone_after():
    import resource
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), memory_bound(300): np.ones(10**9)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert np.ones(10**8).nbytes == 8 * 10**8 # 800 MB
    with memory_bound(300): np.ones(10**6)
    inside, order = threading.Event(), []
    def second():
        inside.wait()
        with memory_bound(300): order.append("second")
    t = threading.Thread(target=second)
    t.start()
    with memory_bound(300):
        inside.set()
        t.join(.2)
        order.append("first")
    t.join()
    assert order == ["first", "second"] and resource.getrlimit(resource.RLIMIT_AS) == before

def test_trust_is_what_load_takes(tmp_path):
    s = settings_for(tmp_path, max_model_mb=7, max_batch=9)
    assert bundle_requirements(s.serve) == {"public_key": "", "max_mb": 7., "max_batch": 9} and memory_allowance(b"x" * 10**6) == 1010

def test_parts_stop_at_the_limit_without_recursion():
    m = parse_onnx(onnx_model())
    n = len([*walk_messages(m)])
    assert len([*walk_messages(m, n)]) == n
    with pytest.raises(BundleError): [*walk_messages(m, n - 1)]
