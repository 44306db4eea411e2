#!/usr/bin/env bash
# Print the ssh command that leads from your own machine to a server that serve.sbatch started. Run it on the login node.
#
#   scripts/slurm/tunnel.sh JOBID [LOCAL_PORT]
#
# MMSR1_LOGIN=[USER@]HOST   how you reach this login node from outside; default: you at its own name
set -euo pipefail

die() { printf 'tunnel.sh: %s\n' "$*" >&2; exit 1; }

[[ $# -ge 1 && $# -le 2 && $1 =~ ^[0-9]+$ && ${2:-8000} =~ ^[0-9]+$ ]] || {
  echo "usage: tunnel.sh JOBID [LOCAL_PORT]" >&2
  exit 2
}
job=$1 local_port=${2:-8000}

said=$(squeue --noheader --jobs "$job" --format '%T|%N|%k' 2>/dev/null) || die "there is no job $job (squeue)"
IFS='|' read -r state node comment <<<"$said"
[[ -n ${state:-} ]] || die "job $job is not in the queue any more"
[[ $state == RUNNING ]] || die "job $job is $state, not running yet: squeue --start --jobs $job says when it may"
[[ ${comment:-} =~ mmsr1\ port=([0-9]+) ]] || die "job $job has said no port: is it serve.sbatch's? Its log is mmsr1-serve-$job.log"
port=${BASH_REMATCH[1]}

# Names of nodes need not resolve, not even here.
address=$node
if ! getent hosts "$node" >/dev/null; then
  address=$(scontrol show node --oneliner "$node" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
  [[ -n $address ]] || die "neither the name nor an address of node $node is known here"
fi
login=${MMSR1_LOGIN:-$(id -un)@$(hostname -f 2>/dev/null || hostname)}
echo "ssh -N -L 127.0.0.1:$local_port:$address:$port $login"
echo "then: http://127.0.0.1:$local_port/ (the app) and http://127.0.0.1:$local_port/v1 (the API), with your key" >&2
