#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under ten minutes and without a network: build, tests, sanitizers, benchmarks.
#
#   bench/gpu.sh [--wheels DIR] [--out DIR] [--stages LIST] [--seconds N] [--dry-run]
#
#   --wheels DIR   packages that this Python lacks (nanobind, scikit-build-core, moocore, cffi, ...); none is downloaded
#   --out DIR      logs and results, a few files (default: gpu-out)
#   --stages LIST  some of check,wheels,build,tests,sanitizer,bench, by commas (default: all)
#   --work DIR     keep the build and Triton's cache there, so that later calls can run other stages (default: a temporary)
#   --seconds N    for everything together (default: 570); a stage also has a limit of its own
#   --dry-run      print the stages and their commands
#
# Needs Python >= 3.10 with torch >= 2.10, Triton and pytest, nvcc, cmake >= 3.26, ninja, scikit-build-core and nanobind.
# PYTHON names the interpreter. Nothing is installed into it: the package goes to a temporary folder.
# Exit code: 1 when a stage fails (the others still run), 2 without a GPU, 3 for a wrong argument.
set -uo pipefail

python=${PYTHON:-python3}
wheels="" out="gpu-out" work="" stages="check,wheels,build,tests,sanitizer,bench" total=570 dry=0
usage() { sed -n '2,17s/^# \{0,1\}//p' "$0"; }
value() { [ $# -ge 2 ] || { echo "$1: expected a value" >&2; exit 3; }; }
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) value "$@"; wheels=$2; shift ;;
    --out) value "$@"; out=$2; shift ;;
    --stages) value "$@"; stages=$2; shift ;;
    --work) value "$@"; work=$2; shift ;;
    --seconds) value "$@"; total=$2; shift ;;
    --dry-run) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "unknown argument: $1" >&2; usage >&2; exit 3 ;;
  esac
  shift
done
case $total in '' | *[!0-9]*) echo "--seconds: expected a number, got '$total'" >&2; exit 3 ;; esac
for stage in ${stages//,/ }; do
  case $stage in
    check | wheels | build | tests | sanitizer | bench) ;;
    *) echo "--stages: expected some of check,wheels,build,tests,sanitizer,bench, got '$stage'" >&2; exit 3 ;;
  esac
done
if [ -n "$wheels" ] && [ ! -d "$wheels" ]; then echo "--wheels: no folder $wheels" >&2; exit 3; fi
[ -z "$wheels" ] || wheels=$(cd "$wheels" && pwd)

command -v "$python" >/dev/null || { echo "no $python: set PYTHON to an interpreter with torch" >&2; exit 3; }
if [ $dry = 0 ]; then
  mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 3
  if [ -n "$work" ]; then
    mkdir -p "$work" && work=$(cd "$work" && pwd) || exit 3
  else
    work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
  fi
else
  work=WORK
fi
cd "$(dirname "$0")/.." || exit 3

ask() { "$python" -c "$1" 2>/dev/null; }
capability=$(ask 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || capability=""
have_gpu=1
if [ -z "$capability" ]; then
  have_gpu=0
  capability=${CUDAARCHS:-90}
  echo "no GPU: torch finds no CUDA device. Only check, wheels and build can run; the build is for sm_$capability."
fi
cuda=ON
if ! command -v "${CUDACXX:-nvcc}" >/dev/null; then
  cuda=OFF
  echo "no nvcc on the PATH: building without the CUDA C++ kernels (hypervolume); the Triton ones remain."
fi

export MORLFAST_STATIC=1
export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TRITON_CACHE_DIR="$work/triton"
export CMAKE_BUILD_PARALLEL_LEVEL="${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}"

failures=0
summary() { if [ $dry = 1 ]; then echo "$*"; else echo "$*" | tee -a "$out/summary.txt"; fi; }
wanted() { case ",$stages," in *",$1,"*) return 0 ;; *) return 1 ;; esac; }

