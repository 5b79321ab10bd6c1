#!/usr/bin/env bash
# Makes .venv-mlflow/ from its pinned, hashed requirements: the real MLflow, client and server, that the tests drive and
# the benchmarks measure. It is apart because MLflow's dependencies are none of ours. About a minute, and 900 MB.
# A stamp tells what is up to date, so a second call costs nothing; a lock keeps two callers apart.
#
# Usage: scripts/setup_mlflow.sh            (VENV and VENV_MLFLOW may be set; VENV has to be made before)
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV_MLFLOW:-.venv-mlflow}
pins=requirements/mlflow.txt
stamp=$venv/.pins.stamp

say() { printf 'setup-mlflow: %s\n' "$*"; }

is_current() { [[ -x $venv/bin/mlflow && -e $stamp && ! $pins -nt $stamp ]]; }

if is_current; then
    exit 0
fi

mkdir -p "$venv"
if command -v flock >/dev/null; then
    exec 9>"$venv/.lock"
    flock 9
    if is_current; then
        exit 0
    fi
fi

started=$SECONDS
say "making $venv with $(grep -c '^[a-z0-9].*==' "$pins") pinned packages, each checked against its hash"
[[ -x $venv/bin/python ]] || "${VENV:-.venv}/bin/python" -m venv "$venv"
echo '*' >"$venv/.gitignore"
# Without dependencies: the pins are all of them, and MLflow asks for parts that the pins overrule.
"$venv/bin/python" -m pip --disable-pip-version-check --no-input --quiet install \
    --require-hashes --no-deps --requirement "$pins"

# MLflow and its parts ship the same files; those of MLflow itself have to be the ones that stayed.
wanted=$(sed -n 's/^mlflow==\([^ ]*\).*/\1/p' "$pins")
if ! grep -qF "\"$wanted\"" "$venv"/lib/python3.*/site-packages/mlflow/version.py; then
    say "the files of MLflow are not those of $wanted: remove $venv and try again" >&2
    exit 1
fi
touch "$stamp"
say "ready in $((SECONDS - started)) s; $venv/bin has mlflow $wanted"
