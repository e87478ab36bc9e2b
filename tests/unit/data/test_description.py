"Names that can be used everywhere."
import numpy as np, pytest
from churn_nb.batch.job import SCORE_COLUMNS
from churn_nb.data.description import normalise_names, rename_reserved
from churn_nb.data.schema_inference import DescribeOptions, infer_description as describe
from churn_nb.feature_store.snapshots import ABOUT
from churn_nb.monitoring.request_log import FIXED_COLUMNS, GROUP_COLUMNS
from customer_tables import N, customers

def test_names_are_normalised_and_every_change_is_reported():
    names, found = normalise_names(["a", "a", "A", "", 'b"c\\', " d ", "e\u200b", "Gro\u0308ße"])
    assert names == ["a", "a_", "A__", "column_4", "bc", "d", "e", "Größe"] and len(found) == 7

@pytest.mark.parametrize("name", ["row", "Row", "twin", "entity", "customer_id", "Plan"])
def test_features_named_like_ours_or_like_another(read, name):
    values = np.random.default_rng(2).normal(size=N).round(2)
    d, out, _ = read(customers(**{name: values}), entity="id")
    assert d.names == ["x", "plan", name + "_"] and out.row.tolist() == list(range(1, N + 1))
    np.testing.assert_allclose(out[name + "_"], values, rtol=1e-6)
    assert any(f.rule == "names" and f.column == name + "_" for f in d.findings)

@pytest.mark.parametrize("name", sorted({*FIXED_COLUMNS, *GROUP_COLUMNS, *SCORE_COLUMNS, *ABOUT}))
def test_a_feature_is_never_named_like_an_added_column(name):
    names, found = rename_reserved(["id", name.title(), f"{name}_"], {"id"})
    assert names == ["id", f"{name.title()}__", f"{name}_"] and [f.column for f in found] == names[1:2]

def test_a_feature_named_churn_is_not_the_label(read):
    df = customers().rename(columns={"churn": "exited"}).assign(churn=np.random.default_rng(2).normal(size=N))
    d, out, _ = read(df, label="exited")
    assert d.names == ["x", "plan", "churn_"] and out.churn.sum() == (df.exited == "yes").sum()

def test_a_flag_names_a_column_as_the_file_spells_it(tmp_path):
    (tmp_path/"a.csv").write_text('"i""d","l""eft",row,"x\\y"\n' + "".join(f"{i},{'yes' if i % 3 else 'no'},{i % 7},{i % 5}\n" for i in range(60)))
    d = describe(tmp_path/"a.csv", DescribeOptions(entity='i"d', label='l"eft', categories=("row",), numbers=("x\\y",)))
    assert [(c.name, c.use) for c in d.columns] == [("id", "entity"), ("left", "label"), ("row_", "category"), ("xy", "number")]
