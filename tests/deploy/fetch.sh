#!/bin/sh
# Bring what the tests of deploy/ start the rendered commands with: an etcd that knows /livez and /readyz, with etcdctl
# and etcdutl, and bubblewrap. From Debian's packages, checked by apt, unpacked and not installed; no root needed.
#   tests/deploy/fetch.sh DIRECTORY [SUITE]
set -eu

directory=$1 suite=${2:-trixie}
keys=/usr/share/keyrings/debian-archive-keyring.gpg
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { echo 'this needs apt-get and dpkg-deb' >&2; exit 1; }
[ -f $keys ] || { echo "this needs $keys (package debian-archive-keyring)" >&2; exit 1; }
archive=$(apt-get indextargets --format '$(SITE) $(REPO_URI)' 'Created-By: Packages' | sed -n 's/^[^ ]* \(.*\/debian\/\)$/\1/p' | head -n 1)
[ -n "$archive" ] || { echo "no Debian archive among apt's sources (apt-get update?)" >&2; exit 1; }

mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
apt=$directory/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/packages"
echo "deb [signed-by=$keys] $archive $suite main" >"$apt/sources.list"

debian() {
    apt-get --quiet=2 --option Dir::Etc::sourcelist="$apt/sources.list" --option Dir::Etc::sourceparts=- \
        --option Dir::State::lists="$apt/lists" --option Dir::Cache="$apt/cache" --option APT::Sandbox::User= "$@"
}

debian update
(cd "$apt/packages" && debian download etcd-server etcd-client)
(cd "$apt/packages" && apt-get --quiet=2 --option APT::Sandbox::User= download bubblewrap) # of this system: it is linked to its libraries
for package in "$apt"/packages/*.deb; do
    dpkg-deb --extract "$package" "$apt/unpacked"
done
mkdir -p "$directory/bin" "$directory/sandbox"
mv "$apt"/unpacked/usr/bin/etcd* "$directory/bin/"
mv "$apt/unpacked/usr/bin/bwrap" "$directory/sandbox/"
rm -r "$apt"
"$directory/bin/etcd" --version | head -n 1
"$directory/sandbox/bwrap" --version
