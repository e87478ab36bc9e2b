"Any name of a column, a file or a workspace is a name: no SQL, no pattern of paths, no HTML, no shell."
import csv, html.parser, json, os, shlex, subprocess
import numpy as np, pandas as pd, pyarrow as pa, pytest
from hypothesis import HealthCheck, given, settings as rules, strategies as st
from churn_nb.batch.readers import open_model_input
from churn_nb.core.errors import WorkspaceError
from churn_nb.core.manifest import Feature
from churn_nb.core.settings import load_settings
from churn_nb.core.storage import connection, read_parquet_sql, write_parquet
from churn_nb.core.workspace import Workspace
from churn_nb.data.datasets import ColumnContract, check_csv
from churn_nb.data.dataset_toml import read_description, write_description
from churn_nb.data.schema_inference import DescribeOptions, infer_description
from churn_nb.data.tabular_reader import read_chunks
from churn_nb.data.typed_table import prepare
from churn_nb.data.value_parsing import read_format
from churn_nb.feature_store.snapshots import SnapshotSource
from churn_nb.monitoring.drift_html import as_html
from churn_nb.monitoring.drift_report import drift_report
from churn_nb.ops.run_report import short_path
from churn_nb.serving.client_codegen import curl, python_client
from churn_nb.serving.status_page import status_page_html
from own_columns import own_manifest

SIGNS = st.text(alphabet="aZ é[]{}()*?'\"`;,<>&|!#$%~=+-./:@^_0", min_size=1, max_size=8).filter(lambda s: s.strip(" .") == s)
WORDS = st.sampled_from(["group", "order", "select", "index", "table", "all", "user", 'a"b', "a'b", "x;y", "<b>", "*", "</script>", "' OR 1=1 --", "{{ 7*7 }}", "%(x)s", "$(id)", "class", "values"])
FOLDERS = st.text(alphabet="aé[]{}()*'\"`;,<>&|!#$%~=+-.:@^ ", min_size=1, max_size=8).map("w{}w".format)
slow = rules(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

class Texts(html.parser.HTMLParser):
    "The texts and attributes of a page, and its tags."
    def __init__(self, page):
        super().__init__()
        self.found, self.tags = set(), set()
        self.feed(page)
    def handle_data(self, data): self.found.add(data)
    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.found |= {v for _, v in attrs if v}

def written(folder, names):
    "A table of customers whose columns have these names."
    rng = np.random.default_rng(0)
    rows = [[i, *rng.integers(0, 50, len(names)), "yes" if rng.random() < .4 else "no"] for i in range(160)]
    with open(folder/"customers of [1998] *.csv", "w", newline="") as f: csv.writer(f).writerows([["customer_id", *names, "churn"], *rows])
    return folder/"customers of [1998] *.csv"

def described(folder, names, workspace):
    "The settings of such a table in a workspace."
    d = infer_description(written(folder, names), DescribeOptions(label="churn", entity="customer_id"))
    root = Workspace(folder/workspace).open().root
    write_description(d, root/"dataset.toml")
    return load_settings({"paths.workspace": str(root), "data.dataset": str(root/"dataset.toml")})

@slow
@given(st.lists(WORDS | SIGNS, min_size=3, max_size=8, unique_by=str.casefold), FOLDERS)
def test_any_column_name_is_described_stored_and_scored(tmp_path_factory, names, workspace):
    s = described(tmp_path_factory.mktemp("names"), names, workspace)
    source, d = SnapshotSource(s), read_description(s.data.description)
    features = d.names
    assert len(features) == len(names)
    source.build()
    assert source.names() == features and list(source.training_rows())[-len(names):] == features
    assert source.parity(source.apply_store()).differing == []
    rows = open_model_input(d.file, read_format(s.data.description), [Feature(n) for n in features])
    (chunk,) = read_chunks(rows.reader, 1000)
    newest = source.latest_rows().sort_values("customer_id")
    for n in features:
        np.testing.assert_array_equal([float(v) for v in chunk.table[rows.columns[n]].to_pylist()], newest[n])
    assert {p.name for p in s.paths.workspace.parent.iterdir()} == {s.paths.workspace.name, d.file.name}

@rules(max_examples=100, deadline=None)
@given(st.lists(WORDS | SIGNS, min_size=2, max_size=6, unique=True), SIGNS, SIGNS)
def test_any_name_is_text_on_the_pages(names, value, version):
    features = [Feature(n, description=f"column {n}") for n in names[1:]] + [Feature(names[0], type="string", values=[value])]
    example = {f.name: value if f.values else 1. for f in features}
    m = own_manifest(version, features=features, example=example, reference=[*example.values()], name=names[0])
    page = Texts(status_page_html(m, "http://x/"))
    assert {f.name for f in features} | {value} <= page.found and "b" not in page.tags
    compile(client := python_client(m, "http://x"), "client", "exec")
    assert all(repr(n) in client for n in names)
    assert shlex.split(curl(m, "http://x"))[-1] == json.dumps(example, ensure_ascii=False)
    frame = pd.DataFrame({n: np.arange(20.) for n in names})
    assert {*names} <= Texts(as_html(drift_report(frame, frame, load_settings().drift))).found

@rules(max_examples=40, deadline=None)
@given(st.lists(FOLDERS, min_size=1, max_size=3, unique=True))
def test_any_folder_name_is_found_by_duckdb(tmp_path_factory, folders):
    home = tmp_path_factory.mktemp("folders")
    for i, name in enumerate(folders):
        (home/name).mkdir()
        write_parquet(pa.table({"x": [i]}), home/name/"rows.parquet")
    for i, name in enumerate(folders):
        got = connection().execute(f"SELECT * FROM {read_parquet_sql(home/name/'rows.parquet')}")
        assert [c[0] for c in got.description] == ["x"] and got.fetchall() == [(i,)]

@rules(max_examples=15, deadline=None)
@given(*[st.text(alphabet="a\\[]*?{} 'é", min_size=1, max_size=6).map("d{}d".format)]*2)
def test_a_data_file_of_any_name_is_read(tmp_path_factory, folder, name):
    "Also with a backslash beside the signs of a pattern."
    (home := tmp_path_factory.mktemp("data")/folder).mkdir()
    write_parquet(pa.table({"customer_id": range(40), "x": [i % 7 for i in range(40)], "churn": ["yes", "no"]*20}), home/f"{name}.parquet")
    d = infer_description(home/f"{name}.parquet", DescribeOptions(label="churn", entity="customer_id"))
    assert prepare(d, home.parent/"out.parquet")["rows"] == d.rows == 40
    (home/f"{name}.csv").write_text("x\n1\n2\n")
    assert check_csv(home/f"{name}.csv", [ColumnContract("x", "INTEGER", {})]).x.tolist() == [1, 2]

@rules(max_examples=10, deadline=None)
@given(SIGNS.filter(lambda s: "/" not in s))
def test_a_hint_names_a_path_as_a_shell_reads_it(tmp_path_factory, name):
    there = tmp_path_factory.mktemp("hint")/name
    assert subprocess.run(["sh", "-c", f"printf %s {short_path(there)}"], capture_output=True, text=True).stdout in (str(there), os.path.relpath(there))

@pytest.mark.parametrize("name", ["a?b", "a\\b", "two\nlines"])
def test_a_workspace_that_no_address_can_hold_is_refused(tmp_path, name):
    with pytest.raises(WorkspaceError, match="choose another with --workspace"): Workspace(tmp_path/name).open()
    assert [*tmp_path.iterdir()] == []
