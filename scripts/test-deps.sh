#!/bin/bash
# Installs the Debian packages that the interop tests use, judged by the command that each brings. Starts no daemon and
# leaves none enabled. Exit 0 when everything is there, 1 with the name of each that is not.
set -u

# command          package
NEEDED='
unbound            unbound
unbound-control    unbound
named              bind9
nsd                nsd
knotd              knot
pdns_recursor      pdns-recursor
dnsperf            dnsperf
dig                bind9-dnsutils
kdig               knot-dnsutils
delv               bind9-dnsutils
drill              ldnsutils
dnssec-signzone    bind9-utils
kzonesign          knot-dnssecutils
faketime           faketime
ip                 iproute2
nft                nftables
openssl            openssl
curl               curl
mosquitto          mosquitto
ejabberdctl        ejabberd
nats-server        nats-server
module:unboundmodule  python3-unbound
gcc                gcc
header:Python.h    python3-dev
'

PATH=$PATH:/usr/sbin:/sbin
export DEBIAN_FRONTEND=noninteractive
POLICY=/usr/sbin/policy-rc.d

there() { # is what this line of the table asks for installed?
    case $1 in
        # Asked of Debian's own Python: Unbound embeds that one, whatever Python runs the tests.
        module:*) [ -e "/usr/lib/python3/dist-packages/${1#module:}.py" ] ;;
        header:*) [ -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/${1#header:}" ] ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

missing_packages() {
    while read -r command package; do
        [ -n "$command" ] || continue
        there "$command" || echo "$package"
    done <<<"$NEEDED" | sort -u
}

forbid_daemons() { # Debian's maintainer scripts ask policy-rc.d before they start a service; 101 means no
    if [ -x $POLICY ]; then
        $POLICY cachebus-tests start >/dev/null 2>&1
        [ $? -eq 101 ] && return
    fi
    trap allow_daemons EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    [ -e $POLICY ] && $SUDO mv $POLICY $POLICY.before-cachebus
    printf '#!/bin/sh\nexit 101\n' | $SUDO tee $POLICY >/dev/null
    $SUDO chmod 755 $POLICY
}

allow_daemons() {
    $SUDO rm -f $POLICY
    if [ -e $POLICY.before-cachebus ]; then $SUDO mv $POLICY.before-cachebus $POLICY; fi
}

disable_units() { # what was installed only for tests shall not start at the next boot either
    command -v systemctl >/dev/null || return 0
    local package unit
    for package in "$@"; do
        dpkg -L "$package" 2>/dev/null | grep -E '/systemd/system/[^@/]+\.service$' | while read -r unit; do
            $SUDO systemctl disable --quiet "$(basename "$unit")" >/dev/null 2>&1
        done
    done
}

install() {
    $SUDO env DEBIAN_FRONTEND=$DEBIAN_FRONTEND apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=120 "$@" </dev/null >/dev/null
}

mapfile -t packages < <(missing_packages)
[ ${#packages[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "test-deps: no apt-get here; install by hand what brings: ${packages[*]}" >&2
    exit 1
fi
SUDO=
if [ "$(id -u)" -ne 0 ]; then
    if [ -t 0 ]; then SUDO=sudo; else SUDO='sudo -n'; fi
    if ! $SUDO true 2>/dev/null; then
        echo "test-deps: not root, and sudo does not let us; missing: ${packages[*]}" >&2
        exit 1
    fi
fi

echo "test-deps: installing ${packages[*]}"
forbid_daemons
$SUDO apt-get update -qq -o DPkg::Lock::Timeout=120 </dev/null || echo "test-deps: apt-get update failed" >&2
if ! install "${packages[@]}"; then
    for package in "${packages[@]}"; do
        install "$package" || echo "test-deps: $package could not be installed" >&2
    done
fi
disable_units "${packages[@]}"

mapfile -t packages < <(missing_packages)
[ ${#packages[@]} -eq 0 ] && exit 0
echo "test-deps: still missing: ${packages[*]}" >&2
exit 1
