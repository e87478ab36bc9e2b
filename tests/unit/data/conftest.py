"A file that is described and prepared."
import pandas as pd, pytest
from churn_nb.data.schema_inference import DescribeOptions, infer_description
from churn_nb.data.typed_table import prepare, prepare_events

@pytest.fixture
def read(tmp_path):
    "Write a table, describe and prepare it: the description and what came out."
    def of(df, name="f.csv", write=None, **how):
        file = tmp_path/name
        if name.endswith(".parquet"): df.to_parquet(file)
        else: df.to_csv(file, index=False, **(write or {}))
        d = infer_description(file, DescribeOptions(**how))
        made = (prepare_events if how.get("kind") == "events" else prepare)(d, tmp_path/"out.parquet")
        return d, pd.read_parquet(tmp_path/"out.parquet"), made
    return of
