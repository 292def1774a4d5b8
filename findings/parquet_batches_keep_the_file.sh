#!/usr/bin/env bash
# One would guess: ParquetFile(file).iter_batches(batch_size=200) needs memory for a few batches, or at most for a row group.
# What happens: with a Python file (a gzip stream, a download, any open file) everything that was read stays in memory until the
# end, because `pre_buffer` is on by default and its cache keeps each part. Reading a corpus row by row holds the whole corpus.
# pa.total_allocated_bytes() does not see it. With pre_buffer=False it is a few row groups.
# Seen with pyarrow 26.0.1, Python 3.11, a file of 20 row groups of 1 MB:
#   pre_buffer=True: 20.1 MB at most
#   pre_buffer=False: 2.0 MB at most
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pyarrow==26.0.1
cat > "$folder/batches.py" <<'PYTHON'
import sys
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq

path = sys.argv[1]
group = pa.table({"text": ["x" * 1000] * 1000})
with pq.ParquetWriter(path, group.schema, compression="none", use_dictionary=False) as writer:
    for _ in range(20):
        writer.write_table(group)

most = {}
for pre_buffer in (True, False):
    with open(path, "rb") as file:
        tracemalloc.start()
        rows = 0
        for batch in pq.ParquetFile(file, pre_buffer=pre_buffer).iter_batches(batch_size=200):
            rows += batch.num_rows
        most[pre_buffer] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert rows == 20_000
    print(f"pre_buffer={pre_buffer}: {most[pre_buffer] / 1e6:.1f} MB at most")
sys.exit(0 if most[True] > 18e6 and most[False] < 6e6 else 1)
PYTHON
"$folder/venv/bin/python" "$folder/batches.py" "$folder/rows.parquet"
