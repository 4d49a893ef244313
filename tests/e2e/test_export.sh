#!/usr/bin/env bash
# `inflight export --model` as a user runs it: a GGUF file and the folder it was made from give the same weights, an
# export of an export the same bytes, and generation from it the same tokens; mistakes are refused with a reason.
set -euo pipefail
inflight=$1 source=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fail() { echo "FAILED: $*" >&2; exit 1; }
expect() { # status, text in the error, command...
    local want=$1 text=$2 got=0
    shift 2
    "$@" > out.txt 2> err.txt || got=$?
    [ "$got" -eq "$want" ] || fail "$* ended with $got, wanted $want: $(cat err.txt)"
    grep -q -- "$text" err.txt || fail "$*: no \"$text\" in: $(cat err.txt)"
}
tokens() { "$inflight" generate --model "$1" --tokens 4,8,15,16,23,42 --greedy --max-new-tokens 24 --threads 1 --json 2> err.txt |
    sed 's/.*"tokens":\[\([0-9,]*\)\].*/\1/'; }

for family in llama3 qwen2 qwen3 gemma3 qwen2-yarn; do
    models=$source/tests/golden/models/$family
    "$inflight" export --model "$models" --out "$family/folder" > folder.txt
    "$inflight" export --model "$models/model.gguf" --out "$family/gguf" > gguf.txt
    "$inflight" export --model "$family/gguf" --out "$family/again" > again.txt
    grep -q " 0 of [0-9]* parameters changed" folder.txt || fail "$family is bf16, yet: $(cat folder.txt)"
    cmp "$family/folder/model.safetensors" "$family/gguf/model.safetensors" || fail "$family: GGUF and folder differ"
    for f in config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json; do
        cmp "$family/gguf/$f" "$family/again/$f" || fail "$family: an export of the export has another $f"
    done
    ! grep -q "pad_token" "$family/gguf/tokenizer_config.json" || fail "$family: a pad token out of nothing"
    [ ! -e "$family/folder/tokenizer.json" ] || fail "$family: a tokenizer out of nothing"
    want=$(tokens "$models")
    [ -n "$want" ] || fail "$family: no tokens"
    for place in folder gguf; do
        [ "$(tokens "$family/$place")" = "$want" ] || fail "$family/$place generates other tokens than its source"
    done
done

# --tokenizer goes before the model's own; --overwrite moves an older folder aside.
"$inflight" export --model gemma3/gguf --tokenizer llama3/gguf/tokenizer.json --out other > other.txt
cmp other/tokenizer.json llama3/gguf/tokenizer.json || fail "--tokenizer was not taken"
expect 64 "exists already" "$inflight" export --model gemma3/gguf --out other
"$inflight" export --model gemma3/gguf --out other --overwrite > other.txt
"$inflight" export --model other --out other --overwrite > other.txt # onto itself
cmp other/tokenizer.json gemma3/gguf/tokenizer.json || fail "an export onto itself lost its tokenizer"
cmp other/model.safetensors gemma3/gguf/model.safetensors || fail "an export onto itself changed the weights"
[ -e other.1/config.json ] || fail "the older folder is gone"

expect 64 "one of --checkpoint" "$inflight" export --out none
expect 64 "one of --checkpoint" "$inflight" export --out none --model gemma3/gguf --checkpoint x
expect 64 "--base" "$inflight" export --out none --model gemma3/gguf --base gemma3/gguf
head -c 2000 "$source/tests/golden/models/qwen3/model.gguf" > cut.gguf
! "$inflight" export --model cut.gguf --out none > out.txt 2> err.txt || fail "a cut file was exported"
[ -s err.txt ] && [ ! -e none ] || fail "a failed export left something, or gave no reason"
[ -z "$(ls -d ./*.tmp* 2> /dev/null)" ] || fail "a temporary folder was left: $(ls -d ./*.tmp*)"
echo "test_export: passed"
