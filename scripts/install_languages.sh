#!/bin/sh
# What running programs of the code benchmarks needs: bubblewrap, and the languages of MultiPL-E with their libraries.
# Does nothing when all is there. As root on a system with apt-get it installs what is missing; elsewhere it prints the
# line to type. It never fails: without a language, its benchmark is refused and its tests are skipped with the reason.
missing=""
need() { # need PACKAGES TEST… : the Debian packages, unless the test holds
    packages=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $packages"
}

need bubblewrap command -v bwrap
need util-linux command -v prlimit
need python3 test -x /usr/bin/python3 -o -x /usr/local/bin/python3
need g++ command -v g++
need php-cli command -v php
need default-jdk-headless command -v javac
need libjavatuples-java test -e /usr/share/java/javatuples.jar
need "mono-mcs mono-runtime libmono-system-numerics4.0-cil" sh -c "command -v mcs && command -v mono"
need nodejs command -v node

typescript=""
if ! command -v tsc >/dev/null 2>&1; then
    if command -v npm >/dev/null 2>&1; then
        typescript="npm install -g typescript@5"
    else
        missing="$missing node-typescript"
    fi
fi

[ -z "$missing$typescript" ] && exit 0
install="apt-get install -y --no-install-recommends"
line="$install$missing"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "for the code benchmarks, as root:${missing:+ $line}${missing:+${typescript:+ &&}}${typescript:+ $typescript}"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if [ -n "$missing" ]; then
    echo "installing languages of the code benchmarks:$missing"
    log=$(mktemp)
    patient="-o DPkg::Lock::Timeout=300" # another installation may be at work
    if ! { apt-get update && $install $patient $missing; } >"$log" 2>&1; then
        for package in $missing; do # one that this system does not know keeps none of the others away
            $install $patient "$package" >"$log" 2>&1 || echo "not installed: $package: $(grep '^E:' "$log" | head -1)"
        done
    fi
    rm -f "$log"
fi
if [ -n "$typescript" ]; then
    $typescript >/dev/null 2>&1 || echo "TypeScript could not be installed; later: $typescript"
fi
exit 0
