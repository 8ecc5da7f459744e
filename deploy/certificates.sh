#!/bin/sh
# Make the certificates of an etcd cluster by hand: two authorities, one for members among themselves and one for
# members and clients, and what each signs. With the component own-certificates, or kubectl create secret generic.
#
#   deploy/certificates.sh DIRECTORY [NAME...]     NAME: a further name or IP address that clients reach members by
#
# What is there is kept, so that a lost or expired certificate is made anew by removing its file and running this again.
set -eu
umask 077

days_authority=3650 days=365
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
directory=$1
shift
mkdir -p "$directory"
cd "$directory"

fail() { echo "certificates.sh: $*" >&2; exit 1; }

key() { # file
    [ -f "$1" ] || openssl ecparam -name prime256v1 -genkey -noout -out "$1"
}

authority() { # name
    [ ! -f "$1.crt" ] || [ -f "$1.key" ] || fail "$directory/$1.crt is here without its key: nothing can be signed"
    key "$1.key"
    [ -f "$1.crt" ] || openssl req -new -x509 -sha256 -key "$1.key" -days $days_authority -subj "/CN=etcd-$1" \
        -addext 'basicConstraints=critical,CA:TRUE,pathlen:0' -addext 'keyUsage=critical,keyCertSign,cRLSign' -out "$1.crt"
}

certificate() { # name, authority, extended key usage, subjectAltName or nothing
    [ ! -f "$1.crt" ] || return 0
    key "$1.key"
    {
        echo 'basicConstraints=critical,CA:FALSE'
        echo 'keyUsage=critical,digitalSignature'
        echo "extendedKeyUsage=$3"
        echo 'authorityKeyIdentifier=keyid'
        [ -z "$4" ] || echo "subjectAltName=$4"
    } >"$1.ext"
    openssl req -new -sha256 -key "$1.key" -subj "/CN=etcd-$1" -out "$1.csr"
    openssl x509 -req -sha256 -in "$1.csr" -CA "$2.crt" -CAkey "$2.key" -set_serial "0x$(openssl rand -hex 16)" \
        -days $days -extfile "$1.ext" -out "$1.crt" 2>"$1.log" || { cat "$1.log" >&2; fail "no certificate $1"; }
    rm "$1.ext" "$1.csr" "$1.log"
    echo "$directory/$1.crt" >&2
}

alternative() { # name or address
    case $1 in
    *:* | *[0-9].[0-9]*.[0-9]*.[0-9]*) echo "IP:$1" ;;
    *) echo "DNS:$1" ;;
    esac
}

# Every name is written out: a member looks its peer's wildcard up backwards, which not every cluster's DNS can.
members=
for ordinal in 0 1 2 3 4; do
    members=$members,DNS:etcd-$ordinal.etcd-peers
done
members=${members#,}
also=
for name in "$@"; do
    also=$also,$(alternative "$name")
done

authority peer-ca
authority client-ca
certificate peer peer-ca serverAuth,clientAuth "$members"
certificate server client-ca serverAuth "DNS:etcd,$members$also"
certificate upkeep client-ca clientAuth ''
certificate client client-ca clientAuth ''
