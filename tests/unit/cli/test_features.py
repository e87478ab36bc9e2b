"What the commands of the feature store print."
from pathlib import Path
import pytest
from churn_nb.cli import features

@pytest.mark.parametrize("refused, lines", [(0, 0), (1, 1), (5, 5), (6, 6), (10_000, 6)])
def test_the_first_refused_rows_are_named_and_the_others_counted(refused, lines, capsys):
    outcome = ["new", *({"field": "amount", "message": "missing"} for _ in range(refused))]
    assert features._print_refused(Path("log.csv"), outcome) == refused
    said = capsys.readouterr().err.splitlines()
    assert len(said) == lines and (refused <= 5 or said[-1] == f"log.csv: {refused - 5:,} more rows are refused")
    assert not said or said[0] == "log.csv: row 2, amount: missing"
