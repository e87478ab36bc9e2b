"Files that are written chunk by chunk are read back as they were, and no file of other origin is replaced."
import csv, io, tempfile
from pathlib import Path
import pyarrow as pa, pytest
from hypothesis import given, settings as rules, strategies as st
from churn_nb.batch.writers import csv_lines, rejects_outputs
from churn_nb.core.errors import DataError
from churn_nb.core.outputs import require_outputs

@rules(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=200))
def test_a_foreign_file_at_the_rejects_path_is_kept(content):
    with tempfile.TemporaryDirectory() as folder:
        (there := Path(folder)/"scored.rejects.csv").write_bytes(content)
        with pytest.raises(DataError, match="is not a rejects file"): require_outputs(rejects_outputs(there), {})
        assert there.read_bytes() == content

@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8), min_size=3, max_size=3), min_size=1, max_size=8), st.sampled_from(",;\t|"))
def test_csv_lines_are_read_back_by_python(rows, by):
    text = csv_lines(pa.table(list(map(list, zip(*rows))), ["a", "b", "c"]), by)
    assert list(csv.reader(io.StringIO(text, newline=""), delimiter=by)) == rows
