#!/usr/bin/env bash
# Makes .venv/ from the pinned, hashed requirements and installs this checkout into it in editable form.
# Does not choose versions (scripts/pins.sh does) and does not touch the system, except for Debian's venv module
# when it is missing and we are root. Two stamps tell it what is up to date, so a second call costs nothing; a lock
# keeps two callers from installing into the same folder at once.
#
# Usage: scripts/setup_venv.sh            (VENV and PYTHON may be set)
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
pins=requirements/dev.txt
pins_stamp=$venv/.pins.stamp
package_stamp=$venv/.package.stamp

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# -nt is true when the stamp is missing, and also compares fractions of a second.
pins_are_stale() { [[ $pins -nt $pins_stamp || ! -x $venv/bin/python ]]; }
package_is_stale() { [[ pyproject.toml -nt $package_stamp || $pins_stamp -nt $package_stamp ]]; }

if ! pins_are_stale && ! package_is_stale; then
    exit 0
fi

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer found: install one, or name it with PYTHON=/path/to/python make setup"
}

make_venv() {
    local python=$1
    if ! "$python" -c 'import ensurepip' >/dev/null 2>&1; then
        # Debian ships Python without the module that puts pip into a new environment.
        local package
        package=$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
            say "installing $package, which this system's Python keeps apart"
            apt-get update -qq
            DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null
        else
            fail "this Python cannot make environments: install $package (apt-get install $package)"
        fi
    fi
    "$python" -m venv "$venv"
}

mkdir -p "$venv"
if command -v flock >/dev/null; then
    exec 9>"$venv/.lock"
    flock 9
fi

started=$SECONDS
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input --quiet "$@"; }

if pins_are_stale; then
    if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python)
        say "making $venv with $("$python" --version)"
        make_venv "$python"
    fi
    say "installing $(grep -c '^[a-z0-9].*==' "$pins") pinned packages, each checked against its hash"
    pip install --require-hashes --requirement "$pins"
    touch "$pins_stamp"
fi

if package_is_stale; then
    say "installing modelkeep from src/"
    pip install --no-build-isolation --no-deps --editable .
    touch "$package_stamp"
fi
say "ready in $((SECONDS - started)) s; $venv/bin has modelkeep, python, pytest, ruff and mypy"
