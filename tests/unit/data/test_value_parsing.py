"Numbers and missing values, however they are written."
import numpy as np, pytest
from customer_tables import N, customers

@pytest.mark.parametrize("thousands, decimal", [(",", "."), (".", ","), (" ", ","), ("\u00a0", ","), ("\u202f", ",")])
def test_separators_of_thousands(read, thousands, decimal):
    v = np.random.default_rng(1).lognormal(8, 1, N).round(2)
    d, out, _ = read(customers(v=[f"{a:,.2f}".translate({44: thousands, 46: decimal}) for a in v]).drop(columns="x"), write={"sep": ";"})
    assert d.dialect.decimal == decimal and any((f.rule, f.column) == ("thousands", "v") for f in d.findings)
    np.testing.assert_allclose(out.v, v, rtol=1e-6)

def test_spellings_of_missing_are_counted(read):
    x = customers().x.astype(str)
    x[:3], x[3:5], x[5:6] = "?", "N/A", " "
    d, out, _ = read(customers().assign(x=x))
    assert out.x.isna().sum() == 6
    assert [f.sentence for f in d.findings if f.rule == "missing"] == ["x: '?' (3), 'N/A' (2), ' ' (1) counts as missing"]
