#!/bin/sh
# Chromium with its driver, for the tests that look at the report's page in a browser: 130 MB to fetch, 440 MB on the disk.
# Does nothing when both are there. As root on a system with apt-get it installs them; elsewhere it prints the line to
# type. It never fails: without a browser these tests are skipped with the reason.
command -v chromium >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1 && exit 0
line="apt-get install -y --no-install-recommends chromium chromium-driver"
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "for the tests in a browser, as root: $line"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
echo "installing Chromium for the tests in a browser"
log=$(mktemp)
{ apt-get update && $line -o DPkg::Lock::Timeout=300; } >"$log" 2>&1 || # another installation may be at work
    echo "not installed: $(grep '^E:' "$log" | head -1); later, as root: $line"
rm -f "$log"
exit 0
