#!/usr/bin/env bash
# One would guess: a data set that is asked for without a network comes whole from the cache, or not at all. The client has an
# error for it, IncompleteSnapshotError.
# What happens: that error needs the list of files that an earlier snapshot_download kept. Where files were fetched one by one
# (hf_hub_download, as loaders and resumed jobs do) and the second of two shards is missing, snapshot_download returns the folder
# with one shard, and no warning: a training run on half of the data.
# Seen with huggingface_hub 2.4.0, Python 3.11:
#   fetched one by one: ['data/train-00000-of-00002.jsonl']
#   after a snapshot: IncompleteSnapshotError
# Charter keeps its own list beside the cache (services/charter/data/hub.py).
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check huggingface_hub==2.4.0
cat > "$folder/half.py" <<'PYTHON'
import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40
FILES = {f"data/train-0000{part}-of-00002.jsonl": b'{"prompt": "%d"}\n' % part for part in (0, 1)}


class Hub(BaseHTTPRequestHandler):
    """As much of the protocol as the client asks for."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def log_message(self, *_):
        pass

    def answer(self, body):
        parts = self.path.split("?")[0].strip("/").split("/")
        headers = {}
        if parts[0] == "api" and "tree" in parts:
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in FILES.items()
            ]
            content = json.dumps(listed).encode()
        elif parts[0] == "api":
            siblings = [{"rfilename": name} for name in FILES]
            content = json.dumps({"id": "org/set", "sha": COMMIT, "siblings": siblings}).encode()
        else:
            content = FILES["/".join(parts[5:])]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": sys.argv[1]}
os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "127.0.0.1"}

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import IncompleteSnapshotError

hf_hub_download("org/set", "data/train-00000-of-00002.jsonl", repo_type="dataset")
found = Path(snapshot_download("org/set", repo_type="dataset", local_files_only=True))
files = sorted(path.relative_to(found).as_posix() for path in found.rglob("*.jsonl"))
print("fetched one by one:", files)
snapshot_download("org/set", repo_type="dataset", allow_patterns=["*-00000-*"])
try:
    snapshot_download("org/set", repo_type="dataset", local_files_only=True)
    refused = False
except IncompleteSnapshotError:
    refused = True
print("after a snapshot:", "IncompleteSnapshotError" if refused else "no error")
sys.exit(0 if files == ["data/train-00000-of-00002.jsonl"] and refused else 1)
PYTHON
"$folder/venv/bin/python" "$folder/half.py" "$folder/home"
