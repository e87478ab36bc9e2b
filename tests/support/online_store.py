"A store of real customers, models that read it, and the commands about it in this process."
import numpy as np, pandas as pd, pytest
from churn_nb.core.manifest import Feature, SelfTest, Store
from churn_nb.registry.bundle import switch_current, write_bundle
from churn_nb.cli.app import main
from churn_nb.core.workspace import Workspace
from serving import Server, W, manifest, onnx_model

NAMES = ["transactions_total", "transactions_24h", "spend_90d", "transactions_90d", "recency_days"]

def model_of(ws, names=NAMES, scale=.1):
    "A bundle that answers sigmoid(scale w x), with customers from the store; windows may be missing."
    w = np.resize(W, len(names)).astype(np.float64)*scale
    features = [Feature(name=n, nullable=n.startswith(("transactions_", "spend_")) and not n.endswith("total")) for n in names]
    rows = [[1.]*len(names), [2.] + [None if g.nullable else 3. for g in features[1:]]]
    p = 1/(1 + np.exp(-(np.nan_to_num(np.array(rows, float)) @ w)))
    m = manifest(features=features, reference=None, example=dict(zip(names, rows[0])), self_test=SelfTest(rows=rows, probability=p.tolist()),
                 store=Store(entity="customer_id", feature_service="churn_v1_stored"))
    write_bundle(Workspace(ws).bundles, onnx_model(k=len(names), scale=scale), m)
    switch_current(Workspace(ws).bundles, "1")

def total_in(answer, scale=.1):
    "transactions_total, from what a model of that one feature says."
    p = answer["probability"]
    return round(np.log(p/(1 - p))/(float(W[0])*scale), 2)

def api_on(settings, **serve):
    "A real server process on a workspace and its online store."
    more = {"stores.online": settings.stores.online, **{f"serve.{k}": v for k, v in serve.items()}}
    class OnStore(Server): code = Server.code.replace("json.loads(sys.argv[1])", f"json.loads(sys.argv[1]) | {more!r}")
    return OnStore(settings.paths.workspace)

def churn(capsys, *args):
    "The command in this process: exit code, stdout, stderr."
    with pytest.raises(SystemExit) as e: main([str(a) for a in args])
    said = capsys.readouterr()
    return e.value.code or 0, said.out, said.err

def customers(s): return sorted(pd.read_parquet(Workspace(s.paths.workspace).feast/"base.parquet").customer_id.unique().tolist())

def bits(df, names=None):
    "Values as the 32 bits they are; nan is one pattern."
    x = np.ascontiguousarray((df if names is None else df[names]).to_numpy("float32"))
    return np.where(np.isnan(x), np.uint32(0x7fc00000), x.view("uint32"))
