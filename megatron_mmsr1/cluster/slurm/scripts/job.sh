# shellcheck shell=bash
# What the job scripts share: functions, read by *.sbatch of this directory and copied into what `mmsr1 slurm submit` writes.
#
# MMSR1_COMMAND        how mmsr1 is started on a node; default: mmsr1
# MMSR1_LOGS           directory of the steps' logs; default: slurm-logs
# MMSR1_ENV_FILE       NAME=value lines with API keys; mode 0600
# MMSR1_REQUEUES       how often the job goes back into the queue at most; default: 50
# CONTAINER_RUNTIME    none (default), pyxis, apptainer
# CONTAINER_IMAGE      what the runtime starts: a .sqsh or registry name, a .sif
# CONTAINER_MOUNTS     SOURCE:TARGET[:ro],...; the directory of submission is always mounted

readonly REQUEUE_ME=75 KILLED_BY_USR1=138

say() { printf '%s mmsr1 job %s: %s\n' "$(date '+%F %T')" "$(job_id)" "$*" >&2; }
die() { say "$*"; exit 2; }

# Of an array's task by both its numbers: SLURM_JOB_ID of one task is the whole array's, and a requeue of it would requeue all.
job_id() {
  if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    printf '%s_%s' "$SLURM_ARRAY_JOB_ID" "$SLURM_ARRAY_TASK_ID"
  else
    printf '%s' "${SLURM_JOB_ID:-}"
  fi
}

