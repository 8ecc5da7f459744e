# Before etcd starts: a member that is expected to have data and has none must not begin anew under its old name. It
# would have forgotten what it voted for and acknowledged, and the cluster would count on it.
# MEMBER, EMPTY_DISK (allowed, refused), INITIAL_CLUSTER_STATE (new, existing)
set -eu
. /scripts/members.sh

if [ -d /var/lib/etcd/data/member ]; then
    say "$MEMBER has its data"
elif [ "$EMPTY_DISK" = allowed ] || [ "$INITIAL_CLUSTER_STATE" = existing ]; then
    say "$MEMBER has no data: it begins ($INITIAL_CLUSTER_STATE cluster)"
else
    die 1 "$MEMBER has no data, and the cluster has begun long ago: replace the member (docs/kubernetes.md)"
fi
