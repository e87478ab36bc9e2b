"Small tables of customers and purchases, as people send them."
import numpy as np, pandas as pd

N = 300

def customers(**more):
    "A table of customers; further columns by name."
    rng = np.random.default_rng(0)
    left = rng.random(N) < .3
    return pd.DataFrame({"id": [f"k{i}" for i in range(N)], "x": rng.normal(size=N).round(3), "plan": rng.choice(["a", "b", "c"], N),
                         "churn": np.where(left, "yes", "no"), **more})

def purchases():
    rng = np.random.default_rng(0)
    return pd.DataFrame({"customer": rng.integers(0, 30, 500), "at": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.integers(0, 9_000_000, 500)), unit="s"),
                         "amount": rng.lognormal(2, 1, 500).round(2)})
