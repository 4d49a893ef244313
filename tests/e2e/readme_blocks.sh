# Sourced by test_readme.sh and deploy/check. The ```sh blocks of a document; a line right before a block says how
# it is run:
#
#   <!-- test: skip REASON -->        not run; its programs, options and files are still looked up
#   <!-- test: env KEY=VALUE ... -->  run with these in the environment
#   <!-- test: long [FILE ...] -->    by test_readme.sh in a short form, by `deploy/check --long` as written, if the
#                                     files it needs are there; commands that fetch files are only looked up

# readme_blocks FILE: for each block a line "<line number> <marker>" and its commands, each behind a tab; a command
# that goes on after a backslash becomes one line.
readme_blocks() {
    awk '
    !inside && /^<!-- test: .* -->[ \t]*$/ { marker = $0; sub(/^<!-- test: /, "", marker); sub(/ -->[ \t]*$/, "", marker); next }
    !inside && /^[ \t]*```sh[ \t]*$/ { inside = 1; print NR " " marker; command = ""; next }
    inside && /^[ \t]*```/ { inside = 0; marker = ""; next }
    inside && /\\$/ { command = command substr($0, 1, length($0) - 1); next }
    inside { command = command $0; if (command ~ /[^ \t]/ && command !~ /^[ \t]*#/) print "\t" command; command = ""; next }
    { marker = "" }
    END { if (inside) { print "a block of commands has no end" > "/dev/stderr"; exit 1 } }' "$1"
}

readme_fetches() { [[ $1 =~ ^deploy/get- ]]; }

# How to get a file that a long block needs.
readme_how_to_get() {
    local name
    name=$(cut -d/ -f2 <<<"$1")
    case "$1" in
    models/*) echo "deploy/get-model $name" ;;
    data/*) echo "deploy/get-data $name" ;;
    *) echo "see README.md" ;;
    esac
}
