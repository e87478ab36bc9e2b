"Sources of features: the factory, that its methods are what the package calls, and a third kind in one file, from build to prediction."
import ast
import inspect
import sys

import numpy as np
import pytest

from churn_nb import features as f
from churn_nb import promote, train
from churn_nb.core.errors import SettingsError
from churn_nb.core.settings import load_settings
from churn_nb.feature_store.event_source import EventLogSource
from churn_nb.feature_store.snapshots import SnapshotSource
from churn_nb.feature_store.sources import SOURCES, FeatureSource, register_source, source_of
from churn_nb.registry.deployment import deploy_champion
from churn_nb.serving.predictor import Model
from paths import ROOT

# The protocol

MEMBERS = [n for n in {**vars(FeatureSource), **FeatureSource.__annotations__} if not n.startswith("_")]

@pytest.mark.parametrize("kind", [EventLogSource, SnapshotSource])
def test_both_kinds_have_what_the_protocol_says(kind):
    for name in MEMBERS:
        there, said = getattr(kind, name), getattr(FeatureSource, name, None)
        if said is None: continue # an attribute
        have, want = (list(inspect.signature(m).parameters.values()) for m in (there, said))
        takes_all = any(p.kind is p.VAR_KEYWORD for p in have)
        assert {p.name for p in want} <= {p.name for p in have} or takes_all, name
        assert inspect.getdoc(there) and inspect.getdoc(said), name

def test_the_kind_is_read_by_the_factory_alone():
    "No other module of the package looks at `settings.data.kind`, or at the kind of a description."
    readers = {}
    for path in (ROOT/"churn_nb").rglob("*.py"):
        for n in ast.walk(ast.parse(path.read_text())):
            if isinstance(n, ast.Attribute) and n.attr == "kind" and ast.unparse(n.value) in ("settings.data", "self.settings.data", "s.data"):
                readers.setdefault(str(path.relative_to(ROOT/"churn_nb")), []).append(n.lineno)
    assert [*readers] == ["feature_store/sources.py"], readers

# The factory

def test_a_kind_is_a_registered_name_or_a_class_of_a_module(tmp_path, configured, monkeypatch):
    assert isinstance(source_of(configured(tmp_path)), EventLogSource)
    assert isinstance(source_of(configured(tmp_path, data__kind="snapshot")), SnapshotSource)
    assert isinstance(source_of(configured(tmp_path, data__kind="churn_nb.feature_store.snapshots:SnapshotSource")), SnapshotSource)
    for kind, why in (("stream", "expected events, snapshot, or package.module:Class"), ("no_such_module:X", "no_such_module"), ("churn_nb.features:NoSuchSource", "NoSuchSource")):
        with pytest.raises(SettingsError, match=why) as e: source_of(configured(tmp_path, data__kind=kind))
        assert "\n" not in str(e.value) and kind in str(e.value)
    monkeypatch.setattr("churn_nb.feature_store.sources.SOURCES", SOURCES.copy())

def test_a_registered_class_is_found_by_its_name(tmp_path, configured, monkeypatch):
    monkeypatch.setitem(SOURCES, "mine", None)
    assert register_source("mine")(SnapshotSource) is SnapshotSource
    assert isinstance(source_of(configured(tmp_path, data__kind="mine")), SnapshotSource)

# A third kind, in one file that knows nothing of the other two

TOY = '''
import numpy as np
import pandas as pd
from churn_nb.core.workspace import Workspace
from churn_nb.feature_store.event_log import log_hash
from churn_nb.feature_store.split_planning import customer_folds

class ToySource:
    "Customers with two features, of which one says how probable it is that they leave."
    accepts_events, has_purchases, min_samples_leaf, max_leaf_nodes = False, False, 20, 8

    def __init__(self, settings): self.settings = settings
    def names(self): return ["mood", "noise"]
    def expiring(self): return []
    def descriptions(self): return {"mood": "how content the customer is, 0 to 1", "noise": "nothing"}
    def customer_key(self): return None
    def is_built(self): return self._file().exists()
    def _file(self): return Workspace(self.settings.paths.workspace).feast/"toy.parquet"
    def build(self, customers=0):
        rng, n = np.random.default_rng(0), customers or 3000
        rows = pd.DataFrame({"customer_id": np.arange(n), "mood": rng.random(n), "noise": rng.random(n)}).astype({"mood": "float32", "noise": "float32"})
        rows["event_timestamp"] = pd.Timestamp("2025-01-01", tz="UTC")
        rows["churn"] = (rng.random(n) < .02 + .96/(1 + np.exp(12*(rows.mood - .5)))).astype("int8")
        rows["split"] = np.array(["train", "train", "train", "validation", "test"])[np.arange(n) % 5]
        rows.to_parquet(self._file())
        return {"data_hash": log_hash(self.settings), "events": n, "customers": n, "features": self.names(),
                "rows": rows.split.value_counts().to_dict(), "churn_rate": rows.groupby("split").churn.mean().to_dict()}
    def training_rows(self): return pd.read_parquet(self._file())[["customer_id", "event_timestamp", "churn", "split", *self.names()]]
    def latest_rows(self): return self.training_rows().drop(columns=["churn", "split"]).assign(created_timestamp=lambda d: d.event_timestamp)
    def apply_store(self): return {}
    def online_rows(self, store, customer_ids, now=None): return self.latest_rows().set_index("customer_id")[self.names()].reindex(customer_ids)
    def refresh(self, store, customers=None, keep=True): return self.materialize(store)
    def materialize(self, store, **options): return len(self.training_rows())
    def parity(self, store, some=0): return len(self.training_rows()), [], 0
    def folds(self, dates, customers): return customer_folds(customers, 2)
    def baseline(self): return "base_rate"
'''

@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    (folder/"toy_source.py").write_text(TOY)
    sys.path.insert(0, str(folder))
    yield load_settings({"paths.workspace": str(folder/"ws"), "paths.data": str(ROOT/"data"), "data.kind": "toy_source:ToySource", "train.n_jobs": 1}, environ={})
    sys.path.remove(str(folder))
    sys.modules.pop("toy_source", None)

def test_a_third_kind_is_built_and_read_by_the_public_functions(toy):
    f.build(toy, 3000)
    rows = f.training_rows(toy)
    assert rows.split.value_counts().to_dict() == {"train": 1800, "validation": 600, "test": 600}
    assert f.feature_names(toy) == ["mood", "noise"] == [*f.feature_descriptions(toy)] and f.expiring_features(toy) == []
    assert [*f.latest_rows(toy, 3000).columns] == ["customer_id", "event_timestamp", "mood", "noise", "created_timestamp"]
    store = f.apply_store(toy)
    assert f.online(store, [5, 10**6], toy).mood.notna().tolist() == [True, False]
    assert f.refresh(toy, store, [5]) == f.materialize(toy, store) == 3000 and f.parity(toy, store) == (3000, [], 0)

def test_a_third_kind_is_trained_gated_and_served(toy):
    f.build(toy, 3000)
    rows = f.training_rows(toy)
    result = train.train(toy, rows)
    assert result["baseline_name"] == "base_rate" and result["test"]["auc"] > .85 > .55 > result["baseline"]["auc"] and "against_bgnbd" not in result
    decision, made = promote.run_gate(toy, rows)
    assert decision.promoted, made["checks"]
    model = Model.load(deploy_champion(toy))
    low, high = model.predict(np.array([[.95, .5], [.05, .5]], "float32"))
    assert model.manifest.names == ["mood", "noise"] and model.manifest.store is None and low < .15 < .85 < high
