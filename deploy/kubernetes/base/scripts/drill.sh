# Restore the newest snapshot, by the script that a real restoration runs, into an etcd of this pod's own; start it,
# and see that it has everything, can be written, and begins beyond all revisions there were.
# As for restore.sh, but AT is now; OLDEST_SECONDS; /scratch
set -eu
. /scripts/members.sh

AT=$(date +%s)
export AT
began=$AT
newest=$(ls /snapshots | grep '^etcd-.*\.db$' | sort | tail -n 1)
[ -n "$newest" ] || die 1 "there is no snapshot"
age=$((AT - $(date -r "/snapshots/$newest" +%s)))
[ "$age" -le "$OLDEST_SECONDS" ] || die 1 "$newest is $age s old, more than $OLDEST_SECONDS: are snapshots taken?"

rm -rf /scratch/data /scratch/restored-at
sh /scripts/restore.sh
ETCDCTL_ENDPOINTS=http://127.0.0.1:2379
export ETCDCTL_ENDPOINTS
etcd --name="$MEMBER" --data-dir="$DATA" --log-level=error --unsafe-no-fsync \
    --listen-client-urls="$ETCDCTL_ENDPOINTS" --advertise-client-urls="$ETCDCTL_ENDPOINTS" \
    --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
    --initial-cluster="$INITIAL_CLUSTER" &
etcd=$!
trap 'kill $etcd 2>/dev/null; wait $etcd 2>/dev/null || true' EXIT
await 120 healthy "$ETCDCTL_ENDPOINTS" || die 1 "an etcd with the data of $newest does not get ready"

found=$(etcdctl get '' --from-key --count-only --write-out=fields)
keys=$(printf '%s\n' "$found" | field Count)
revision=$(printf '%s\n' "$found" | field Revision)
[ "$keys" -gt 0 ] || die 1 "$newest has no keys"
[ "$revision" -ge $((AT * 1000000)) ] || die 1 "the restored cluster is at revision $revision, which was given before"
etcdctl put /skyward-etcd-drill "$newest" >/dev/null || die 1 "the restored cluster cannot be written"
say "$newest, $age s old: $keys keys restored and readable in $(($(date +%s) - began)) s"
