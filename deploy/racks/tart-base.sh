#!/bin/sh
# Brings the base VM of a Mac to a new image between two jobs of a CI runner. Jobs clone their VMs from the base VM.
# This script lies on the Mac, and needs no token of parbake's: the operator's machine offers the image (offer.sh).
# A Mac has one runner.
#
#   tart-base.sh started      a job begins: waits until the base VM isn't being replaced
#   tart-base.sh completed    the job is over: takes an image that is offered
#   tart-base.sh offer IMAGE  offers an image, and returns when the base VM is of it; whoever ends it takes the offer
#                             back
#
# GitHub's runner calls a hook by a path without arguments: job-started.sh and job-completed.sh beside this file.
#
# Settings, from the environment:
#   RACK_STATE  a directory for notes [default: ~/.rack]
#   RACK_BASE   the base VM's name [default: ci-base]
set -eu

state=${RACK_STATE:-$HOME/.rack}
base=${RACK_BASE:-ci-base}
mkdir -p "$state"

# another one after each start of the Mac
boot=$(sysctl -n kern.bootsessionuuid 2>/dev/null || cat /proc/sys/kernel/random/boot_id 2>/dev/null || echo unknown)

# Whoever makes the directory has the base VM: a job, or its replacement. The file in it says who that is: what, a
# process that lives as long, and the Mac's start. A job's process is the one that calls the hooks.
lock() {
	if mkdir "$state/busy" 2>/dev/null; then
		: >"$state/busy/$mine"
	elif gone=$(gone); then
		# of all who find that out one succeeds
		mv "$state/busy/$gone" "$state/busy/$mine" 2>/dev/null
	else
		return 1
	fi
}

# The file of an owner that is gone: one from before the Mac's last start, an offer that ended, or, where a job begins,
# a job whose process ended (an offer doesn't take that for certain: the hooks may be called by processes that end at
# once)
gone() {
	owner=
	for file in "$state"/busy/*.*.*.*; do owner=${file##*/}; done
	pid=${owner#*.}
	case $owner in
	'*.*.*.*') return 1 ;; # nobody says
	*".$boot."*) if ps -p "${pid%%.*}" >/dev/null 2>&1; then return 1; fi ;;
	*) pid= ;;
	esac
	case $owner in
	job.*) [ -z "$pid" ] || [ "${mine%%.*}" = job ] || return 1 ;;
	esac
	echo "$owner"
}

# Gives the base VM back, which this owner has
release() {
	rm -f "$state/busy/$1."*
	rmdir "$state/busy"
}

# Replaces the base VM, if an image is offered; the caller has the lock. It may be called where the shell ignores
# failures (`replace || …`), so each step says by itself what follows when it fails.
replace() {
	# what was being taken when the Mac went down is taken anew, unless something newer is offered
	[ -f "$state/offered" ] || [ ! -f "$state/taking" ] || mv "$state/taking" "$state/offered"
	[ -f "$state/offered" ] || return 0
	mv "$state/offered" "$state/taking" || return 1
	image=$(cat "$state/taking") || return 1
	tart delete "$base.new" 2>/dev/null || :
	# the image is in tart's cache, verified: nothing is pulled
	if ! tart clone "$image" "$base.new"; then
		# the old base VM stays, and so does the offer
		[ -f "$state/offered" ] || mv "$state/taking" "$state/offered"
		return 1
	fi
	tart delete "$base" 2>/dev/null || :
	tart rename "$base.new" "$base" || return 1
	printf '%s\n' "$image" >"$state/has" || return 1
	rm -f "$state/taking"
}

case ${1:-} in
started)
	said= mine=job.$PPID.$boot.$$
	until lock; do
		[ -n "$said" ] || echo "waiting: another job has the base VM, or it is being replaced ($state/busy)" >&2
		said=yes
		sleep 1
	done
	;;
completed)
	# a failure leaves the old base VM, and lets the next job begin
	replace || echo "the base VM isn't replaced; the next job's end tries again" >&2
	release job
	;;
offer)
	image=$2
	locked= mine=offer.$$.$boot.$$
	# whoever offered went away, and the place with it: nobody takes the image any more
	end() {
		if [ "$(cat "$state/offered" 2>/dev/null)" = "$image" ]; then rm -f "$state/offered"; fi
		if [ -n "$locked" ]; then release offer; fi
	}
	trap 'end' EXIT
	trap 'exit 1' HUP INT TERM
	printf '%s\n' "$image" >"$state/offered.$$"
	mv "$state/offered.$$" "$state/offered"
	# no job runs: nobody calls the hooks
	while [ -f "$state/offered" ] || [ -f "$state/taking" ]; do
		if lock; then
			locked=yes
			replace
			break
		fi
		sleep 1
	done
	if [ "$(cat "$state/has" 2>/dev/null)" != "$image" ]; then
		echo "the base VM isn't of $image: another image was offered, or the offer was taken back" >&2
		exit 1
	fi
	;;
*)
	echo "usage: tart-base.sh started | completed | offer IMAGE" >&2
	exit 2
	;;
esac
