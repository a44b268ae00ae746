#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Creates etcd's roles for one Tidegate fleet. It may be run again: what is there stays, and what a
# later version of Tidegate needs is added. Users, and the switch to enable authentication, are
# yours: see README.md beside this file.
set -eu

usage() {
    cat <<'END'
usage: roles.sh [--root KEY] [--fleet NAME] [HOST...]

Creates these roles with etcdctl, which takes its endpoints, certificates and user from ETCDCTL_*:
  tidegate-FLEET-agent-HOST  one for each HOST: reads what agents follow, writes its own status and
                             health, and nothing else; reads, and makes if it is missing,
                             the secret key of the flow hash, which no other role can read
  tidegate-FLEET-operator    reads all of the fleet; writes everything but status and health
  tidegate-FLEET-viewer      reads all of the fleet

  --root KEY    key under which all fleets live (default: /tidegate)
  --fleet NAME  the fleet (default: default)

example:
  ETCDCTL_ENDPOINTS=https://etcd1:2379 roles.sh --fleet edge lb1 lb2 lb3
END
}

root=/tidegate
fleet=default
while [ $# -gt 0 ]; do
    case $1 in
        --root | --fleet)
            [ $# -ge 2 ] || { echo "roles.sh: $1 needs a value" >&2; exit 2; }
            if [ "$1" = --root ]; then root=$2; else fleet=$2; fi
            shift 2
            ;;
        -h | --help) usage; exit 0 ;;
        -*) echo "roles.sh: unknown option $1 (see --help)" >&2; exit 2 ;;
        *) break ;;
    esac
done

# A name with a slash or a space would grant another key than the one that is meant.
is_name() {
    case $1 in
        '' | *[!A-Za-z0-9._-]* | [!A-Za-z0-9]* | *[!A-Za-z0-9]) return 1 ;;
    esac
}
for name in "$fleet" "$@"; do
    is_name "$name" || { echo "roles.sh: $name is not a name of Tidegate's" >&2; exit 2; }
done
case $root in
    /*[!/]) ;;
    *) echo "roles.sh: --root is a key that begins with a slash and ends without one" >&2; exit 2 ;;
esac

export ETCDCTL_API=3
base=$root/$fleet

add_role() {
    if out=$(etcdctl role add "$1" 2>&1); then
        echo "$out"
    else
        case $out in
            *'role name already exists'*) echo "Role $1 exists" ;;
            *) echo "roles.sh: cannot add role $1: $out" >&2; exit 1 ;;
        esac
    fi
}

grant() { # ROLE read|readwrite key|prefix PATH
    if [ "$3" = prefix ]; then
        etcdctl role grant-permission "$1" --prefix=true "$2" "$4" >/dev/null
    else
        etcdctl role grant-permission "$1" "$2" "$4" >/dev/null
    fi
}

for host in "$@"; do
    role=tidegate-$fleet-agent-$host
    add_role "$role"
    for what in config tracks hosts overrides health; do
        grant "$role" read prefix "$base/$what/"
    done
    grant "$role" read key "$base/fleet"
    grant "$role" readwrite key "$base/status/$host"
    grant "$role" readwrite prefix "$base/health/$host/"
    # Who knows it can aim flows at one backend. Writing, since the first agent makes it.
    grant "$role" readwrite key "$root-secrets/$fleet/hash-seed"
done

role=tidegate-$fleet-operator
add_role "$role"
grant "$role" read prefix "$base/"
for what in config tracks hosts overrides; do
    grant "$role" readwrite prefix "$base/$what/"
done
for what in fleet rollout rollout-driver; do
    grant "$role" readwrite key "$base/$what"
done

role=tidegate-$fleet-viewer
add_role "$role"
grant "$role" read prefix "$base/"
