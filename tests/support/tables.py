"Tables that a test wrote or was given, read again."
import csv, io
from pathlib import Path

def lines_of(path:Path) -> io.StringIO:
    "A file's text with its own ends of lines, and nothing left open."
    return io.StringIO(Path(path).read_bytes().decode(), newline="")

def csv_rows(path:Path) -> list[list[str]]: return list(csv.reader(lines_of(path)))

def csv_records(path:Path) -> list[dict[str, str]]: return list(csv.DictReader(lines_of(path)))
