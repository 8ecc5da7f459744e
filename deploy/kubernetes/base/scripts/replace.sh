# Replace a member whose disk is lost: remove it, add it anew as a learner, which counts for no majority, and let it
# vote once it has everything. Broken off, it can be run again: what the members say decides what is left to do.
# ETCDCTL_..., SCHEME, MEMBER, WAIT_SECONDS
set -eu
. /scripts/members.sh

[ -n "$MEMBER" ] || die 2 "which member? kubectl patch configmap etcd-bootstrap ... replace: etcd-1"
peer=$SCHEME://$MEMBER.etcd-peers:2380
client=$SCHEME://$MEMBER.etcd-peers:2379

others() { # the endpoints of all others, to be asked; the one that is replaced answers nothing
    endpoints | grep -vxF "$client" | paste -sd, -
}

listed() { # id, whether it is a learner; nothing if it is no member
    etcdctl member list | sed -n "s|^\([0-9a-f]*\), [a-z]*, [^,]*, $peer, [^,]*, \([a-z]*\)\$|\1 \2|p"
}

all_well() {
    for each in $(endpoints); do
        healthy "$each" || return 1
    done
}

promoted() { etcdctl member promote "$id" >/dev/null 2>&1; }

endpoints | grep -qxF "$client" || die 2 "$MEMBER is none of $ETCDCTL_ENDPOINTS"
! healthy "$client" || case $(listed) in
    *true) ;; # a learner that has come while we were away
    *) die 2 "$MEMBER is well: it is not replaced" ;;
esac
ETCDCTL_ENDPOINTS=$(others)
export ETCDCTL_ENDPOINTS
all_well || die 1 "another member is not well either: to remove $MEMBER now could cost the majority"

now=$(listed)
case $now in
*false)
    etcdctl member remove "${now% *}" >/dev/null || die 1 "$MEMBER cannot be removed"
    say "$MEMBER (${now% *}) is no longer a member"
    now=''
    ;;
esac
if [ -z "$now" ]; then
    await 60 etcdctl member add "$MEMBER" --learner --peer-urls="$peer" >/dev/null 2>&1 || die 1 "$MEMBER cannot be added"
    now=$(listed)
fi
id=${now% *}
say "$MEMBER ($id) is a learner. Now, in this order: initial-cluster-state=existing, then delete its claim and its pod"
await "$WAIT_SECONDS" promoted || die 75 "$MEMBER ($id) has not come: run this again when it has"
say "$MEMBER ($id) votes. Set initial-cluster-state=new again"
