"The smallest manifest that is whole."
from churn_nb.core.manifest import Feature, Manifest, SelfTest

def manifest(version="1", **kw):
    return Manifest(**{**dict(name="churn_predictor", version=version, run_id="r", git_sha="g", created="2026-01-01T00:00:00Z",
        dataset="demo", data_hash="md5:0",
        features=[Feature(name="age"), Feature(name="gap", nullable=True)], threshold=.5, example={"age": 1.0, "gap": None},
        self_test=SelfTest(rows=[[1.0, None]], probability=[.25])), **kw})
