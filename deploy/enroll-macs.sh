#!/bin/sh
# Brings the agent to Macs over ssh, and enrols them with the fleet. Run it where `parbake-coordinator` runs, as often
# as you like: a Mac that is enrolled stays so, and its agent is started again only where the program is another one.
#
#   deploy/enroll-macs.sh --api https://coordinator.example.com:7470 mini-1 mini-2 mini-3
#
# Each Mac is named as in the fleet file. Write mini-1=admin@10.0.0.11 where ssh knows it by another name. The login
# needs sudo without a password.
#
#   --api URL      the coordinator's API, as the Macs reach it
#   --user NAME    the user that runs tart on the Macs [default: the user of the login]
#   --agent FILE   parbake-agent, built for the Macs [default: target/release/parbake-agent]
#   --tart FILE    tart on the Macs [default: /opt/homebrew/bin/tart, where Homebrew puts it on Apple silicon]
#
# The environment's PARBAKE_COORDINATOR is the command that makes tokens [default: sudo -u parbake parbake-coordinator
# --config /etc/parbake/fleet.toml]. In a cluster: kubectl -n parbake exec POD -- parbake-coordinator.
# Exit status: 0 every Mac is enrolled, 1 some aren't (each is named), 2 a mistake in the call.
set -eu

usage() {
	sed -n '2,/^set -eu/{/^#/s/^# \{0,1\}//p;}' "$0" >&2
	exit 2
}
# these words go into commands of a shell on the Mac
plain() {
	case $2 in
	'' | *[!A-Za-z0-9._:/@-]*)
		echo "$1: '$2' has a character that isn't allowed there" >&2
		exit 2
		;;
	esac
}

api='' user='' agent=target/release/parbake-agent tart=/opt/homebrew/bin/tart
while [ $# -gt 0 ]; do
	case $1 in
	--api | --user | --agent | --tart)
		[ $# -gt 1 ] || usage
		case $1 in
		--api) api=$2 ;;
		--user) user=$2 ;;
		--agent) agent=$2 ;;
		--tart) tart=$2 ;;
		esac
		shift 2
		;;
	-*) usage ;;
	*) break ;;
	esac
done
[ -n "$api" ] && [ $# -gt 0 ] || usage
plain --api "$api"
plain --tart "$tart"
[ -z "$user" ] || plain --user "$user"
[ -f "$agent" ] || {
	echo "--agent: there is no $agent; build it on a Mac: cargo build --release --locked -p agent --bins" >&2
	exit 2
}
coordinator=${PARBAKE_COORDINATOR:-sudo -u parbake parbake-coordinator --config /etc/parbake/fleet.toml}
# the command is several words
# shellcheck disable=SC2086
pin=$($coordinator pin)
plain pin "$pin"

# Installs the program where it is another one, and has launchd run it.
# shellcheck disable=SC2016
install='set -e
sudo mkdir -p /usr/local/bin
if sudo cmp -s parbake-agent.new /usr/local/bin/parbake-agent; then changed=no; else
	sudo install -m 755 parbake-agent.new /usr/local/bin/parbake-agent
	changed=yes
fi
rm parbake-agent.new
sudo /usr/local/bin/parbake-agent install --user "$user" --tart-binary "$tart"
if [ $changed = yes ]; then sudo launchctl kickstart -k system/dev.parbake.agent; fi'

# enrol HOST ADDRESS
enrol() {
	scp -q "$agent" "$2:parbake-agent.new" || return 1
	ssh -n "$2" "user=${user:-\$(id -un)} tart=$tart; $install" || return 1
	if ssh -n "$2" sudo test -e /var/lib/parbake-agent/host.pem; then
		echo "$1: was enrolled"
		return 0
	fi
	# shellcheck disable=SC2086
	token=$($coordinator token --host "$1") || return 1
	# the token goes through stdin: nobody sees it among the processes
	printf '%s\n' "$token" | ssh "$2" "sudo -u ${user:-\$(id -un)} /usr/local/bin/parbake-agent enroll \
--config /etc/parbake/agent.toml --api $api --ca-pin $pin --token-file -" || return 1
	ssh -n "$2" sudo launchctl kickstart -k system/dev.parbake.agent || return 1
	echo "$1: is enrolled"
}

failed=''
for entry in "$@"; do
	host=${entry%%=*}
	plain host "$host"
	plain address "${entry#*=}"
	enrol "$host" "${entry#*=}" || failed="$failed $host"
done
if [ -n "$failed" ]; then
	echo "not enrolled:$failed; mend what is said above, and run this again" >&2
	exit 1
fi
