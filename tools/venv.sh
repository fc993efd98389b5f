#!/usr/bin/env bash
# tools/venv.sh DIR: a virtual environment in DIR with this package in development mode, its C parts built. Says what it is at. Repeatable.
set -euo pipefail

venv=$1
echo "setup: virtual environment and C parts in $venv (the first time some 50 packages: one to six minutes, as network and machine are)"
if [ ! -x "$venv/bin/python" ]; then
  echo "setup:   making an empty environment"
  python3 -m venv "$venv"
fi

# pip tells each step on a line when nobody watches; we pass on those that show that it goes on. Its errors are on stderr, untouched.
"$venv/bin/pip" --disable-pip-version-check install --progress-bar off \
    --config-settings editable_mode=compat --editable '.[dev]' |
  while read -r line; do
    case $line in
      "Collecting "*) name=${line#Collecting }; echo "setup:   fetching ${name%% *}" ;;
      "Installing build dependencies: started") echo "setup:   preparing the build" ;;
      "Building editable "*started) echo "setup:   building the C parts" ;;
      "Installing collected packages: "*) names=${line#*: }; set -f; set -- ${names//,/ }; echo "setup:   installing $# packages" ;;
    esac
  done
echo "setup: $venv is ready"
