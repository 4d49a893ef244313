#!/usr/bin/env bash
# Every row of the fault table twice, on small jobs that live on; deploy/soak faults plays a thousand. COUNT=N, SEED=S for
# more, or others. (unit/test_fault_books.c has the checker's failing directions.)
. "$(dirname "$0")/lib.sh"
tools=$(dirname "$inflight")/tests

# A fail point that there is none of is an error at the start, which lists those that there are.
INFLIGHT_FAILPOINT="log.sinc=kill" expect 64 "$inflight" rollouts nothing
has err.txt "log.sinc"
has err.txt "known: log.append log.write log.sync"

"$tools/run_faults" --inflight "$inflight" --proxy "$tools/chaos_proxy" --seed "${SEED:-1}" --count "${COUNT:-68}" \
    --per-job 17 --jobs 3 --hang-ms 10000 --out faults >faults.txt 2>&1 || {
    cat faults.txt >&2
    tail -n 20 faults/job-*/*.log >&2
    fail "faults: $(tail -n 1 faults.txt)"
}
has faults.txt "no violation"
holds "$(grep -cE '^ +[0-9]+  .* 2            2      0 ' faults.txt) == 34 || ${COUNT:-68} != 68" "each row twice"
cat faults.txt
