#!/bin/sh
# Replaces the VM of one Orchard worker by one of the new image. `parbake gate run` starts it for each host whose turn
# it is:
#
#   parbake gate run ghcr.io/org/runner:v2 --group orchard --at-most 10% -- deploy/racks/orchard-roll.sh
#
# It expects that the worker has the host's name and a label with it:
#
#   orchard worker run --name mini-1 --labels host=mini-1 …
#
# Settings, from the environment:
#   RACK_VM_PREFIX  the VM of worker mini-1 is called PREFIX-mini-1 [default: runner]
#   RACK_DRAIN      a program that is given worker and VM, and returns when no job runs there [default: none]
#   RACK_TRIES      so many looks, a second apart, until the new VM runs [default: 600]
set -eu

worker=$PARBAKE_HOST
vm=${RACK_VM_PREFIX:-runner}-$worker

if [ -n "${RACK_DRAIN:-}" ]; then
	"$RACK_DRAIN" "$worker" "$vm"
fi
if orchard get vm "$vm/status" >/dev/null 2>&1; then
	orchard delete vm "$vm"
fi
# the image is in tart's cache, verified: nothing is pulled
orchard create vm "$vm" --image "$PARBAKE_IMAGE" --image-pull-policy IfNotPresent --labels "host=$worker"

tries=${RACK_TRIES:-600}
while [ "$tries" -gt 0 ]; do
	case $(orchard get vm "$vm/status") in
	running) exit 0 ;;
	failed)
		echo "VM $vm failed; see: orchard get vm $vm" >&2
		exit 1
		;;
	esac
	tries=$((tries - 1))
	sleep 1
done
echo "VM $vm doesn't run yet; see: orchard get vm $vm" >&2
exit 1
