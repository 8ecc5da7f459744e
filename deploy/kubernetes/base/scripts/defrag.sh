# Give back the space that compaction has freed, in one member at a time, the leader last. A member answers nothing
# meanwhile: the others must be well before the next one begins, and none is the leader while it does.
# ETCDCTL_..., DEFRAG_FROM_BYTES
set -eu
. /scripts/members.sh

everybody_is_well() {
    for each in $(endpoints); do
        healthy "$each" || return 1
    done
}

hand_over() { # endpoint of the leader, endpoint of its heir
    heir=$(status "$2" | number member_id)
    at "$1" move-leader "$(hexadecimal "$heir")" >/dev/null || return 1
    await 10 leads "$2"
}

defrag() { # endpoint
    before=$(status "$1")
    size=$(printf '%s\n' "$before" | number dbSize)
    used=$(printf '%s\n' "$before" | number dbSizeInUse)
    if [ $((size - used)) -lt "$DEFRAG_FROM_BYTES" ]; then
        say "$1: $size bytes, $used in use: left as it is"
        return
    fi
    at "$1" --command-timeout=300s defrag >/dev/null
    await 60 everybody_is_well || die 1 "$1: not all members are well after its defragmentation; the others are left alone"
    say "$1: $size bytes before, $(status "$1" | number dbSize) now"
}

everybody_is_well || die 1 "not all members are well: nothing is defragmented"
leader='' first=''
for each in $(endpoints); do
    if [ -z "$leader" ] && leads "$each"; then
        leader=$each
    else
        defrag "$each"
        [ -n "$first" ] || first=$each
    fi
done
[ -n "$leader" ] || die 1 "no leader among $ETCDCTL_ENDPOINTS"
if [ -n "$first" ] && leads "$leader"; then
    hand_over "$leader" "$first" || die 1 "$leader does not hand its lead over: it is not defragmented"
fi
defrag "$leader"

alarms=$(etcdctl alarm list)
[ -z "$alarms" ] || die 1 "alarms are raised: $alarms"
