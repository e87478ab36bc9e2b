"A table of any size in chunks: row numbers, malformed lines, and texts as numbers."
import duckdb, numpy as np, pyarrow as pa, pytest
from churn_nb.data.value_parsing import TableFormat, number_sql, parse_numbers
from churn_nb.data.tabular_reader import open_table, read_chunks

def test_decimal_comma_and_thousands():
    x, bad = parse_numbers(pa.array(["1.234,5", "12", "1,5e3", "x"]), TableFormat(decimal=","))
    assert x[:3].tolist() == [1234.5, 12, 1500] and bad.tolist() == [False, False, False, True]

SPELT = ["1.234,5", "1,234.5", "1,5", "1.5", "12", "-3e2", "€ 99", "$5", "12%", "7 %", "1 234", "1\u202f234,5", "12 34", "1,2,3", "1.2.3", ".", "€", "", "x", "--", "+.5", ",5"]

@pytest.mark.parametrize("decimal", ".,")
def test_scoring_reads_numbers_as_training_read_them(decimal):
    "One grammar in two engines: what is no number for DuckDB is none for Arrow, and the others are equal."
    con = duckdb.connect()
    sql = number_sql("trim(c)", decimal)
    want = [con.execute(f"SELECT {sql} FROM (SELECT ? AS c)", [t]).fetchone()[0] for t in SPELT]
    for one, w in zip(SPELT, want): # each by itself, and all of them in one column
        x, bad = parse_numbers(pa.array([one]), TableFormat(decimal=decimal))
        assert (x[0] == w if w is not None else np.isnan(x[0]) and (bad[0] or one in ("", ".", "--"))), one
    x, bad = parse_numbers(pa.array(SPELT), TableFormat(decimal=decimal))
    assert [None if np.isnan(v) else v for v in x] == want and sum(v is not None for v in want) >= 10

def test_blocks_of_the_reader_move_no_row_number(tmp_path):
    "A file of many blocks with broken lines all over."
    n = 120_000
    lines = [f"{i},{'x'*60}" + ",9"*(i % 1000 == 0) for i in range(1, n + 1)]
    (tmp_path/"in.csv").write_text("id,pad\n" + "\n".join(lines) + "\n")
    source = open_table(tmp_path/"in.csv")
    parts = list(read_chunks(source, 7000))
    assert all(p.row_numbers.tolist() == list(map(int, p.table["id"].to_pylist())) for p in parts) and [len(p.table) for p in parts[:-1]] == [7000]*(len(parts) - 1)
    assert [r for r, *_ in source.malformed] == list(range(1000, n + 1, 1000)) and sum(len(p.table) for p in parts) == n - 120
