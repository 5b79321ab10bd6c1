#!/usr/bin/env bash
# Renews requirements/*.txt: the newest versions that pyproject.toml and requirements/mlflow.in allow, with the hash of
# every published file, for every system and every Python from 3.11 on. Does not install anything: `make setup` does
# that afterwards.
#
# Only one index is asked: the one pip is set to, else the public one. Extra indexes and local folders of wheels are
# left out on purpose, for they hold a part of each release and would leave a part of the hashes. No address is written.
#
# Usage: scripts/pins.sh            renew everything
#        ONLY_NEW=1 scripts/pins.sh keep the versions there are, add or drop what pyproject.toml asks for
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
uv=$venv/bin/uv
[[ -x $uv ]] || uv=$(command -v uv) || { echo "pins: no uv found: run make setup first" >&2; exit 1; }

# uv does not read pip's settings, so they are handed over here, by environment and never by file.
pip_setting() {
    local key
    for key in ":env:.$1" "global.$1"; do
        "$venv/bin/python" -m pip config get "$key" 2>/dev/null && return
    done
    return 0
}
index_url=$(pip_setting index-url)
certificate=$(pip_setting cert)
[[ -z $index_url ]] || export UV_DEFAULT_INDEX=$index_url
[[ -z $certificate ]] || export SSL_CERT_FILE=$certificate

options=(--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links)
options+=(--custom-compile-command "make pins" --quiet)
[[ -n ${ONLY_NEW:-} ]] || options+=(--upgrade)

draft=$(mktemp)
trap 'rm -f "$draft"' EXIT

pin() { # OUTPUT SOURCE OPTION...
    local output=$1 source=$2
    shift 2
    rm -f "$draft"
    [[ ! -f $output ]] || cp "$output" "$draft"
    "$uv" pip compile "$source" "$@" "${options[@]}" --output-file "$draft"
    if grep -nE '://|^--(index|extra-index|find-links|trusted)' "$draft"; then
        echo "pins: the lines above name an address; $output was left as it was" >&2
        exit 1
    fi
    cp "$draft" "$output"
    echo "pins: $output holds $(grep -c '^[a-z0-9].*==' "$output") packages"
}

pin requirements/dev.txt pyproject.toml --extra dev
pin requirements/mlflow.txt requirements/mlflow.in --override requirements/mlflow-overrides.in
echo "pins: make setup and make setup-mlflow install them"
