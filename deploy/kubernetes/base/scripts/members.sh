# What the scripts share; read by them with `.`. POSIX sh, with etcdctl and etcdutl on PATH.
# ETCDCTL_ENDPOINTS, and with TLS ETCDCTL_CACERT, ETCDCTL_CERT and ETCDCTL_KEY, say where the members are.

say() { printf '%s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*"; }

die() { # code message...
    code=$1
    shift
    say "$*" >&2
    exit "$code"
}

endpoints() { printf '%s\n' "$ETCDCTL_ENDPOINTS" | tr ',' '\n'; }

at() { # endpoint etcdctl's words...
    endpoint=$1
    shift
    ETCDCTL_ENDPOINTS=$endpoint etcdctl "$@"
}

status() { at "$1" endpoint status --write-out=json; } # endpoint; only as JSON it says everything

number() { # name; of what status says
    found=$(sed -n "s/.*\"$1\":\([0-9]*\).*/\1/p")
    [ -n "$found" ] || die 1 "a member's status has no $1"
    echo "$found"
}

field() { sed -n "s/^\"$1\" : \"\{0,1\}\([^\"]*\)\"\{0,1\}\$/\1/p" | head -n 1; } # name; of what --write-out=fields says

healthy() { at "$1" endpoint health >/dev/null 2>&1; } # endpoint; it answers, and there is a majority

leads() { # endpoint
    now=$(status "$1") || return 1
    me=$(printf '%s\n' "$now" | number member_id) || return 1
    chief=$(printf '%s\n' "$now" | number leader) || return 1
    [ "$me" = "$chief" ]
}

hexadecimal() { printf '%x' "$1"; } # as etcdctl takes the ids that it prints in decimal

await() { # seconds command...
    deadline=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$deadline" ] || return 1
        sleep 1
    done
}
