#!/usr/bin/env bash
# One would guess: MLflow without its server, mlflow-skinny, which is made "for logging", logs a number where nothing is configured, or
# to a folder.
# What happens: it can do neither. Its default is sqlite:///mlflow.db, and it does not bring SQLAlchemy: the error speaks of a model
# registry that nobody asked for. A folder (file:) is refused as in maintenance mode, unless MLFLOW_ALLOW_FILE_STORE=true. Only a server's
# address works. With SQLAlchemy and Alembic installed beside it, the default does.
# Seen with mlflow-skinny 3.17.2, Python 3.11:
#   default: UnsupportedModelRegistryStoreURIException
#   folder: MlflowException
#   default, with sqlalchemy and alembic: logged
# Charter brings both packages, and keeps mlflow.db in the run's folder (services/charter/worker/sinks/mlflow.py).
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mlflow-skinny==3.17.2
cd "$folder"
cat > log.py <<'PYTHON'
import sys

import mlflow

try:
    if len(sys.argv) > 1:
        mlflow.set_tracking_uri(sys.argv[1])
    with mlflow.start_run():
        mlflow.log_metric("loss", 0.5)
    print("logged")
except Exception as error:
    print(type(error).__name__)
PYTHON
export MLFLOW_DISABLE_TELEMETRY=true
unset MLFLOW_TRACKING_URI MLFLOW_ALLOW_FILE_STORE
default="$(venv/bin/python log.py 2> /dev/null)"
files="$(venv/bin/python log.py "file://$folder/runs" 2> /dev/null)"
venv/bin/pip install --quiet --disable-pip-version-check sqlalchemy==2.1.9 alembic
completed="$(venv/bin/python log.py 2> /dev/null)"
printf 'default: %s\nfolder: %s\ndefault, with sqlalchemy and alembic: %s\n' "$default" "$files" "$completed"
[[ "$default" == UnsupportedModelRegistryStoreURIException && "$files" == MlflowException && "$completed" == logged ]]