# ---------------------------------------------------------------------------------------------------------------- environment
# Exports what the file of secrets holds. Nothing of it is printed, not even of a line that is wrong or under `bash -x`.
load_secrets() {
  local file=${MMSR1_ENV_FILE:-} owner mode line name value number=0
  [[ -n $file ]] || return 0
  local -
  set +x
  [[ -f $file ]] || die "there is no file of secrets at $file"
  read -r owner mode < <(stat -Lc '%u %a' -- "$file")
  [[ $owner == "$UID" && ($mode == 600 || $mode == 400) ]] ||
    die "$file holds secrets, and others may read it (mode $mode, user $owner): chmod 600 $file"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line=${line%$'\r'}
    if [[ -z ${line//[[:space:]]/} || $line == \#* ]]; then continue; fi
    line=${line#export }
    name=${line%%=*} value=${line#*=}
    [[ $line == *=* && $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || die "$file: line $number is not NAME=value"
    if [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]]; then value=${BASH_REMATCH[1]}; fi
    export "$name=$value"
  done <"$file"
}

# Where the others reach a node. Names of nodes need not resolve, and a node's own name may resolve to its loopback.
node_address() {
  local found
  found=$(getent ahostsv4 "$1" | awk 'NR == 1 {print $1}') || true
  if [[ -z $found || $found == 127.* ]]; then
    local known
    known=$(scontrol show node -o "$1" | grep -o '\bNodeAddr=[^ ]*' | cut -d= -f2) || true
    if [[ -n $known && $known != "$1" ]]; then found=$known; fi
  fi
  [[ -n $found ]] || die "node $1: its name does not resolve, and Slurm knows no address of it (scontrol show node $1)"
  printf '%s' "$found"
}

# A port of this node on which nothing answers, below those that the kernel gives to clients (32768). Two jobs of one node
# begin their search at different places.
free_port() {
  local i port
  for ((i = 0; i < 200; i++)); do
    port=$((20000 + (SLURM_JOB_ID * 17 + i) % 12000))
    if ! (: </dev/tcp/127.0.0.1/"$port") 2>/dev/null && ! (: </dev/tcp/"$1"/"$port") 2>/dev/null; then
      printf '%s' "$port"
      return
    fi
  done
  die "no free port between 20000 and 32000 on $(hostname)"
}

# Sets `srun_container`, options of srun, and `prefix`, the words before a command, so that it runs in the container.
use_container() {
  local runtime=${CONTAINER_RUNTIME:-none} mounts=$PWD:$PWD${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}
  srun_container=() prefix=()
  case $runtime in
    none) return ;;
    pyxis | apptainer) [[ -n ${CONTAINER_IMAGE:-} ]] || die "CONTAINER_RUNTIME=$runtime needs CONTAINER_IMAGE" ;;
    *) die "CONTAINER_RUNTIME=$runtime: none, pyxis or apptainer" ;;
  esac
  unset PYTHONPATH PYTHONHOME VIRTUAL_ENV # of the machine outside
  if [[ $runtime == pyxis ]]; then
    srun_container=("--container-image=$CONTAINER_IMAGE" "--container-mounts=$mounts" "--container-workdir=$PWD"
      --no-container-entrypoint)
  else
    prefix=(apptainer exec --bind "$mounts" --pwd "$PWD")
    if [[ -n ${SLURM_JOB_GPUS:-}${SLURM_GPUS_ON_NODE:-} ]]; then prefix+=(--nv); fi
    prefix+=("$CONTAINER_IMAGE")
  fi
}

# ---------------------------------------------------------------------------------------------------------------------- steps
# in_step NODE,NODE COMMAND...: a task on each of these nodes with all of its CPUs and GPUs, shared with the job's other steps.
# The number of tasks is said although it follows: srun would take the job's.
in_step() {
  local count
  count=$(wc -w <<<"${1//,/ }")
  srun --overlap --nodelist="$1" --nodes="$count" --ntasks="$count" --ntasks-per-node=1 --kill-on-bad-exit=1 \
    --cpu-bind=none --export=ALL "${srun_container[@]}" "${prefix[@]}" "${@:2}"
}

# start_agents STEP NODE,NODE: `mmsr1 node` on each of them, in the background, each with a log of its own.
start_agents() {
  local step=$1
  # shellcheck disable=SC2016  # the inner shell's
  (
    in_step "$2" bash -c 'exec >>"$0.$SLURMD_NODENAME.log" 2>&1; exec "$@"' "$logs/$life.$step" \
      "${command[@]}" node --step "$step" </dev/null || {
      code=$?
      # Once the head has ended, its steps end with it, however.
      [[ -e $logs/$life.over ]] || say "the step $step ended with exit code $code: $logs/$life.$step.*.log"
    }
  ) &
}

# Starts COMMAND on the first node, in the background; its process's number, the one outside of a container too, is in a file.
start_head() {
  head_file=$logs/$life.head.pid asked=""
  rm -f "$head_file"
  # shellcheck disable=SC2016  # the inner shell's
  in_step "$first" bash -c 'echo $$ >"$0"; exec "$@"' "$head_file" "$@" &
  head=$!
}

# deliver SIGNAL: to the head alone. srun would send it to every process of the step, and end those that do not expect it.
deliver() {
  asked=$1
  say "SIG$1 arrived: the head is told"
  if [[ -s $head_file ]]; then kill -s "$1" "$(cat "$head_file")" || true; fi
}

# Waits for the head and returns its exit code. A signal that is trapped interrupts `wait`.
wait_for_head() {
  while kill -0 "$head" 2>/dev/null; do wait "$head" || true; done
  local code=0
  wait "$head" || code=$?
  # Asked before it could listen: nothing was done that could be lost.
  if [[ $asked == USR1 && $code == "$KILLED_BY_USR1" ]]; then code=$REQUEUE_ME; fi
  return "$code"
}

# The job waits in the queue for some two minutes; its start time is left to Slurm. This script waits to be ended by Slurm: where
# it ends first, with whatever code, the job may count as failed, and what depends on it is dropped.
requeue() {
  local most=${MMSR1_REQUEUES:-50}
  if ((${SLURM_RESTART_COUNT:-0} >= most)); then
    say "requeued $most times already (MMSR1_REQUEUES): not once more. The same submission goes on from the last checkpoint"
    exit 1
  fi
  say "back into the queue, from the last checkpoint"
  scontrol requeue "$(job_id)" || { say "scontrol requeue failed: submit it again"; exit 1; }
  sleep 600
  say "Slurm has not ended this life of the job within ten minutes"
  exit 1
}

begin() {
  [[ -n ${SLURM_JOB_ID:-} ]] || { echo "this is a job: sbatch $0 ..." >&2; exit 2; }
  export PYTHONUNBUFFERED=1
  unset SLURM_EXPORT_ENV # of an sbatch --export=...: steps get what this script exports
  load_secrets
  use_container
  command=("${MMSR1_COMMAND[@]:-mmsr1}")
  logs=${MMSR1_LOGS:-slurm-logs} life=$(job_id).${SLURM_RESTART_COUNT:-0}
  mkdir -p "$logs"
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  first=${nodes[0]}
  local node found gpus=${SLURM_GPUS_ON_NODE:-${SLURM_GPUS_PER_NODE:-0}} known=()
  for node in "${nodes[@]}"; do
    found=$(node_address "$node")
    known+=("$node=$found=${gpus##*:}")
  done
  address=$(cut -d= -f2 <<<"${known[0]}")
  MMSR1_NODES=$(IFS=,; echo "${known[*]}") # NAME=ADDRESS=GPUS,...: in a container there is no scontrol to ask
  export MMSR1_NODES
}

# ----------------------------------------------------------------------------------------------------------------------- jobs
# mmsr1_job VERB CONFIG [key=value...]: the head on the first node, and what `mmsr1 plan` names: a step of agents a line.
mmsr1_job() {
  begin
  export CUDA_DEVICE_MAX_CONNECTIONS=1 # Megatron-Core overlaps by the order in one queue
  local verb=$1 arguments=("${@:2}") steps="" step names
  [[ ${#arguments[@]} -gt 0 ]] || die "name a config, as in: sbatch $verb.sbatch CONFIG [key=value ...]"
  say "$verb, restart ${SLURM_RESTART_COUNT:-0}, on ${nodes[*]}; the steps' logs: $logs/$life.*"
  if ((${#nodes[@]} > 1)); then
    steps=$(in_step "$first" "${command[@]}" plan "${arguments[@]}" --steps) || die "mmsr1 plan failed: see above"
  fi
  if [[ -n $steps ]]; then
    MMSR1_HEAD=$address:$(free_port "$address")
    MMSR1_JOB_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    export MMSR1_HEAD MMSR1_JOB_TOKEN
    while read -r step names; do start_agents "$step" "$names"; done <<<"$steps"
  fi
  run_head USR1 "${command[@]}" "$verb" "${arguments[@]}"
}

# mmsr1_alone ARGUMENT...: one mmsr1 on the first node.
mmsr1_alone() {
  begin
  say "$1, restart ${SLURM_RESTART_COUNT:-0}, on $first"
  run_head TERM "${command[@]}" "$@"
}

# run_head SIGNAL COMMAND...: the rest of the job. SIGNAL is what the head is told when the job's time is nearly over.
run_head() {
  local signal=$1 code=0
  start_head "${@:2}"
  # shellcheck disable=SC2064  # the signal's name is meant as it is now
  trap "deliver $signal" "$signal"
  wait_for_head || code=$?
  trap '' "$signal"
  : >"$logs/$life.over"
  end_agents
  say "ended with exit code $code"
  if [[ $code == "$REQUEUE_ME" ]]; then requeue; fi
  exit "$code"
}

# Agents end when their head does. What does not is killed by Slurm with the job.
end_agents() {
  local i
  for ((i = 0; i < 300; i++)); do
    [[ -n $(jobs -rp) ]] || return 0
    sleep 0.1
  done
  say "steps run on without their head, and end with the job"
}
