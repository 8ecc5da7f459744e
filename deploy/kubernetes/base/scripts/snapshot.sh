# Save a snapshot, prove that it can be restored, and only then give it its name. The newest KEEP are kept.
# ETCDCTL_..., KEEP; /snapshots, /scratch
set -eu
. /scripts/members.sh

source_of() { # the first member that is well and does not lead, else the first that is well
    for each in $(endpoints); do
        if healthy "$each" && ! leads "$each"; then
            echo "$each"
            return
        fi
    done
    for each in $(endpoints); do
        if healthy "$each"; then
            echo "$each"
            return
        fi
    done
    return 1
}

from=$(source_of) || die 75 "no member is well: no snapshot"
cd /snapshots
rm -f .new.* # of an attempt that was broken off
new=.new.$$
at "$from" --command-timeout=600s snapshot save "$new" >/dev/null 2>&1 || die 1 "$from gives no snapshot"

# The restoration compares the hash that etcd has appended; the status reads every page.
rm -rf /scratch/trial
etcdutl snapshot restore "$new" --data-dir=/scratch/trial >/dev/null 2>&1 || die 1 "the snapshot of $from cannot be restored"
rm -rf /scratch/trial
facts=$(etcdutl snapshot status "$new" --write-out=fields) || die 1 "the snapshot of $from cannot be read"
revision=$(printf '%s\n' "$facts" | field Revision)

name=etcd-$(date -u +%Y%m%dT%H%M%SZ)-$revision.db
sha256sum "$new" | sed "s/ .*/  $name/" >"$new.sha256"
sync
mv "$new.sha256" "$name.sha256"
mv "$new" "$name"
say "$name from $from: $(wc -c <"$name") bytes, revision $revision, restored for trial"

ls | grep '^etcd-.*\.db$' | sort -r | tail -n "+$((KEEP + 1))" | while read -r old; do
    rm -f "$old" "$old.sha256"
    say "$old removed"
done
