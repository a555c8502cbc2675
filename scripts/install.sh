#!/usr/bin/env bash
# Installs what building and running Usher's demo and tests needs and this machine lacks, and says what.
# Only root can install; anyone else is told what is missing and what that costs.
set -euo pipefail

# What it is needed for : what to look for : the Debian package
needs=(
  "building:cc:build-essential"
  "building:cmake:cmake"
  "building:pkg-config:pkg-config"
  "building:/usr/include/pcap/pcap.h:libpcap-dev"
  "building:/usr/include/openssl/ssl.h:libssl-dev"
  "the demo's network:ip:iproute2"
  "the demo's network:nsenter:util-linux"
  "running the agent as its unit does:setpriv:util-linux"
  "the demo's network:ethtool:ethtool"
  "the demo's TLS server:nginx:nginx-light"
  "the demo's client:curl:curl"
  "the demo's NETCONF element:sshd:openssh-server"
  "the demo's NETCONF element:netconfd:netconfd"
  "the demo's NETCONF element:ssh:openssh-client"
  "flooding the laboratory:iperf3:iperf3"
  "recording the demo's capture file:tcpdump:tcpdump"
  "comparing names with those of another reader:tshark:tshark"
)

# `bench`: what benches are measured beside, too.
if [ "${1:-}" = bench ]; then
  needs+=("comparing with a flow exporter:softflowd:softflowd")
fi

PATH="$PATH:/usr/sbin:/sbin"
missing=()
reasons=()
for need in "${needs[@]}"; do
  IFS=: read -r reason sign package <<<"$need"
  case "$sign" in
    /*) [ -e "$sign" ] && continue ;;
    *) command -v "$sign" >/dev/null && continue ;;
  esac
  missing+=("$package")
  reasons+=("  $package, for $reason")
done

if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    printf 'missing, and only root can install it (apt-get install %s):\n' "${missing[*]}" >&2
    printf '%s\n' "${reasons[@]}" >&2
  elif ! command -v apt-get >/dev/null; then
    printf 'missing, and there is no apt-get here; install by hand what gives:\n' >&2
    printf '%s\n' "${reasons[@]}" >&2
  else
    printf 'installing with apt-get:\n'
    printf '%s\n' "${reasons[@]}"
    log=$(mktemp)
    # No server that comes with a package is to start on this machine: the demo starts its own, inside namespaces.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
      printf '#!/bin/sh\nexit 101\n' >"$policy"
      chmod 755 "$policy"
      trap 'rm -f "$policy"' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
    if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
      tail -n 20 "$log" >&2
      echo "apt-get failed; its whole output is in $log" >&2
      exit 1
    fi
    rm -f "$log"
  fi
fi

if ! command -v cargo >/dev/null; then
  echo "cargo is missing: install rustup's stable toolchain from https://rustup.rs" >&2
  exit 1
fi

# Pinned maps and links live here; a machine with systemd has it mounted.
if [ "$(id -u)" = 0 ] && [ -d /sys/fs/bpf ] && ! mountpoint -q /sys/fs/bpf; then
  mount -t bpf bpf /sys/fs/bpf && echo "mounted the BPF file system on /sys/fs/bpf"
fi
