#!/bin/sh
# Run the whole study, one driver after the other. Resumable: start it again after an interruption.
#
#   WORKERS=2 NICE=5 setsid nohup benchmarks/run_evidence.sh >> outputs/evidence.log 2>&1 < /dev/null &
#
# WORKERS  processes, one core each (1)
# NICE     scheduling priority, from 0 to 19 (10)
# TASKS    which ones, in which order (all)
# PYTHON   the interpreter (python)
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1
failures=0

evidence() {
    echo "$(date '+%F %T') evidence.py $*"
    nice -n "${NICE:-10}" "${PYTHON:-python}" benchmarks/evidence.py "$@" --workers "${WORKERS:-1}" ||
        failures=$((failures + 1))
}

for stage in final further_final; do
    for task in ${TASKS:-fashion_mnist wordnet foldoc clipart solar_cells}; do evidence "$task" --stage "$stage"; done
done
echo "$(date '+%F %T') finished; $failures drivers failed"
[ "$failures" -eq 0 ]