# run NAME LIMIT LOG COMMAND...: the command under its limit, its output in a log, its seconds in the summary.
run() {
  local name=$1 limit=$2 log=$3 start=$SECONDS left=$((total - SECONDS)) code lines
  shift 3
  if [ $dry = 1 ]; then
    printf '%-22s at most %3s s: ' "$name" "$limit"
    printf '%q ' "$@"
    echo
    return 0
  fi
  [ "$left" -lt "$limit" ] && limit=$left
  if [ "$limit" -le 0 ]; then
    summary "$name: NOT RUN, the $total s are over"
    failures=$((failures + 1))
    return 1
  fi
  echo "== $name (at most $limit s)" | tee -a "$out/$log"
  lines=$(wc -l <"$out/$log")
  timeout -k 5 "$limit" "$@" >>"$out/$log" 2>&1
  code=$?
  tail -n "+$((lines + 1))" "$out/$log" | tail -n 8
  case $code in
    0) summary "$name: ok, $((SECONDS - start)) s" ;;
    124 | 137) summary "$name: FAILED, over its $limit s" ;;
    *) summary "$name: FAILED with exit code $code, $((SECONDS - start)) s" ;;
  esac
  [ $code = 0 ] || failures=$((failures + 1))
  return $code
}
skip() { summary "$1: SKIPPED, $2"; }

[ $dry = 1 ] || : >"$out/summary.txt"
[ $dry = 1 ] || rm -f "$out"/*.log

versions='
import importlib.metadata as metadata, os, platform, sys, torch
print("Python", platform.python_version(), "torch", torch.__version__, "CUDA", torch.version.cuda, "cores", os.cpu_count())
if torch.cuda.is_available():
    device = torch.cuda.get_device_properties(0)
    print(device.name, f"sm_{device.major}{device.minor}", f"{device.total_memory >> 30} GiB")
wrong = []
least = {"torch": "2.10", "triton": "3.6", "nanobind": "2.9", "scikit-build-core": "1.1.2", "pytest": "7", "hypothesis": "6"}
for name, least_version in least.items():
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = None
    number = lambda text: [int(part) for part in text.split("+")[0].split(".")[:3] if part.isdigit()]
    if version is None or number(version) < number(least_version):
        wrong.append(name)
    print(f"{name} {version}, needs >= {least_version}", "<-- put a wheel into --wheels" if name in wrong else "")
print("In static mode nanobind 2.9 is enough; pyproject.toml asks for the version that split mode needs.")
sys.exit(bool(wrong))
'

wanted wheels && {
  if [ -n "$wheels" ]; then
    # One by one: a wheel for another Python must not keep the others out.
    # shellcheck disable=SC2016
    run wheels 60 build.log bash -c '
      for wheel in "$1"/*.whl; do
        "$2" -m pip install -q --no-index --find-links "$1" --no-deps --target "$3" --upgrade "$wheel" ||
          echo "not installed: ${wheel##*/}"
      done' _ "$wheels" "$python" "$work/site"
  else
    skip wheels "no --wheels"
  fi
}
wanted check && run check 60 build.log "$python" -c "$versions"
wanted build && run build 180 build.log "$python" -m pip install -v --no-index --no-build-isolation --no-deps \
  --target "$work/site" --upgrade "-Ccmake.define.MORLFAST_CUDA=$cuda" "-Ccmake.define.CMAKE_CUDA_ARCHITECTURES=$capability-real" \
  "-Cbuild-dir=$work/build" .
wanted build && run "import" 30 build.log "$python" -c 'import morlfast; print(morlfast._C.build_info)'
if [ $dry = 0 ] && [ $have_gpu = 0 ]; then
  for stage in tests sanitizer bench; do wanted $stage && skip $stage "no GPU"; done
  exit 2
fi
wanted tests && run tests 400 tests.log "$python" -m pytest -m gpu -v --durations=10 -p no:cacheprovider \
  tests/triton/test_gpu.py tests/cuda/test_hypervolume_gpu.py
wanted bench && run bench 240 bench.log "$python" -m bench --device cuda --seconds 0.2 --cap 1 --json "$out"
wanted sanitizer && {
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) || sanitizer=""
  if [ -z "$sanitizer" ] && [ $dry = 1 ]; then sanitizer=compute-sanitizer; fi
  if [ -z "$sanitizer" ]; then
    skip sanitizer "no compute-sanitizer on the PATH or in /usr/local/cuda/bin"
  else
    for tool in memcheck racecheck initcheck synccheck; do
      # Without torch's cache every tensor is an allocation of its own, so that a step beyond it is seen.
      run "sanitizer $tool" 90 sanitizer.log env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" \
        --error-exitcode 86 "$python" -m bench.sanitize
    done
  fi
}

if [ $dry = 1 ]; then exit 0; fi
summary "all stages: $SECONDS s, $failures failed"
[ "$failures" = 0 ]
