#!/usr/bin/env bash
# All that wants a GPU, in one go of under 9 minutes on a bare machine with CUDA, torch and Triton.
#
#   benchmarks/gpu_suite.sh [--build] [--test] [--kernels] [--stream] [--cogvideox] [--out FOLDER]
#                           [--wheels FOLDER] [--targets] [--clip] [--startup]
#
# build installs LiveReel; test runs what is marked gpu; kernels times every op against its peers;
# stream is Wan 1.3B with random weights on each road, in bfloat16 and in fp8; cogvideox decodes 49
# frames by its VAE, beside diffusers where that is installed. The rest, which run when they are
# named, measure what is aimed at on one H200: targets streams, one of them paced, and the VAE, clip
# a whole clip of 50 steps beside diffusers compiled, startup cold processes whose files, 15 GB on
# the local disk, lie in the system's cache; each figure's ratio to its target is printed at the end.
#
# Without a stage's flag all others run; each stands alone, so that a short call can be filled, and
# one that is out of time keeps what it has measured by then. No network is used: what is needed
# beside torch and Triton (scikit-build-core, pybind11, ninja, pytest, pytest-timeout, safetensors,
# tokenizers, transformers, accelerate, ftfy, wcwidth, diffusers; pytest-xdist for speed) is there
# already or lies in --wheels as wheels. FOLDER (default: out/gpu) gets suite.json with the chip,
# driver, versions, commit and each stage's outcome and seconds, and beside it each stage's own files.
# Where $OUT is a folder, all of them are put there as they come, as suite.tar.gz. $COMMIT names the
# commit where there is no git.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=out/gpu wheels="" stages=()
while (($#)); do
  case $1 in
    --build | --test | --kernels | --stream | --cogvideox | --targets | --clip | --startup)
      stages+=("${1#--}") ;;
    --out) out=$2 && shift ;;
    --wheels) wheels=$2 && shift ;;
    *) sed -n '2,22s/^# \{0,1\}//p' "$0" && exit 2 ;;
  esac
  shift
