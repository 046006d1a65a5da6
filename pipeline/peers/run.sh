#!/usr/bin/env bash
# Two public dictionary learners on the vectors that `just ablate` trained on: run.sh [profile=NAME]
set -euo pipefail

readonly SCIKIT_LEARN=1.9.1 SPAMS=2.6.14 NUMPY=2.4.6 SCIPY=1.17.1

say() { echo "peers: $*"; }

profile=smol
for word in "$@"; do
    case $word in profile=*) profile=${word#profile=} ;; esac
done
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=${KVCSR_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/kvcsr}
runs=${KVCSR_DATA:-$repository/data}/runs/$profile
vectors=$runs/ablate/peer-vectors
if [[ ! -d $vectors ]]; then
    say "$vectors is not there: run \`just ablate profile=$profile\` first" >&2
    exit 1
fi

venv=$cache/peers-venv
wanted="scikit-learn==$SCIKIT_LEARN spams-bin==$SPAMS numpy==$NUMPY scipy==$SCIPY"
if [[ ! -f $venv/complete || $(<"$venv/complete") != "$wanted" ]]; then
    say "installing scikit-learn and SPAMS into $venv"
    rm -rf "$venv"
    python3 -m venv "$venv" || { say "Python cannot make virtual environments (Debian: apt-get install python3-venv)" >&2; exit 1; }
    # shellcheck disable=SC2086 # one argument per package
    "$venv/bin/pip" install --quiet --disable-pip-version-check $wanted
    echo "$wanted" >"$venv/complete"
fi
"$venv/bin/python" "$repository/pipeline/peers/learn.py" "$vectors" "$runs/peers.jsonl"
