#!/usr/bin/env bash
# Installs Debian's Postfix, OpenSMTPD and Exim, one after the other, and has each take mail from an exit (tests/tests/peers).
# Each takes the place of the one before, and of the mail server of this machine: not for machines that have one. As root.
#
#     tests/peers.sh [postfix|opensmtpd|exim]...
set -euo pipefail
cd "$(dirname "$0")/.."

[[ $(id -u) == 0 ]] || { echo "peers.sh: run it as root: it installs mail servers, which start as root" >&2; exit 1; }

# Debian starts what it installs. Here the tests do.
policy=/usr/sbin/policy-rc.d
made=()
trap '((${#made[@]} == 0)) || rm -f "${made[@]}"' EXIT
if [[ ! -e $policy ]]; then
    made+=("$policy")
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi

declare -A packages=([postfix]="postfix sasl2-bin" [opensmtpd]=opensmtpd [exim]=exim4-daemon-light)
# The OpenSMTPD of Debian 12 itself breaks off every TLS handshake: with OpenSSL 3 it does not find its keys.
if grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release; then
    packages[opensmtpd]=opensmtpd/bookworm-backports
    backports=/etc/apt/sources.list.d/mixgate-peers.list
    made+=("$backports")
    apt-get update -q
    # Where this machine has Debian from, it has this too.
    from=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Label: Debian' 'Codename: bookworm' | sort -u | head -n 1)
    [[ -n $from ]] || { echo "peers.sh: apt has no source of Debian bookworm: add one" >&2; exit 1; }
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from bookworm-backports main" >"$backports"
fi
(($#)) || set -- postfix opensmtpd exim

apt-get update -q
for peer in "$@"; do
    printf '\n==== %s\n' "$peer"
    [[ -n ${packages[$peer]:-} ]] || { echo "peers.sh: no such mail server: $peer" >&2; exit 1; }
    # Another that installs is waited for, such as the upgrades of the machine.
    # shellcheck disable=SC2086 # a list
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y -o DPkg::Lock::Timeout=120 --no-install-recommends \
        ca-certificates openssl python3 ${packages[$peer]}
    MIXGATE_PEER=$peer cargo test --locked -p mixgate-tests --test peers -- --nocapture "${peer}_"
done
