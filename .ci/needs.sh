# shellcheck shell=bash
# What the build and the tests need beyond Rust, installed by package name where it is missing.
# Sourced by tests/run and bench/demo.

# need PROGRAM PACKAGE...: installs the packages unless the program is there.
need() {
    local program=$1
    shift
    command -v "$program" >/dev/null 2>&1 && return 0
    need_package "$@"
}

# need_package PACKAGE...: installs the packages.
need_package() {
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "missing: $*, and this machine has no apt-get; install what Debian calls so and run this again" >&2
        exit 1
    fi
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null 2>&1; then
            echo "missing: $*. As root: apt-get install $*" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    echo "installing $*" >&2
    if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null 2>&1; then
        "${as_root[@]}" apt-get update -qq >&2
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
    fi
}

# What a build needs: pingora compiles zlib-ng and zstd from source.
need_build() {
    # rustup puts cargo here; a shell opened before the installation does not know it yet.
    command -v cargo >/dev/null 2>&1 || PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    if ! command -v cargo >/dev/null 2>&1; then
        echo "missing: cargo. Install Rust (1.95 or newer) first; rustup is the usual way." >&2
        exit 1
    fi
    need cc gcc libc6-dev
    need c++ g++
    need make make
    need cmake cmake
}

# need_space GIB: says so now where the build's disk has less free, rather than by a linker that dies of it in ten minutes.
need_space() {
    local gib=$1 folder=${CARGO_TARGET_DIR:-target} free
    while ! [ -d "$folder" ]; do folder=$(dirname "$folder"); done
    free=$(df -Pk "$folder" | awk 'NR == 2 { print int($4 / 1048576) }')
    if [ "$free" -lt "$gib" ]; then
        echo "warning: $free GiB free on the disk of $(realpath "$folder"), a build from nothing takes $gib;" \
            "free some or set CARGO_TARGET_DIR to a folder on another disk" >&2
    fi
}
