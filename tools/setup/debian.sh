#!/usr/bin/env bash
# Installs what the demo and the tests need from the system: Redis, Python with venv, a C compiler, make, curl, tmux, valgrind,
# Cargo.
# Looks for the programs first and only then for packages, so it is silent where all is there, on any system.
# A Redis service that was not running before is not running afterwards either: the demo starts a Redis of its own.
set -euo pipefail

say() { printf 'setup: %s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

# rustup puts Cargo there, and only later shells have it on their path.
PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin"

missing=()
have redis-server || have valkey-server || missing+=(redis-server)
# Debian splits venv from Python, and leaves a venv without pip behind when it is missing: ask for both.
python3 -c 'import ensurepip, venv' >/dev/null 2>&1 || missing+=(python3 python3-venv)
{ have cc && have make; } || missing+=(build-essential)
have curl || missing+=(curl)
# Counts instructions: `make test-cost`.
have valgrind || missing+=(valgrind)
have tmux || missing+=(tmux)
[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/ssl/cert.pem ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] ||
    missing+=(ca-certificates)
# What rust-version of Cargo.toml says. rustup's cargo is asked here, where rust-toolchain.toml names a version that it fetches; a
# distribution's may be too old, and then says so after minutes and in the words of a dependency.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$here/Cargo.toml")
if ! have cargo; then
    missing+=(rustup)
elif found=$(cd "$here" && cargo --version | cut -d' ' -f2) &&
    [ "$(printf '%s\n' "$wanted" "${found%%-*}" | sort -V | head -n 1)" != "$wanted" ]; then
    say "$(command -v cargo) is Cargo $found, and $wanted or later is needed: install Rust as https://rustup.rs says, so that its cargo is"
    say "found before this one (PATH=\$HOME/.cargo/bin:\$PATH), and run again"
    exit 1
fi
[ ${#missing[@]} -gt 0 ] || exit 0

if ! have apt-get; then
    say "missing: ${missing[*]} (Debian's names). Install them with this system's package manager and run again."
    exit 1
fi

# Read by ordinary users too, so that a missing sudo is said once and with the command to run.
as_root() { "$@"; }
if [ "$(id -u)" != 0 ]; then
    if ! have sudo; then
        say "missing: ${missing[*]}. There is no sudo; as root: apt-get install ${missing[*]}"
        exit 1
    fi
    as_root() { sudo "$@"; }
fi

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$@"
}

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
our_policy=
tidy() {
    rm -f "$log"
    [ -z "$our_policy" ] || as_root rm -f "$policy"
}
trap tidy EXIT

quietly() {
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        say "this failed: $*"
        exit 1
    fi
}

quietly apt update

# Debian 12 and older have no rustup, and a Rust that is too old: everything else is installed first.
no_rust=
if [ "${missing[-1]}" = rustup ] && [ -z "$(apt-cache madison rustup 2>/dev/null)" ]; then
    no_rust=yes
    unset 'missing[-1]'
fi

# Packages of services start them at once. Debian's way to say no is a policy that answers 101; one that is already
# there is the administrator's and stays.
if [[ " ${missing[*]} " == *" redis-server "* ]] && [ ! -e "$policy" ]; then
    # The flag first: interrupted between the two lines, there is nothing to remove and removing it does no harm.
    our_policy=yes
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
fi

if [ ${#missing[@]} -gt 0 ]; then
    say "installing ${missing[*]}"
    quietly apt install --no-install-recommends "${missing[@]}"
fi

# The package also asks for a start at the next boot. Nobody did that here.
if [[ " ${missing[*]} " == *" redis-server "* ]] && have systemctl && [ -d /run/systemd/system ]; then
    quietly as_root systemctl disable redis-server.service
fi

if [ -n "$no_rust" ]; then
    say "Cargo is missing, and this system's packages have no rustup: install Rust as https://rustup.rs says, run again"
    exit 1
fi
