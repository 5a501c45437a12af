#!/bin/sh
# The browser in which pages are tested, from Debian's packages, where that is possible; else those tests are skipped.
have() { command -v "$1" >/dev/null 2>&1; }

if have chromium && have chromedriver; then
    exit 0
fi
if ! have apt-get || [ "$(id -u)" -ne 0 ]; then
    echo "No chromium and chromedriver here, and no right to install them: tests in a browser will be skipped." >&2
    exit 0
fi
echo "Installing chromium and chromium-driver, in which pages are tested." >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null && apt-get install -qq --no-install-recommends chromium chromium-driver >/dev/null ||
    echo "That did not work: tests in a browser will be skipped." >&2
