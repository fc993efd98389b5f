#!/usr/bin/env bash
# Installs the packages (Debian's, Ubuntu's) that are missing, and says which. Idempotent: does nothing where all are there.
set -euo pipefail

packages=(
  qemu-system-x86 qemu-utils          # the virtual machine
  skopeo umoci e2fsprogs cpio zstd xz-utils  # OCI image to disk, initramfs
  clang llvm libbpf-dev libbpf1 gcc make libc6-dev linux-libc-dev  # C parts
  iproute2 python3-venv
  redis-server redis-tools sqlite3 iperf3 curl openssh-client openssh-server netcat-openbsd  # real clients for tests and benchmarks
  busybox-static mmdebstrap afl++     # the images that demo and tests build
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  echo "setup: packages are there"
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "setup: ${missing[*]}: not installed; run this as root, or: apt-get install ${missing[*]}" >&2
  exit 1
fi
echo "setup: installing packages (the first time a minute to five, as network and machine are): ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
echo "setup:   reading the package lists"
apt-get update -qq
# No service of these packages is to start: policy-rc.d says so while we install, and is put back afterwards.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get install -y -q --no-install-recommends "${missing[@]}" 2> >(grep -v "invoke-rc.d\|runlevel" >&2) |
  {
    all=some fetched=0 installed=0
    while read -r line; do
      case $line in
        *" newly installed, "*) all=${line#*, } all=${all%% *} ;;
        "Need to get "*) size=${line#Need to get } && echo "setup:   fetching $all packages, ${size% of archives*}" ;;
        Get:*) fetched=$((fetched + 1)) && if ((fetched % 10 == 0)); then echo "setup:   fetched $fetched of $all"; fi ;;
        "Setting up "*) installed=$((installed + 1)) && if ((installed % 10 == 0)); then echo "setup:   installed $installed of $all"; fi ;;
      esac
    done
  }
echo "setup: packages are there"