done
((${#stages[@]})) || stages=(build test kernels stream cogvideox)
mkdir -p "$out"
python=${PYTHON:-python3}
COMMIT=${COMMIT:-$(git describe --always --dirty 2> /dev/null)}
[[ ${stages[*]} == build ]] || "$python" -c '
import sys, torch
torch.cuda.is_available() or sys.exit("gpu_suite: torch sees no CUDA device here")' || exit 2

# Seconds that a stage may take. Together with a margin those of the first line are the 9 minutes.
declare -A limit=([build]=80 [test]=160 [kernels]=110 [stream]=110 [cogvideox]=60
  [targets]=520 [clip]=420 [startup]=400)

keep() { # Puts what there is by now where it will be fetched from, whole or not at all.
  [[ -d ${OUT:-} ]] || return 0
  # A log that grows meanwhile is no error.
  tar -czf "$OUT/.suite.part" -C "$out" --exclude=.suite.part --exclude=suite.tar.gz . || [[ $? == 1 ]]
  mv "$OUT/.suite.part" "$OUT/suite.tar.gz"
}

run_build() {
  [[ -z $wheels ]] || "$python" -m pip install --no-index --no-deps --quiet "$wheels"/*.whl
  "$python" -m pip install --no-build-isolation --no-deps --quiet .
}
run_test() {
  bad=0
  # Most of the kernels' tests is compiling.
  ! "$python" -c "import xdist" 2> /dev/null || workers="-n 8"
  tests stream 90 tests/engine/runners
  tests kernels 65 tests/kernels tests/benchmarks/kernels ${workers:-}
  return $bad
}
tests() { # NAME SECONDS PATH...
  timeout --foreground -k 10 "$2" "$python" -m pytest -q -m gpu -p no:cacheprovider --durations 10 \
    --continue-on-collection-errors --junitxml="$out/tests-$1.xml" "${@:3}" || bad=1
}
run_kernels() { # what a stream's time goes into comes first
  "$python" -m livereel.engine.cli bench kernels --runs 10 --json "$out/kernels.json" \
    chunk_attention rms_norm_silu norm_modulate residual_norm gate_residual qk_norm_rope \
    causal_conv3d upsample2x_conv linear_fp8 to_pixels group_norm_silu spatial_norm \
    temporal_attention
}
run_stream() { "$python" -m livereel.benchmarks.bench_wan --chunks 10 --json "$out/stream.json"; }
run_cogvideox() {
  "$python" -m livereel.benchmarks.bench_cogvideox --rounds 3 --json "$out/cogvideox.json"
}
bench() { # WHAT MODEL NAME OPTION...: what fails, or hangs, leaves the others their turn
  module livereel.engine.cli bench "$1" --model "$2" --json "$out/$3.json" "${@:4}"
}
module() { # MODULE OPTION...
  timeout --foreground -k 10 150 "$python" -m "$@" --random-weights || bad=1
  keep
}
live() { # NAME OPTION...
  module livereel.benchmarks.bench_live --model wan2.1-1.3b --decoder tiny --seconds 20 \
    --json "$out/$1.json" "${@:2}"
}
run_targets() {
  bad=0
  bench stream wan2.1-1.3b target-tiny --decoder tiny --baseline none
  bench stream wan2.1-1.3b target-fp8 --decoder tiny --dtype fp8
  bench stream wan2.1-1.3b target-full --window 21 12 --baseline none
  bench vae wan2.1-1.3b target-vae --baseline diffusers-channels-last --runs 5
  live target-live
  live target-live-1 --chunk 1
  bench stream wan2.1-1.3b target-first --first-chunk 1 --decoder tiny --baseline none --runs 3
  bench stream wan2.1-14b target-14b --window 12 --runs 5 --baseline none
  bench stream wan2.1-14b target-14b-fp8 --window 12 --runs 5 --dtype fp8
  return $bad
}
run_clip() {
  "$python" -m livereel.engine.cli bench clip --model wan2.1-1.3b --random-weights --steps 50 \
    --baseline diffusers-fast --runs 1 --json "$out/target-clip.json"
}
run_startup() {
  folder=$(mktemp -d)
  trap "rm -rf '$folder'" EXIT
  folder+=/wan2.1-1.3b
  "$python" -m livereel.benchmarks.random_folder wan2.1-1.3b "$folder"
  start() {
    "$python" -m livereel.engine.cli bench startup --model "$folder" --device cuda "$@"
  }
  bad=0
  start --runs 2 --json "$out/target-startup.json" || bad=1
  keep
  start --runs 1 --empty-cache --json "$out/target-startup-no-kernels.json" || bad=1
  return $bad
}

export -f bench keep live module tests run_build run_test run_kernels run_stream run_cogvideox
export -f run_targets run_clip run_startup
export python out wheels COMMIT
outcomes=() failed=0
for stage in "${stages[@]}"; do
  begun=$SECONDS
  timeout -k 20 "${limit[$stage]}" bash -o pipefail -c "set -e; run_$stage" > >(tee "$out/$stage.log") 2>&1
  code=$?
  ((code == 0)) || failed=1
  outcomes+=("$stage $code $((SECONDS - begun))")
  echo "== $stage: exit $code after $((SECONDS - begun)) s"
  keep
done

case " ${stages[*]} " in
  *" targets "* | *" clip "* | *" startup "*) "$python" -m livereel.benchmarks.targets "$out" ;;
esac

"$python" - "$out/suite.json" "${outcomes[@]}" << 'PYTHON'
import json, os, platform, subprocess, sys
from importlib import metadata


def said(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


chip, _, driver = (
    said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader") or ""
).partition(", ")
stages = {}
for outcome in sys.argv[2:]:
    name, code, seconds = outcome.split()
    stages[name] = {"exit": int(code), "seconds": int(seconds)}
report = {
    "chip": chip or None,
    "driver": driver or None,
    "python": platform.python_version(),
    "versions": {name: version(name) for name in ("livereel", "torch", "triton", "numpy")},
    "commit": os.environ.get("COMMIT") or None,
    "stages": stages,
}
with open(sys.argv[1], "w") as file:
    json.dump(report, file, indent=2)
    file.write("\n")
PYTHON
keep
exit $failed
