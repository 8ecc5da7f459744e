# Give a member that is stopped the data of a snapshot, as one of a new cluster. All members are given the same one.
#
# Revisions, and with them fencing tokens, must never come twice. So the new cluster goes on at the microseconds since
# 1970 at AT: no etcd writes a million times a second, so no cluster that came before has got that far, whichever
# snapshot is restored how often. AT is also the cluster's token: members and sessions of the old one do not mix with it.
# SNAPSHOT (a name, or latest), AT (seconds since 1970), MEMBER, INITIAL_CLUSTER, DATA; /snapshots
set -eu
. /scripts/members.sh

chosen() {
    if [ "$SNAPSHOT" = latest ]; then
        ls /snapshots | grep '^etcd-.*\.db$' | sort | tail -n 1
    else
        echo "$SNAPSHOT"
    fi
}

free() { # the lock is etcd's own; of a running member elsewhere only the volume's access mode knows
    [ ! -f "$DATA/member/snap/db" ] || flock --nonblock --exclusive "$DATA/member/snap/db" true
}

case $AT in '' | *[!0-9]*) die 2 "AT is seconds since 1970, not '$AT'" ;; esac
done_at=$(dirname "$DATA")/restored-at
if [ "$(cat "$done_at" 2>/dev/null)" = "$AT" ]; then
    say "$MEMBER was restored at $AT already"
    exit 0
fi
name=$(chosen)
[ -n "$name" ] && [ -f "/snapshots/$name" ] || die 2 "no snapshot '$name' in /snapshots"
(cd /snapshots && sha256sum -c "$name.sha256" >/dev/null) || die 1 "$name is not what was saved"
free || die 1 "etcd runs on $DATA: stop it first"

revision=$(etcdutl snapshot status "/snapshots/$name" --write-out=fields | field Revision)
bump=$((AT * 1000000 - revision))
[ "$bump" -gt 0 ] || die 2 "AT=$AT is not after the snapshot's revision $revision"
url=$(printf '%s\n' "$INITIAL_CLUSTER" | tr ',' '\n' | sed -n "s/^$MEMBER=//p")
[ -n "$url" ] || die 2 "$MEMBER is not in $INITIAL_CLUSTER"

rm -rf "$DATA.new"
etcdutl snapshot restore "/snapshots/$name" --data-dir="$DATA.new" --bump-revision="$bump" --mark-compacted \
    --name="$MEMBER" --initial-cluster="$INITIAL_CLUSTER" --initial-cluster-token="restored-at-$AT" \
    --initial-advertise-peer-urls="$url" >/dev/null 2>&1 || die 1 "$name cannot be restored"
[ ! -d "$DATA" ] || mv "$DATA" "$DATA.before-$AT"
mv "$DATA.new" "$DATA"
echo "$AT" >"$done_at"
sync
say "$MEMBER has $name (revision $revision) and goes on at revision $((AT * 1000000))"
