#!/usr/bin/env bash
# Installs the programs from outside Python that the tests drive: a Postgres server and the load generator wrk.
# Does not start or configure any service: the tests start their own. Where it cannot install (not root, no apt) it says
# in one line what is missing and succeeds, because those tests skip; with CI=true a missing program is an error,
# because there nothing may skip unseen.
set -euo pipefail

say() { printf 'setup-system: %s\n' "$*"; }

have_postgres() {
    command -v initdb >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null
}

missing_packages() {
    have_postgres || echo postgresql-15
    command -v wrk >/dev/null || echo wrk
}

install_packages() {
    # Debian starts a server as soon as it is installed; exit status 101 from this hook says "not on this machine".
    hook=/usr/sbin/policy-rc.d
    log=$(mktemp)
    if [[ -e $hook ]]; then
        trap 'rm -f "$log"' EXIT
    else
        trap 'rm -f "$log" "$hook"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$hook"
        chmod 755 "$hook"
    fi
    export DEBIAN_FRONTEND=noninteractive
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@"; } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        say "apt-get failed; the end of its output stands above"
    fi
}

mapfile -t missing < <(missing_packages)
if ((${#missing[@]} == 0)); then
    exit 0
fi

if [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; then
    say "installing ${missing[*]}"
    install_packages "${missing[@]}"
    mapfile -t missing < <(missing_packages)
fi

if ((${#missing[@]} > 0)); then
    say "missing: ${missing[*]}. Tests that need them will skip; install them with: apt-get install ${missing[*]}"
    [[ ${CI:-} != true ]] || exit 1
else
    say "ready"
fi
