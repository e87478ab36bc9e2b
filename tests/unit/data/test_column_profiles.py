"What a column is taken for: types, keys and the positive class."
import numpy as np, pytest
from customer_tables import N, customers

@pytest.mark.parametrize("values, positive", [(("yes", "no"), "yes"), (("True", "False"), "True"), (("1", "0"), "1"), (("rare", "usual"), "rare")])
def test_the_positive_class(read, values, positive):
    d, out, _ = read(customers().assign(churn=lambda df: np.where(df.churn == "yes", *values)))
    assert d.positive == positive and out.churn.sum() == (customers().churn == "yes").sum()

def test_whole_numbers_stay_keys_and_codes_with_zeros_stay_texts(read):
    d, out, _ = read(customers(zip=[f"0{1000 + i % 9}" for i in range(N)]).assign(id=np.arange(N) + 2**61))
    assert out.customer_id.tolist() == (np.arange(N) + 2**61).tolist() and "zip" in d.categories and out.zip[0] == "01000"
