#!/bin/sh
# Brings the base VM of a Mac to a new image between two jobs of a CI runner. Jobs clone their VMs from the base VM.
# This script lies on the Mac, and needs no token of parbake's: the operator's machine offers the image (offer.sh).
#
#   tart-base.sh started      a job begins: waits until the base VM isn't being replaced
#   tart-base.sh completed    the job is over: takes an image that is offered
#   tart-base.sh offer IMAGE  offers an image, and returns when the base VM is of it
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

# whoever makes the directory has the base VM: a job, or its replacement
lock() {
	mkdir "$state/busy" 2>/dev/null
}

# replaces the base VM; the caller has the lock
replace() {
	[ -f "$state/offered" ] || return 0
	image=$(cat "$state/offered")
	tart delete "$base.new" 2>/dev/null || :
	# the image is in tart's cache, verified: nothing is pulled
	tart clone "$image" "$base.new"
	tart delete "$base" 2>/dev/null || :
	tart rename "$base.new" "$base"
	printf '%s\n' "$image" >"$state/has"
	rm "$state/offered"
}

case ${1:-} in
started)
	until lock; do sleep 1; done
	;;
completed)
	# a failure leaves the old base VM, and lets the next job begin
	replace || echo "the base VM isn't replaced; the next job's end tries again" >&2
	rmdir "$state/busy"
	;;
offer)
	image=$2
	printf '%s\n' "$image" >"$state/offered.tmp"
	mv "$state/offered.tmp" "$state/offered"
	# no job runs: nobody calls the hooks
	while [ -f "$state/offered" ]; do
		if lock; then
			trap 'rmdir "$state/busy"' EXIT
			replace
			exit 0
		fi
		sleep 1
	done
	[ "$(cat "$state/has")" = "$image" ]
	;;
*)
	echo "usage: tart-base.sh started | completed | offer IMAGE" >&2
	exit 2
	;;
esac
