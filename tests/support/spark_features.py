"""Spark's side of tests/e2e/test_spark.py, run by the Python of an environment of its own: `python spark_features.py EVENTS OUT MOMENT...`
reads one parquet file of events and writes a folder of parquet for each moment."""
import sys
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]/"bench"))
from peers import SPARK_OPTIONS # noqa: E402
from pyspark.sql import SparkSession # noqa: E402
from churn_nb.features import known_sql, spark_sql, windows_sql # noqa: E402

WINDOWS = [24, 168, 720, 2160]

def main(events, out, *moments):
    spark = SparkSession.builder.master("local[2]").config(map=SPARK_OPTIONS | {"spark.sql.warehouse.dir": f"{out}/spark"}).getOrCreate()
    spark.read.parquet(events).createOrReplaceTempView("events")
    spark.sql(spark_sql(known_sql())).persist().createOrReplaceTempView("known") # made once, as in DuckDB
    for i, a in enumerate(moments): spark.sql(spark_sql(windows_sql(WINDOWS, datetime.fromisoformat(a)))).write.parquet(f"{out}/spark{i}")
    spark.stop()

if __name__ == "__main__": main(*sys.argv[1:])
