#!/bin/sh
# Runs a command for one Mac when it holds an image and has a place under a cap, and gives back this place and no other,
# however the command ends: for a script of your own, where `parbake gate run` doesn't fit.
#
#   with-place.sh HOST IMAGE GROUP AT_MOST COMMAND [ARGUMENT …]
#
#   with-place.sh mini-7 ghcr.io/org/runner:v2 ci 10% ./roll-one.sh mini-7
#
# The exit status is the command's; where that is 0, 1 if the place ended before, and 2 if it couldn't be given back.
# The command knows the place's number as PARBAKE_PLACE. Settings, from the environment, beside those of parbake:
#   RACK_WAIT   seconds after which waiting is over [default: 3600]
#   RACK_WORK   seconds after which the place ends by itself, whatever the command does [default: 1800]
set -eu
host=$1 image=$2 group=$3 cap=$4
shift 4

# the number is made here, so that it is known whatever becomes of the answer; it is used once
PARBAKE_PLACE=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n')
export PARBAKE_PLACE
has=
end() {
	status=$?
	# whoever ends this ends the call, and still reads what is left
	trap : HUP INT TERM
	gave=0
	parbake gate done "$host" --group "$group" --place "$PARBAKE_PLACE" >&2 || gave=$?
	case $gave in
	0) ;;
	1)
		# others may have worked on the host
		if [ -n "$has" ]; then
			echo "the place of $host ended before its command" >&2
			[ "$status" -ne 0 ] || status=1
		fi
		;;
	*)
		echo "$host may have a place, which ends by itself; next:" \
			"\`parbake gate done $host --group $group --place $PARBAKE_PLACE\`" >&2
		[ "$status" -ne 0 ] || status=2
		;;
	esac
	exit "$status"
}
trap end EXIT
trap 'exit 1' HUP INT TERM

parbake gate wait "$host" "$image" --group "$group" --at-most "$cap" --place "$PARBAKE_PLACE" \
	--timeout "${RACK_WAIT:-3600}" --for "${RACK_WORK:-1800}" >&2
has=yes
"$@"
