#!/usr/bin/env bash
# Does NVIDIA's own assembler take our PTX, do NVIDIA's own bindings work as an engine beside us, and does the driver
# layer build for other versions of CUDA?
#
# ptxas and the bindings for Python come from PyPI (some 110 MB together), no GPU and no CUDA installation is needed.
# Prints a table of registers and spills for each kernel and GPU. Then the two-process proofs with pages of a process in
# Python, also with the node itself, on the emulator; and `cargo check` of the driver layer against several versions of the CUDA headers, by cudarc's switch.
# Run by `tests/run --gpu-toolchain`.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source=../.ci/needs.sh
. .ci/needs.sh
need_build
need python3 python3

# Pinned: what a wheel accepts changes with its version. 12.9 is the last of its major version; 13 knows no GPU before sm_75.
WHEELS=("nvidia-cuda-nvcc-cu12==12.9.86" "nvidia-cuda-nvcc==13.5.37")
BINDINGS="cuda-bindings==13.5.0"
# A100, A10/RTX 30, L4/RTX 40, H100/H200, B200, B300, RTX 50, DGX Spark.
GPUS=(sm_80 sm_86 sm_89 sm_90 sm_100 sm_103 sm_120 sm_121)
# The oldest that is still met, the last of 12, and what 13 changed: structures in 13.2, nothing known in the newest.
CUDA_VERSIONS=(12000 12040 12090 13000 13020 13040)
# ptxas may use up to 255 registers before it spills; a copy kernel beyond this has gone wrong.
REGISTERS_MAX=64

target=$(mkdir -p "${CARGO_TARGET_DIR:-target}/gpu-toolchain" && realpath "${CARGO_TARGET_DIR:-target}/gpu-toolchain")
failed=0

if ! [ -x "$target/python/bin/pip" ]; then
    python3 -m venv "$target/python" || { need_package python3-venv && python3 -m venv --clear "$target/python"; }
fi

# ptxas_of WHEEL: installs it and names its ptxas.
ptxas_of() {
    local wheel=$1 at=$target/${1//==/-}
    if ! [ -d "$at" ]; then
        "$target/python/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$at.new" "$wheel" >&2
        mv "$at.new" "$at"
    fi
    find "$at" -name ptxas -type f | head -1
}

# report GPU: ptxas -v on stdin, one row for each kernel.
report() {
    awk -v gpu="$1" -v most="$REGISTERS_MAX" '
        /Compiling entry function/ { split($0, quoted, "\x27"); name = quoted[2] }
        /bytes stack frame/ { stores = $5; loads = $9; stack = $1 }
        /Used [0-9]+ registers/ {
            for (i = 1; i < NF; i++) if ($i == "Used") used = $(i + 1)
            printf "%-8s %-24s %3d registers, %d bytes of stack, %d + %d bytes spilled\n", gpu, name, used, stack, stores, loads
            if (used > most || stack + stores + loads > 0) bad = 1
            rows++
        }
        END { exit bad || rows == 0 }'
}

for wheel in "${WHEELS[@]}"; do
    ptxas=$(ptxas_of "$wheel")
    echo "== ptxas of $wheel: $("$ptxas" --version | grep -o 'V[0-9.]*' | tail -1)"
    for gpu in "${GPUS[@]}"; do
        for ptx in kernels/cuda/*.ptx; do
            if ! said=$("$ptxas" -arch="$gpu" -v -o /dev/null "$ptx" 2>&1); then
                echo "$said"
                echo "$ptx is refused for $gpu"
                failed=$((failed + 1))
            elif ! report "$gpu" <<<"$said"; then
                echo "$ptx for $gpu: over $REGISTERS_MAX registers, or spills"
                failed=$((failed + 1))
            fi
        done
    done
done

echo "== an engine in Python on $BINDINGS, on the emulator"
if ! "$target/python/bin/pip" install --quiet --disable-pip-version-check "$BINDINGS" ||
    ! LARDER_TEST_PYTHON=$target/python/bin/python cargo test --quiet --locked -p larder-kernels --test it python:: -- --ignored ||
    ! LARDER_TEST_PYTHON=$target/python/bin/python cargo test --quiet --locked -p larder-cache-node --test it gpu::python:: -- --ignored; then
    echo "the engine in Python failed"
    failed=$((failed + 1))
fi

for version in "${CUDA_VERSIONS[@]}"; do
    echo "== driver layer against the headers of CUDA $version"
    # Its own folder, so that the ordinary build is not undone by cudarc's switch.
    if ! CUDARC_CUDA_VERSION=$version CARGO_TARGET_DIR=$target/cudarc \
        cargo check --quiet --locked -p larder-kernels --no-default-features; then
        echo "does not build against CUDA $version"
        failed=$((failed + 1))
    fi
done

echo "$failed of this failed"
[ "$failed" -eq 0 ]
