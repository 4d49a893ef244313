# Sourced by deploy/quickstart and deploy/check: installs the Debian packages that are missing, configures
# and builds. Everything it prints goes to standard error.

IFL_PACKAGES="build-essential cmake ninja-build pkg-config libzmq3-dev libmsgpack-dev libcmocka-dev
libjansson-dev libyaml-dev libpcre2-dev libutf8proc-dev libxxhash-dev libflint-dev libflint-arb-dev libgmp-dev
libcurl4-openssl-dev python3"

say() { printf '%s\n' "$*" >&2; }

# Installs what is missing as root or through sudo; else says the exact line and stops.
ifl_packages() {
    local missing=() package
    for package in $IFL_PACKAGES; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    local line="apt-get install -y --no-install-recommends ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        say "These Debian packages are needed, and there is no apt-get here: ${missing[*]}"
        exit 69
    fi
    local sudo=""
    if [ "$(id -u)" -ne 0 ]; then
        if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
            sudo="sudo"
        else
            say "Some Debian packages are missing. Please run this as root, then start again:"
            say "    $line"
            exit 69
        fi
    fi
    say "installing: ${missing[*]}"
    # An image's package lists may be old or absent; a failing update still leaves a usable list sometimes.
    $sudo apt-get update -qq >&2 || say "apt-get update failed; trying with the lists at hand"
    DEBIAN_FRONTEND=noninteractive $sudo $line -qq >&2
}

# ifl_build FOLDER [CMAKE OPTION ...]: configures once, builds incrementally.
ifl_build() {
    local folder=$1
    shift
    if [ ! -f "$folder/build.ninja" ]; then
        say "configuring $folder"
        cmake -S . -B "$folder" -G Ninja "$@" >"$folder.log" 2>&1 || { cat "$folder.log" >&2; exit 70; }
    fi
    say "building $folder"
    ninja -C "$folder" >"$folder.log" 2>&1 || { tail -n 60 "$folder.log" >&2; exit 70; }
}
