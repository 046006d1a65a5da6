#!/usr/bin/env bash
# Installs the public peers into a virtual environment in the project's cache folder, and prints the path of its Python. A second
# run only prints the path.
set -euo pipefail

readonly SCIKIT_LEARN=1.9.1 SPAMS=2.6.14 FAISS=1.15.1 NUMPY=2.4.6 SCIPY=1.17.1 XLLAMACPP=2026.10.11549

say() { echo "peers: $*" >&2; }

venv=${KVCSR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvcsr}/peers-venv
wanted="scikit-learn==$SCIKIT_LEARN spams-bin==$SPAMS faiss-cpu==$FAISS numpy==$NUMPY scipy==$SCIPY xllamacpp==$XLLAMACPP"
if [[ ! -f $venv/complete || $(<"$venv/complete") != "$wanted" ]]; then
    say "installing scikit-learn, SPAMS, faiss and llama.cpp into $venv"
    rm -rf "$venv"
    python3 -m venv "$venv" || { say "Python cannot make virtual environments (Debian: apt-get install python3-venv)"; exit 1; }
    # shellcheck disable=SC2086 # one argument per package
    "$venv/bin/pip" install --quiet --disable-pip-version-check $wanted >&2
    echo "$wanted" >"$venv/complete"
fi
echo "$venv/bin/python"
