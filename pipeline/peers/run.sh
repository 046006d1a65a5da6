#!/usr/bin/env bash
# Trains with two public dictionary learners on the vectors that `just ablate` trained on: run.sh [profile=NAME]
set -euo pipefail

profile=smol
for word in "$@"; do
    case $word in profile=*) profile=${word#profile=} ;; esac
done
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
runs=${KVCSR_DATA:-$repository/data}/runs/$profile
vectors=$runs/ablate/peer-vectors
if [[ ! -d $vectors ]]; then
    echo "peers: $vectors is not there: run \`just ablate profile=$profile\` first" >&2
    exit 1
fi
python=$(bash "$repository/pipeline/peers/venv.sh")
"$python" "$repository/pipeline/peers/learn.py" "$vectors" "$runs/peers.jsonl"
