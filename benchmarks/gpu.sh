#!/bin/bash
# Everything that needs a GPU, in phases of a few minutes. Each writes its JSON to $OUT (default outputs/gpu), whatever
# becomes of the others. Name some in PHASES to stay within a limit of time.
#
#   python benchmarks/gpu_pack.py                 # where there is a network; makes .gpu/
#   bash benchmarks/gpu.sh                        # on the GPU machine, from the root of the checkout, beside .gpu/
#   SIZE=tiny ROUNDS=10 TRY=1 bash benchmarks/gpu.sh   # the same on a CPU, to see that it works
#
# SIZE     of the models whose steps are timed: tiny, small or base (ViT-B/16 and BERT-base)
# ROUNDS   steps of every method, a multiple of 10
# PHASES   of: tests (what only a GPU can show), suite (all tests, on the CPUs, with this machine's versions), steps,
#          compiled_steps, training, tasks (all rows of the pretrained tasks of images); without it tests, steps,
#          compiled_steps and training
# TRY      not empty: without the GPU tests, with little time
# MINUTES  after which the phases `training` and `tasks` start no run (2)
# TASKS    of the phase `training`: fresh seeds of these tasks (benchmarks/confirm.py)
# PYTHON   the interpreter (python3)
cd "$(dirname "$0")/.." || exit 1
out=${OUT:-outputs/gpu}
mkdir -p "$out"
python=${PYTHON:-python3}
size=${SIZE:-base} rounds=${ROUNDS:-20}
phases=${PHASES:-tests steps compiled_steps training}
batch=64 workers=12 tests=160 steps=150 compiled=240
if [ -n "$TRY" ]; then batch=4 workers=2 tests=100 steps=200 compiled=300; fi

site=$(mktemp -d)
if [ -z "$TRY" ] && compgen -G ".gpu/*wheels/*.whl" > /dev/null; then
    # They are found before what is installed, so .gpu/ holds only what the machine lacks.
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" .gpu/*wheels/*.whl || exit 1
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
if [ -d .gpu/data ]; then mkdir -p data && cp -r .gpu/data/. data/; fi
failures=0

phase() { # name, seconds, command
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    case " $phases " in *" $name "*) ;; *) return ;; esac
    echo "== $name (at most $limit s)"
    timeout "$limit" "$@" 2>&1 | tee "$out/$name.log" | tail -n 15
    local status=${PIPESTATUS[0]}
    [ "$status" -eq 0 ] || failures=$((failures + 1))
    printf '{"phase": "%s", "exit_status": %d, "seconds": %d}\n' "$name" "$status" $((SECONDS - start)) >> "$out/phases.jsonl"
}

rm -f "$out/phases.jsonl"
pytest=("$python" -m pytest -q -p no:cacheprovider -n "$workers")
export TORCHINDUCTOR_COMPILE_THREADS=1  # with more of them, pytest's workers did not end
phase tests $tests "${pytest[@]}" --junitxml "$out/tests.xml" \
    tests/trainer/test_cuda.py tests/trainer/test_mixed_precision.py tests/model/test_curvature.py
phase suite 300 env CUDA_VISIBLE_DEVICES= "${pytest[@]}" --junitxml "$out/suite.xml" tests
phase steps $steps "$python" benchmarks/cost.py --size "$size" --batch_size $batch --rounds "$rounds" --bf16 \
    --models vit bert --output "$out/cost_gpu.json"
phase compiled_steps $compiled "$python" benchmarks/cost.py --size "$size" --batch_size $batch --rounds "$rounds" --bf16 \
    --compile --models vit --output "$out/cost_gpu_compiled.json"
export PYTHON=$python MINUTES=${MINUTES:-2}
phase training 570 "$python" benchmarks/confirm.py ${TASKS:-wordnet fashion_mnist} --workers $workers --limit-minutes "$MINUTES"
phase tasks 570 bash -c '
    "$PYTHON" benchmarks/evidence.py clipart --workers 5 --stage further_final --limit-minutes "$MINUTES" &
    "$PYTHON" benchmarks/evidence.py solar_cells --workers 11 --stage further_final --limit-minutes "$MINUTES" &
    wait'
case " $phases " in *" training "*) cp benchmarks/results/confirmation_*.json "$out" ;; esac
case " $phases " in *" tasks "*)
    cp benchmarks/results/evidence_{clipart,solar_cells}.json "$out"
    tar -cz -C outputs -f "$out/evidence_runs.tgz" evidence ;;
esac
cat "$out/phases.jsonl"
echo "$failures phases failed"
[ "$failures" -eq 0 ]
